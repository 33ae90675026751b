//! A cursor over the file that never reads past its end and never trusts a length.

use crate::error::GgufError;

/// Reads little-endian values from the front of a file.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize, // <= bytes.len()
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, offset: 0 }
    }

    /// Bytes read so far.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes not read yet.
    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.offset
    }

    /// The next `count` bytes; `what` names them in the error.
    pub(crate) fn take(
        &mut self,
        count: u64,
        what: impl FnOnce() -> String,
    ) -> Result<&'a [u8], GgufError> {
        match usize::try_from(count) {
            Ok(count) if count <= self.left() => {
                let slice = &self.bytes[self.offset..self.offset + count];
                self.offset += count;
                Ok(slice)
            }
            _ => Err(GgufError::Truncated {
                what: what(),
                offset: self.offset as u64,
                needed: count,
                left: self.left() as u64,
            }),
        }
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        what: impl FnOnce() -> String,
    ) -> Result<[u8; N], GgufError> {
        let slice = self.take(N as u64, what)?;
        Ok(slice
            .try_into()
            .expect("take returns as many bytes as asked"))
    }

    pub(crate) fn u32(&mut self, what: impl FnOnce() -> String) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u64(&mut self, what: impl FnOnce() -> String) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A string: its length as u64, then that many bytes of UTF-8.
    pub(crate) fn string(&mut self, what: impl Fn() -> String) -> Result<&'a str, GgufError> {
        let length = self.u64(&what)?;
        let offset = self.offset as u64;
        let bytes = self.take(length, &what)?;
        std::str::from_utf8(bytes).map_err(|error| GgufError::NotUtf8 {
            what: what(),
            offset: offset + error.valid_up_to() as u64,
        })
    }

    /// A string that names something: not empty, at most `max` bytes.
    pub(crate) fn name(
        &mut self,
        max: u64,
        what: impl Fn() -> String,
    ) -> Result<&'a str, GgufError> {
        let start = self.offset;
        let length = self.u64(&what)?;
        if length > max {
            return Err(GgufError::NameTooLong {
                what: what(),
                length,
                max,
            });
        }
        self.offset = start;
        let name = self.string(&what)?;
        if name.is_empty() {
            return Err(GgufError::EmptyName { what: what() });
        }
        Ok(name)
    }
}
