//! The files of the zoo with their metadata changed.

use std::path::PathBuf;

use realm_engine::Gguf;
use realm_engine::model::{ModelOptions, load_on};
use realm_kernels::Cpu;

/// Where the fixtures are.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from("tests/fixtures/zoo")
}

/// The value of a key, as files store it.
#[derive(Clone, Copy)]
pub(crate) enum Stated<'a> {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(&'a str),
    Bools(&'a [bool]),
    /// A value type of the format and its bytes.
    Raw(u32, &'a [u8]),
}

impl Stated<'_> {
    /// Type and bytes.
    fn encoded(self) -> (u32, Vec<u8>) {
        let length = |length: usize| (length as u64).to_le_bytes();
        match self {
            Stated::U32(value) => (4, value.to_le_bytes().to_vec()),
            Stated::F32(value) => (6, value.to_le_bytes().to_vec()),
            Stated::Bool(value) => (7, vec![u8::from(value)]),
            Stated::Raw(ty, bytes) => (ty, bytes.to_vec()),
            Stated::Text(text) => (8, [&length(text.len()), text.as_bytes()].concat()),
            Stated::Bools(values) => {
                let bytes: Vec<u8> = values.iter().map(|value| u8::from(*value)).collect();
                let ty = 7u32.to_le_bytes();
                (9, [&ty[..], &length(values.len()), &bytes].concat())
            }
        }
    }
}

fn entry(key: &str, ty: u32, value: &[u8]) -> Vec<u8> {
    let length = (key.len() as u64).to_le_bytes();
    [&length, key.as_bytes(), &ty.to_le_bytes(), value].concat()
}

/// A zoo file with more keys.
pub(crate) fn with_keys(name: &str, keys: &[(&str, Stated<'_>)]) -> Gguf {
    with_entries_of(zoo_file(name), keys)
}

fn zoo_file(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(format!("{name}.gguf"))).expect("a fixture")
}

fn with_entries_of(file: Vec<u8>, keys: &[(&str, Stated<'_>)]) -> Gguf {
    let mut added = Vec::new();
    for (key, value) in keys {
        let (ty, bytes) = value.encoded();
        added.extend(entry(key, ty, &bytes));
    }
    with_entries(file, keys.len() as u64, added)
}

/// A zoo file with a key more, of value type `ty`.
pub(crate) fn with_key(name: &str, key: &str, ty: u32, value: &[u8]) -> Gguf {
    with_entries(zoo_file(name), 1, entry(key, ty, value))
}

/// A filler key keeps the data aligned.
fn with_entries(mut bytes: Vec<u8>, count: u64, mut added: Vec<u8>) -> Gguf {
    let keys = u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"));
    let filler = 64 - (added.len() + entry("", 0, &[0]).len()) % 32;
    added.extend(entry(&"f".repeat(filler), 0, &[0]));
    assert!(added.len().is_multiple_of(32));
    bytes[16..24].copy_from_slice(&(keys + count + 1).to_le_bytes());
    bytes.splice(24..24, added);
    Gguf::from_bytes(bytes).expect("still a good file")
}

/// A zoo file with the value of some of its keys stored in another way.
pub(crate) fn restated(name: &str, keys: &[(&str, Stated<'_>)]) -> Gguf {
    let mut file = zoo_file(name);
    // What they were is still there, under keys that mean nothing.
    for (key, _) in keys {
        let from = [&(key.len() as u64).to_le_bytes(), key.as_bytes()].concat();
        let mut places = file.windows(from.len());
        let at = places
            .position(|place| place == from)
            .expect("a key of the file");
        file[at + from.len() - 1] = b'~';
    }
    with_entries_of(file, keys)
}

/// The bytes of a zoo file with every `from` replaced by `to`, of the same length.
pub(crate) fn patched(name: &str, from: &[u8], to: &[u8]) -> Gguf {
    assert_eq!(from.len(), to.len());
    let mut bytes = zoo_file(name);
    let mut at = 0;
    let mut found = false;
    while let Some(next) = bytes[at..]
        .windows(from.len())
        .position(|window| window == from)
    {
        at += next;
        bytes[at..at + to.len()].copy_from_slice(to);
        found = true;
    }
    assert!(found, "{} is in {name}", String::from_utf8_lossy(from));
    Gguf::from_bytes(bytes).expect("still a good file")
}

/// The file is refused with this message.
#[track_caller]
pub(crate) fn refused(gguf: &Gguf, message: &str) {
    let error = load_on(Cpu::new(1), gguf, ModelOptions::default());
    assert_eq!(error.err().expect("it is refused").to_string(), message);
}
