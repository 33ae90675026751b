//! A whole GGUF file: header, metadata, tensor table, and where the data lies.
//!
//! Layout (versions 2 and 3): magic, version u32, tensor count u64, key count u64, keys, tensor table, padding to
//! `general.alignment`, data. Source: the GGUF description in the ggml repository, docs/gguf.md.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::time::UNIX_EPOCH;

use realm_kernels::quant::BlockType;
use xxhash_rust::xxh3::Xxh3;

use crate::error::{GgufError, SourceError};
use crate::map::Bytes;
use crate::metadata::Metadata;
use crate::reader::Reader;
use crate::source::ModelSource;
use crate::tensor::Tensor;
use crate::tokenizer::TokenizerData;

const ALIGNMENT_DEFAULT: u64 = 32;
/// The format asks for a multiple of 8.
const ALIGNMENT_MIN: u64 = 8;
/// Above any page size in use; a larger one only wastes the file.
const ALIGNMENT_MAX: u64 = 1 << 20;
const DIMENSIONS_MAX: u32 = 4;
/// The format says 64 bytes; some writers exceed it, none by much.
const TENSOR_NAME_BYTES_MAX: u64 = 256;
/// Length of the name, one byte of name, dimension count, one dimension, type, offset.
const TENSOR_ENTRY_BYTES_MIN: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// An open model file; every tensor is known to lie inside it and beside the others.
#[derive(Debug)]
pub struct Gguf {
    bytes: Bytes,
    metadata: Metadata,
    tensors: Vec<Entry>, // in the order of the table
    by_name: HashMap<String, usize>,
    header: usize, // bytes before the data
}

/// One row of the tensor table.
#[derive(Debug)]
struct Entry {
    name: String,
    ty: BlockType,
    shape: Vec<u64>,
    offset: u64,         // from the start of the data
    size: u64,           // bytes
    range: Range<usize>, // of the file
}

impl Gguf {
    /// Opens a file over a read-only map.
    ///
    /// The file must not be truncated while it is in use; a model is replaced by renaming another file over it.
    ///
    /// # Errors
    /// Any [`GgufError`] up to the tensor table.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        Gguf::parse(Bytes::map(path)?)
    }

    /// Reads a file that is already in memory.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
        Gguf::parse(Bytes::Owned(bytes))
    }

    /// The keys and values of the file.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        self.by_name
            .get(name)
            .map(|index| self.view(&self.tensors[*index]))
    }

    /// All tensors in the order of the table.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.tensors.iter().map(|entry| self.view(entry))
    }

    /// Size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.bytes.as_slice().len() as u64
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> Tensor<'a> {
        Tensor {
            name: &entry.name,
            ty: entry.ty,
            shape: &entry.shape,
            data: &self.bytes.as_slice()[entry.range.clone()],
        }
    }

    fn parse(bytes: Bytes) -> Result<Gguf, GgufError> {
        let mut reader = Reader::new(bytes.as_slice());
        check_header(&mut reader)?;
        let tensor_count = reader.u64(|| "the tensor count".to_owned())?;
        let key_count = reader.u64(|| "the key count".to_owned())?;
        let metadata = Metadata::parse(&mut reader, key_count)?;
        refuse_split(&metadata)?;
        let alignment = alignment(&metadata)?;
        let mut tensors = parse_table(&mut reader, tensor_count, alignment)?;
        let by_name = index(&tensors)?;
        let data_start = (reader.offset() as u64).next_multiple_of(alignment);
        let file_bytes = bytes.as_slice().len();
        place(&mut tensors, data_start, file_bytes as u64)?;
        refuse_overlaps(&tensors)?;
        Ok(Gguf {
            bytes,
            metadata,
            tensors,
            by_name,
            header: usize::try_from(data_start)
                .unwrap_or(usize::MAX)
                .min(file_bytes),
        })
    }
}

impl ModelSource for Gguf {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn tokenizer(&self) -> Result<TokenizerData, SourceError> {
        TokenizerData::from_keys(&self.metadata)
    }

    fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        self.tensor(name)
    }

    fn tensors(&self) -> Box<dyn Iterator<Item = Tensor<'_>> + '_> {
        Box::new(self.tensors())
    }

    fn file_bytes(&self) -> u64 {
        self.file_bytes()
    }

    fn path(&self) -> Option<&Path> {
        self.bytes.path()
    }

    fn release(&self, data: &[u8]) {
        self.bytes.release(data);
    }

    /// Of the file's size, its time of change, all before the data, and the two ends of every tensor. Not all data is read,
    /// because reading it takes longer than everything this is asked for.
    fn fingerprint(&self) -> Option<u128> {
        /// Of each end of a tensor: one page.
        const END_BYTES: usize = 4096;
        let since = self.bytes.modified()?.duration_since(UNIX_EPOCH).ok()?;
        let mut hash = Xxh3::new();
        hash.update(&self.file_bytes().to_le_bytes());
        hash.update(&since.as_nanos().to_le_bytes());
        hash.update(&self.bytes.as_slice()[..self.header]);
        for Tensor { data, .. } in self.tensors() {
            let end = data.len().min(END_BYTES);
            hash.update(&data[..end]);
            hash.update(&data[data.len() - end..]);
        }
        Some(hash.digest128())
    }
}

fn check_header(reader: &mut Reader<'_>) -> Result<(), GgufError> {
    let found = reader.array(|| "the magic".to_owned())?;
    if &found != b"GGUF" {
        return Err(GgufError::BadMagic { found });
    }
    match reader.u32(|| "the version".to_owned())? {
        2 | 3 => Ok(()),
        // A version in the upper half only: the writer's bytes are the other way round.
        version if version & 0xffff == 0 && version != 0 => Err(GgufError::BigEndian { version }),
        version => Err(GgufError::UnsupportedVersion { version }),
    }
}

