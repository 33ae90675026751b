//! The bytes of a file: a read-only map, or a buffer for tests and fuzzing. The only unsafe code of this crate.
//!
//! A mapped file must not be truncated while it is in use: reading a page that is gone ends the process with
//! SIGBUS, which no check here can prevent. Replace a model by renaming a new file over it; the map
//! keeps the old one alive. Bytes overwritten in place are seen, as wrong numbers, never as wild memory.
#![allow(
    unsafe_code,
    reason = "mapping a file is unsafe; the contract is stated above and at the call"
)]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::error::GgufError;

/// The bytes of one file.
#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a regular file read-only.
    pub(crate) fn map(path: &Path) -> Result<Bytes, GgufError> {
        let io = |source| GgufError::Io {
            path: path.to_owned(),
            source,
        };
        // Asked before opening, because opening a named pipe would wait for a writer.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(GgufError::NotAFile {
                path: path.to_owned(),
            });
        }
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            // An empty file cannot be mapped everywhere; the parser says what is wrong with it.
            return Ok(Bytes::Owned(Vec::new()));
        }
        // SAFETY: the map is read-only and private to this value, and all reads are plain bytes, for which every
        // bit pattern is valid. That nobody truncates the file is the operator's side (module header).
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Bytes::Mapped(map))
    }

    /// All bytes of the file.
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}
