//! Everything that can be wrong with a model file, with the names and numbers that show where.

use std::path::PathBuf;

use realm_kernels::quant::BlockType;
use thiserror::Error;

use crate::metadata::ValueType;

/// Why a file is refused, or why it does not hold what was asked for.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(
    missing_docs,
    reason = "the message beside each variant says what each field is"
)]
pub enum GgufError {
    #[error("cannot read {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not a regular file", path.display())]
    NotAFile { path: PathBuf },

    // The header.
    #[error("not a GGUF file: it starts with {found:02x?}, not with \"GGUF\"")]
    BadMagic { found: [u8; 4] },
    #[error("big-endian GGUF files are not supported (the version reads as {version:#010x})")]
    BigEndian { version: u32 },
    #[error("GGUF version {version} is not supported; versions 2 and 3 are")]
    UnsupportedVersion { version: u32 },
    #[error(
        "the file ends inside {what}: {needed} bytes are needed at byte {offset}, but only {left} are left"
    )]
    Truncated {
        what: String,
        offset: u64,
        needed: u64,
        left: u64,
    },
    #[error("the file claims to have {count} {what}, but at most {room} fit in the rest of it")]
    TooMany {
        what: &'static str,
        count: u64,
        room: u64,
    },
    #[error("the name of {what} has {length} bytes, but at most {max} are allowed")]
    NameTooLong { what: String, length: u64, max: u64 },
    #[error("{what} has an empty name")]
    EmptyName { what: String },
    #[error("{what} is not valid UTF-8 (byte {offset} of the file)")]
    NotUtf8 { what: String, offset: u64 },

    // Metadata.
    #[error("key {key} appears twice")]
    DuplicateKey { key: String },
    #[error("key {key} has the unknown value type {id}")]
    UnknownValueType { key: String, id: u32 },
    #[error(
        "key {key} claims to be an array of {count} elements, but at most {room} fit in the rest of the file"
    )]
    ArrayTooLong { key: String, count: u64, room: u64 },
    #[error("the arrays of key {key} are nested more than {depth_max} levels deep")]
    ArrayTooDeep { key: String, depth_max: u32 },
    #[error("general.alignment is {value}, but it must be a power of two from {min} to {max}")]
    BadAlignment { value: u64, min: u64, max: u64 },
    #[error(
        "this is part {index} of a model split into {count} files; join them into one file first"
    )]
    SplitFile { index: u64, count: u64 },

    // The tensor table.
    #[error("tensor {name} appears twice")]
    DuplicateTensor { name: String },
    #[error("tensor {name} has {count} dimensions, but it must have 1 to 4")]
    BadDimensionCount { name: String, count: u32 },
    #[error("tensor {name} has length 0 in dimension {dimension}")]
    ZeroDimension { name: String, dimension: u32 },
    #[error("tensor {name} has the unknown type {id}")]
    UnknownTensorType { name: String, id: u32 },
    #[error(
        "tensor {name} has rows of {columns} values, but {} is stored in blocks of {}",
        ty.name(),
        ty.block_len()
    )]
    PartialBlock {
        name: String,
        ty: BlockType,
        columns: u64,
    },
    #[error("tensor {name} of shape {shape:?} is too large: its size does not fit in 64 bits")]
    TensorTooLarge { name: String, shape: Vec<u64> },
    #[error(
        "tensor {name} starts at offset {offset}, which is not a multiple of the alignment {alignment}"
    )]
    UnalignedTensor {
        name: String,
        offset: u64,
        alignment: u64,
    },
    #[error(
        "tensor {name} takes {size} bytes at offset {offset}, but there are only {data_bytes} bytes of data"
    )]
    TensorOutOfFile {
        name: String,
        offset: u64,
        size: u64,
        data_bytes: u64,
    },
    #[error("tensor {name} starts at offset {offset}, inside tensor {other}, which ends at {end}")]
    OverlappingTensors {
        name: String,
        offset: u64,
        other: String,
        end: u64,
    },

    /// A key that the file itself is read by.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Why a model does not hold what was asked of it, whatever form its files have.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(
    missing_docs,
    reason = "the message beside each variant says what each field is"
)]
pub enum SourceError {
    #[error("key {key} is missing")]
    MissingKey { key: String },
    #[error("key {key} is {found}, but it must be {wanted}")]
    WrongValueType {
        key: String,
        wanted: &'static str,
        found: ValueType,
    },
    #[error("key {key} is {value}, which does not fit in {wanted}")]
    ValueOutOfRange {
        key: String,
        value: i128,
        wanted: &'static str,
    },
    #[error("key {key} is an array of values that differ, but it must be the same for every layer")]
    MixedValues { key: String },
    #[error("tensor {name} is missing")]
    MissingTensor { name: String },
    #[error("tensor {name} has shape {shape:?}, but it must be a {wanted}")]
    WrongRank {
        name: String,
        shape: Vec<u64>,
        wanted: &'static str,
    },
    #[error("tensor {name} is stored as {}, which is not supported yet", ty.name())]
    NotRunnable { name: String, ty: BlockType },
}
