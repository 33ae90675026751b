//! What a model's files say in words and numbers: keys of its architecture, each checked, and remembered as read.

use std::cell::RefCell;
use std::collections::HashSet;

use realm_weights::Metadata;

use super::LoadError;

/// The keys of an architecture.
pub(crate) struct Keys<'s> {
    metadata: &'s Metadata,
    architecture: &'s str,
    context_max: u32,                // that was asked for
    asked: RefCell<HashSet<String>>, // without the architecture
}

impl<'s> Keys<'s> {
    pub(super) fn new(
        metadata: &'s Metadata,
        architecture: &'s str,
        context_max: Option<u32>,
    ) -> Keys<'s> {
        Keys {
            metadata,
            architecture,
            context_max: context_max.unwrap_or(u32::MAX),
            asked: RefCell::default(),
        }
    }

    pub(crate) fn metadata(&self) -> &'s Metadata {
        self.metadata
    }

    pub(super) fn architecture(&self) -> &'s str {
        self.architecture
    }

    /// Longest sequence that was asked for.
    pub(crate) fn context_max(&self) -> u32 {
        self.context_max
    }

    /// A key of this architecture: `llama.block_count` for `block_count`. It counts as read.
    pub(crate) fn key(&self, name: &str) -> String {
        self.asked.borrow_mut().insert(name.to_owned());
        format!("{}.{name}", self.architecture)
    }

    /// Whether anybody asked for this key.
    pub(super) fn was_asked(&self, name: &str) -> bool {
        self.asked.borrow().contains(name)
    }

    /// A count that is there and not 0.
    pub(crate) fn count(&self, name: &str) -> Result<u32, LoadError> {
        let key = self.key(name);
        let value = self.metadata.require_u32(&key)?;
        self.check(&key, value, value > 0, "a positive number")
    }

    /// A float above 0, or the default where the key is absent.
    pub(crate) fn positive(&self, name: &str, default: f32) -> Result<f32, LoadError> {
        let key = self.key(name);
        let value = self.metadata.f32(&key)?.unwrap_or(default);
        let fits = value.is_finite() && value > 0.0;
        self.check(&key, value, fits, "a positive number")
    }

    /// A factor above 0, or the default where the key is absent or 0, which is how some files say that there is none.
    pub(crate) fn factor(&self, name: &str, default: f32) -> Result<f32, LoadError> {
        let key = self.key(name);
        if self.metadata.f32(&key)? != Some(0.0) {
            return self.positive(name, default);
        }
        tracing::warn!("key {key} is 0, which is no factor: it is taken as {default}");
        Ok(default)
    }

    /// `value` when it fits, an error that names the key when not.
    pub(crate) fn check<T: ToString>(
        &self,
        key: &str,
        value: T,
        fits: bool,
        wanted: &str,
    ) -> Result<T, LoadError> {
        match fits {
            true => Ok(value),
            false => Err(LoadError::BadValue {
                key: key.to_owned(),
                value: value.to_string(),
                wanted: wanted.to_owned(),
            }),
        }
    }
}
