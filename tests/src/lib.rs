//! Cross-crate tests: the real binary, real clients, hostile guests.
