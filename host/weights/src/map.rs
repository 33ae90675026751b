//! Memory: the bytes of a file, as a read-only map or a buffer for tests and fuzzing, and zeroed memory for weights that
//! were repacked. The only unsafe code of this crate.
//!
//! A mapped file must not be truncated while it is in use: reading a page that is gone ends the process with
//! SIGBUS, which no check here can prevent. Replace a model by renaming a new file over it; the map
//! keeps the old one alive. Bytes overwritten in place are seen, as wrong numbers, never as wild memory.
#![allow(
    unsafe_code,
    reason = "mapping a file is unsafe; the contract is stated above and at the call"
)]

use std::collections::TryReserveError;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::BytesMut;
use memmap2::{Mmap, UncheckedAdvice};

use crate::error::GgufError;

/// The bytes of one file.
#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped {
        map: Mmap,
        path: PathBuf,
        modified: Option<SystemTime>,
    },
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
        let facts = file.metadata().map_err(io)?;
        if facts.len() == 0 {
            // An empty file cannot be mapped everywhere; the parser says what is wrong with it.
            return Ok(Bytes::Owned(Vec::new()));
        }
        let map = map_file(&file).map_err(io)?;
        Ok(Bytes::Mapped {
            map,
            path: path.to_owned(),
            modified: facts.modified().ok(),
        })
    }

    /// Where the file was opened; `None` for a buffer.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Bytes::Mapped { path, .. } => Some(path),
            Bytes::Owned(_) => None,
        }
    }

    /// When the file was last written; `None` for a buffer.
    pub(crate) fn modified(&self) -> Option<SystemTime> {
        match self {
            Bytes::Mapped { modified, .. } => *modified,
            Bytes::Owned(_) => None,
        }
    }

    /// Lets go of the memory behind a part of the file; what is read again is fetched again.
    pub(crate) fn release(&self, part: &[u8]) {
        let Bytes::Mapped { map, .. } = self else {
            return;
        };
        let Some(offset) = part.as_ptr().addr().checked_sub(map.as_ptr().addr()) else {
            return;
        };
        if offset.saturating_add(part.len()) > map.len() {
            return;
        }
        // SAFETY: the map is of a file and read-only, so that dropped pages come back with the same bytes.
        let released =
            unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, part.len()) };
        // Advice: where the kernel does not take it, the pages stay until it needs them.
        let _ = released;
    }

    /// All bytes of the file.
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped { map, .. } => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

/// Maps a file that is not empty, read-only.
pub(crate) fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and private to the value returned, and all reads are plain bytes, for which every
    // bit pattern is valid. That nobody truncates the file is the operator's side (module header).
    unsafe { Mmap::map(file) }
}

/// Zeroed memory, on huge pages where the system has them: weights are read from end to end in every step, and with
/// small pages the walks of the page table show. Pages that nobody writes to take no memory.
///
/// # Errors
/// When the allocator refuses.
pub(crate) fn zeroed(bytes: usize) -> Result<BytesMut, TryReserveError> {
    // Asked for and given back: an allocation that fails below would end the process.
    Vec::<u8>::new().try_reserve_exact(bytes)?;
    let mut memory = BytesMut::zeroed(bytes);
    advise_huge_pages(&mut memory);
    Ok(memory)
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(memory: &mut [u8]) {
    let page = rustix::param::page_size();
    let lead = memory.as_ptr().align_offset(page);
    let Some(whole) = memory.get_mut(lead..) else {
        return;
    };
    let bytes = whole.len() / page * page;
    // SAFETY: the range lies in memory that is borrowed mutably, and this advice does not change what it holds.
    let advised = unsafe {
        rustix::mm::madvise(
            whole.as_mut_ptr().cast(),
            bytes,
            rustix::mm::Advice::LinuxHugepage,
        )
    };
    // Advice: a kernel without huge pages only makes us slower.
    let _ = advised;
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_memory: &mut [u8]) {}
