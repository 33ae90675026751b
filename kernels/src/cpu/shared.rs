//! An output slice that several tasks write, each its own part.

use std::marker::PhantomData;
use std::ops::Range;

/// A `&mut [T]` whose disjoint parts are handed to tasks.
pub(crate) struct SharedOut<'a, T> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: it only gives out parts by `part`, whose caller promises that no two overlap; `T` may be written by any thread.
unsafe impl<T: Send> Sync for SharedOut<'_, T> {}

impl<'a, T> SharedOut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> SharedOut<'a, T> {
        SharedOut {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            owner: PhantomData,
        }
    }

    /// The elements `range`.
    ///
    /// # Safety
    /// While the result lives, nobody else holds a part that overlaps it.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    #[inline(always)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "a part must lie inside the slice"
        );
        // SAFETY: inside the slice by the check, exclusive by the caller's promise.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start)
        }
    }
}
