//! Memory for repacked weights.

use std::collections::TryReserveError;

use bytes::BytesMut;

use crate::map;

/// What is asked of the system at once; large beside a huge page, which is 2 MiB on most machines. What is left of it
/// is never touched, so that it takes no memory.
const CHUNK_BYTES: usize = 256 << 20;
/// A cache line, and the alignment of panels.
const ALIGNMENT: usize = 64;

/// Gives out pieces of few large allocations, each piece aligned to 64 bytes. The memory goes back to the system when
/// the last piece of an allocation is gone.
#[derive(Debug, Default)]
pub struct Arena {
    chunk: BytesMut,
}

impl Arena {
    /// Zeroed memory.
    ///
    /// # Errors
    /// When the allocator refuses.
    pub fn take(&mut self, bytes: usize) -> Result<BytesMut, TryReserveError> {
        if self.lead().saturating_add(bytes) > self.chunk.len() {
            self.chunk = map::zeroed(bytes.saturating_add(ALIGNMENT).max(CHUNK_BYTES))?;
        }
        let mut piece = self.chunk.split_to(self.lead() + bytes);
        Ok(piece.split_off(piece.len() - bytes))
    }

    /// Bytes to the next aligned address.
    fn lead(&self) -> usize {
        self.chunk.as_ptr().align_offset(ALIGNMENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_zeroed_and_apart() {
        let mut arena = Arena::default();
        let sizes = [1, 64, 0, 100, CHUNK_BYTES, CHUNK_BYTES - 300, 5, 7];
        let mut pieces: Vec<BytesMut> = sizes
            .iter()
            .map(|&bytes| arena.take(bytes).unwrap())
            .collect();
        for (piece, bytes) in pieces.iter_mut().zip(sizes) {
            assert_eq!(piece.len(), bytes);
            assert!(piece.is_empty() || piece.as_ptr().addr().is_multiple_of(ALIGNMENT));
            assert!(piece.iter().take(200).all(|&byte| byte == 0));
            piece.iter_mut().take(200).for_each(|byte| *byte = 1);
        }
        assert!(arena.take(usize::MAX / 2).is_err());
    }
}