fn refuse_split(metadata: &Metadata) -> Result<(), GgufError> {
    match metadata.u64("split.count")? {
        None | Some(0 | 1) => Ok(()),
        Some(count) => Err(GgufError::SplitFile {
            index: metadata.u64("split.no")?.unwrap_or(0),
            count,
        }),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let value = metadata
        .u64("general.alignment")?
        .unwrap_or(ALIGNMENT_DEFAULT);
    if value.is_power_of_two() && (ALIGNMENT_MIN..=ALIGNMENT_MAX).contains(&value) {
        return Ok(value);
    }
    Err(GgufError::BadAlignment {
        value,
        min: ALIGNMENT_MIN,
        max: ALIGNMENT_MAX,
    })
}

fn parse_table(
    reader: &mut Reader<'_>,
    count: u64,
    alignment: u64,
) -> Result<Vec<Entry>, GgufError> {
    let room = reader.left() as u64 / TENSOR_ENTRY_BYTES_MIN;
    if count > room {
        return Err(GgufError::TooMany {
            what: "tensors",
            count,
            room,
        });
    }
    (0..count)
        .map(|index| parse_entry(reader, index, alignment))
        .collect()
}

fn parse_entry(reader: &mut Reader<'_>, index: u64, alignment: u64) -> Result<Entry, GgufError> {
    let name = reader.name(TENSOR_NAME_BYTES_MAX, || format!("tensor {index}"))?;
    let what = || format!("the table entry of tensor {name}");
    let name = name.to_owned();
    let count = reader.u32(what)?;
    if !(1..=DIMENSIONS_MAX).contains(&count) {
        return Err(GgufError::BadDimensionCount { name, count });
    }
    let mut shape = Vec::with_capacity(count as usize);
    for dimension in 0..count {
        match reader.u64(what)? {
            0 => return Err(GgufError::ZeroDimension { name, dimension }),
            length => shape.push(length),
        }
    }
    let id = reader.u32(what)?;
    let offset = reader.u64(what)?;
    let Some(ty) = BlockType::from_ggml(id) else {
        return Err(GgufError::UnknownTensorType { name, id });
    };
    if !offset.is_multiple_of(alignment) {
        return Err(GgufError::UnalignedTensor {
            name,
            offset,
            alignment,
        });
    }
    let size = tensor_bytes(&name, ty, &shape)?;
    Ok(Entry {
        name,
        ty,
        shape,
        offset,
        size,
        range: 0..0,
    })
}

/// Bytes of a tensor: those of a row times the other lengths. The number of values is held below 2^63 too, so
/// that code which counts values needs no checks.
fn tensor_bytes(name: &str, ty: BlockType, shape: &[u64]) -> Result<u64, GgufError> {
    let too_large = || GgufError::TensorTooLarge {
        name: name.to_owned(),
        shape: shape.to_vec(),
    };
    let columns = shape[0];
    if !columns.is_multiple_of(ty.block_len() as u64) {
        return Err(GgufError::PartialBlock {
            name: name.to_owned(),
            ty,
            columns,
        });
    }
    let row_bytes = usize::try_from(columns)
        .ok()
        .and_then(|columns| ty.row_bytes(columns))
        .ok_or_else(too_large)?;
    let rows = shape[1..]
        .iter()
        .try_fold(1u64, |rows, length| rows.checked_mul(*length))
        .ok_or_else(too_large)?;
    rows.checked_mul(columns)
        .filter(|values| i64::try_from(*values).is_ok())
        .ok_or_else(too_large)?;
    rows.checked_mul(row_bytes as u64).ok_or_else(too_large)
}

/// Turns offsets into ranges of the file.
fn place(tensors: &mut [Entry], data_start: u64, file_bytes: u64) -> Result<(), GgufError> {
    let data_bytes = file_bytes.saturating_sub(data_start);
    for entry in tensors {
        let end = entry.offset.checked_add(entry.size);
        if end.is_none_or(|end| end > data_bytes) {
            return Err(GgufError::TensorOutOfFile {
                name: entry.name.clone(),
                offset: entry.offset,
                size: entry.size,
                data_bytes,
            });
        }
        let start = usize::try_from(data_start + entry.offset);
        let start = start.expect("below the length of the file, which is in memory");
        let size = usize::try_from(entry.size);
        entry.range = start..start + size.expect("no more than the length of the file");
    }
    Ok(())
}

fn refuse_overlaps(tensors: &[Entry]) -> Result<(), GgufError> {
    let mut by_offset: Vec<&Entry> = tensors.iter().collect();
    by_offset.sort_by_key(|entry| entry.offset);
    for pair in by_offset.windows(2) {
        let end = pair[0].offset + pair[0].size;
        if pair[1].offset < end {
            return Err(GgufError::OverlappingTensors {
                name: pair[1].name.clone(),
                offset: pair[1].offset,
                other: pair[0].name.clone(),
                end,
            });
        }
    }
    Ok(())
}

fn index(tensors: &[Entry]) -> Result<HashMap<String, usize>, GgufError> {
    let mut by_name = HashMap::with_capacity(tensors.len());
    for (index, entry) in tensors.iter().enumerate() {
        if by_name.insert(entry.name.clone(), index).is_some() {
            return Err(GgufError::DuplicateTensor {
                name: entry.name.clone(),
            });
        }
    }
    Ok(by_name)
}
