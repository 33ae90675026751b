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
    #[error("big-endian GGUF files are not supported (version reads {version:#010x})")]
    BigEndian { version: u32 },
    #[error("GGUF version {version} is not supported, only 2 and 3")]
    UnsupportedVersion { version: u32 },
    #[error("the file ends inside {what}: {needed} bytes needed at byte {offset}, {left} are left")]
    Truncated {
        what: String,
        offset: u64,
        needed: u64,
        left: u64,
    },
    #[error("the file claims {count} {what}, at most {room} fit in what is left of it")]
    TooMany {
        what: &'static str,
        count: u64,
        room: u64,
    },
    #[error("{what} has a name of {length} bytes, at most {max} are allowed")]
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
    #[error("key {key} holds {value} where a bool is 0 or 1")]
    BadBool { key: String, value: u8 },
    #[error("key {key} claims an array of {count} elements, at most {room} fit in the file")]
    ArrayTooLong { key: String, count: u64, room: u64 },
    #[error("key {key} nests arrays more than {depth_max} deep")]
    ArrayTooDeep { key: String, depth_max: u32 },
    #[error("general.alignment is {value}: not a power of two from {min} to {max}")]
    BadAlignment { value: u64, min: u64, max: u64 },
    #[error(
        "this is part {index} of a model split into {count} files; join them into one file first"
    )]
    SplitFile { index: u64, count: u64 },
    #[error("key {key} is missing")]
    MissingKey { key: String },
    #[error("key {key} is {found}, {wanted} is expected")]
    WrongValueType {
        key: String,
        wanted: &'static str,
        found: ValueType,
    },
    #[error("key {key} is {value}, which is no {wanted}")]
    ValueOutOfRange {
        key: String,
        value: i128,
        wanted: &'static str,
    },

    // The tensor table.
    #[error("tensor {name} appears twice")]
    DuplicateTensor { name: String },
    #[error("tensor {name} has {count} dimensions, 1 to 4 are allowed")]
    BadDimensionCount { name: String, count: u32 },
    #[error("tensor {name} has length 0 in dimension {dimension}")]
    ZeroDimension { name: String, dimension: u32 },
    #[error("tensor {name} has the unknown type {id}")]
    UnknownTensorType { name: String, id: u32 },
    #[error("tensor {name} has rows of {columns} values, {} comes in blocks of {}", ty.name(), ty.block_len())]
    PartialBlock {
        name: String,
        ty: BlockType,
        columns: u64,
    },
    #[error("tensor {name} of shape {shape:?} has more bytes than can be counted")]
    TensorTooLarge { name: String, shape: Vec<u64> },
    #[error("tensor {name} starts at offset {offset}, no multiple of the alignment {alignment}")]
    UnalignedTensor {
        name: String,
        offset: u64,
        alignment: u64,
    },
    #[error(
        "tensor {name} takes {size} bytes at offset {offset} of the data, which has {data_bytes}"
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

    // What a model asks for.
    #[error("tensor {name} is missing")]
    MissingTensor { name: String },
    #[error("tensor {name} has shape {shape:?}, a {wanted} is expected")]
    WrongRank {
        name: String,
        shape: Vec<u64>,
        wanted: &'static str,
    },
    #[error("tensor {name} is stored as {}, which cannot be run yet", ty.name())]
    NotRunnable { name: String, ty: BlockType },
}
