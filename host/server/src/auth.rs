//! Keys and tokens: how they look, how they are stored, how they are compared.

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// What every API key begins with.
const KEY_PREFIX: &str = "rk_";
/// How much of a key is shown in lists: enough to tell keys apart, far too little to guess one.
const KEY_SHOWN: usize = 9;

/// A new API key. It exists in clear only here and at its owner's.
pub struct NewKey {
    /// What the owner gets.
    pub key: String,
    /// What is stored.
    pub hash: [u8; 32],
    /// What lists show.
    pub prefix: String,
    /// By which it is revoked.
    pub id: String,
}

impl NewKey {
    /// Draws one: 192 bits, so that a plain hash of it is safe to store.
    pub fn draw() -> NewKey {
        let key = format!("{KEY_PREFIX}{}", random_hex::<24>());
        NewKey {
            hash: sha256(key.as_bytes()),
            prefix: key[..KEY_SHOWN].to_owned(),
            id: format!("key_{}", random_hex::<6>()),
            key,
        }
    }
}

/// The token of an `Authorization: Bearer` header.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim())
        .filter(|token| !token.is_empty())
}

/// Compares secrets through their digests, so that the time taken tells nothing about them.
pub fn same_secret(one: &str, other: &str) -> bool {
    sha256(one.as_bytes())
        .ct_eq(&sha256(other.as_bytes()))
        .into()
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// `N` bytes of the system's randomness.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has randomness: without it no key is safe");
    bytes
}

/// `N` random bytes in hex.
pub fn random_hex<const N: usize>() -> String {
    hex(&random::<N>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_lists_show_little_of_them() {
        let (one, two) = (NewKey::draw(), NewKey::draw());
        assert_ne!(one.key, two.key);
        assert!(one.key.starts_with(&one.prefix) && one.key.len() == 51);
        assert_eq!(one.hash, sha256(one.key.as_bytes()));
    }

    #[test]
    fn a_bearer_token_is_found_in_its_header_only() {
        let token = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(token("Bearer rk_1").as_deref(), Some("rk_1"));
        assert_eq!(token("bearer  rk_1 ").as_deref(), Some("rk_1"));
        assert_eq!(token("Basic rk_1"), None);
        assert_eq!(token("Bearer "), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn secrets_are_the_same_or_not() {
        assert!(same_secret("a", "a"));
        assert!(!same_secret("a", "b") && !same_secret("", "a"));
        assert_eq!(hex(&[0, 0xff, 0x1a]), "00ff1a");
    }
}
