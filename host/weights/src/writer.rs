//! Writing GGUF files (version 3), tensor data streamed: models that are made, not trained.

use std::io::{self, Write};

use realm_kernels::quant::BlockType;

/// What [`GgufWriter::write`] pads with and to.
const ALIGNMENT: usize = 32;
/// Value types of the format.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Keys and the table of tensors, to be written before the data.
#[derive(Debug, Default)]
pub struct GgufWriter {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    ty: BlockType,
    shape: Vec<u64>,
    bytes: usize,
}

impl GgufWriter {
    fn key(&mut self, key: &str, ty: u32) -> &mut Vec<u8> {
        self.key_count += 1;
        put_str(&mut self.keys, key);
        self.keys.extend(ty.to_le_bytes());
        &mut self.keys
    }

    fn array(&mut self, key: &str, ty: u32, count: usize) -> &mut Vec<u8> {
        let keys = self.key(key, ARRAY);
        keys.extend(ty.to_le_bytes());
        keys.extend((count as u64).to_le_bytes());
        keys
    }

    /// Adds a number.
    pub fn u32(&mut self, key: &str, value: u32) {
        self.key(key, U32).extend(value.to_le_bytes());
    }

    /// Adds a float.
    pub fn f32(&mut self, key: &str, value: f32) {
        self.key(key, F32).extend(value.to_le_bytes());
    }

    /// Adds a truth value.
    pub fn bool(&mut self, key: &str, value: bool) {
        self.key(key, BOOL).push(value.into());
    }

    /// Adds a text.
    pub fn str(&mut self, key: &str, value: &str) {
        put_str(self.key(key, STRING), value);
    }

    /// Adds a list of texts.
    pub fn strings(&mut self, key: &str, values: &[String]) {
        let keys = self.array(key, STRING, values.len());
        values.iter().for_each(|value| put_str(keys, value));
    }

    /// Adds a list of floats.
    pub fn f32s(&mut self, key: &str, values: &[f32]) {
        let keys = self.array(key, F32, values.len());
        keys.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// Adds a list of integers.
    pub fn i32s(&mut self, key: &str, values: &[i32]) {
        let keys = self.array(key, I32, values.len());
        keys.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// Adds a tensor; its data follows in [`write`](GgufWriter::write), in the order of these calls. `shape` is in the
    /// order of the file, row length first.
    ///
    /// # Panics
    /// When a row is no whole number of blocks.
    pub fn tensor(&mut self, name: &str, ty: BlockType, shape: &[usize]) {
        let row = ty.row_bytes(shape[0]).expect("rows of whole blocks");
        self.tensors.push(Entry {
            name: name.to_owned(),
            ty,
            shape: shape.iter().map(|length| *length as u64).collect(),
            bytes: row * shape[1..].iter().product::<usize>(),
        });
    }

    /// Writes the file. `data` writes all data of a tensor, told its name, type and bytes.
    ///
    /// # Errors
    /// Those of `out` and `data`, and when `data` writes another number of bytes.
    pub fn write<W: Write>(
        &self,
        out: W,
        mut data: impl FnMut(&str, BlockType, usize, &mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut out = Counted { out, written: 0 };
        out.write_all(&self.header())?;
        out.pad()?;
        for tensor in &self.tensors {
            let before = out.written;
            data(&tensor.name, tensor.ty, tensor.bytes, &mut out)?;
            if out.written - before != tensor.bytes {
                return Err(io::Error::other(format!(
                    "tensor {} has {} bytes, {} were written",
                    tensor.name,
                    tensor.bytes,
                    out.written - before
                )));
            }
            out.pad()?;
        }
        out.flush()
    }

    fn header(&self) -> Vec<u8> {
        let mut header = b"GGUF\x03\0\0\0".to_vec();
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend(self.key_count.to_le_bytes());
        header.extend(&self.keys);
        let mut offset = 0;
        for tensor in &self.tensors {
            put_str(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            header.extend(tensor.shape.iter().flat_map(|length| length.to_le_bytes()));
            header.extend(tensor.ty.ggml_id().to_le_bytes());
            header.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes.next_multiple_of(ALIGNMENT);
        }
        header
    }
}

fn put_str(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Knows how much was written.
struct Counted<W> {
    out: W,
    written: usize,
}

impl<W: Write> Counted<W> {
    fn pad(&mut self) -> io::Result<()> {
        let padding = self.written.next_multiple_of(ALIGNMENT) - self.written;
        self.write_all(&[0; ALIGNMENT][..padding])
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.written += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
