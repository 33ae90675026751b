//! The key-value part of a GGUF file: parsed once, then asked by key and type.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{GgufError, SourceError};
use crate::reader::Reader;

/// Arrays in arrays: the format sets no bound, real files use one level.
const ARRAY_DEPTH_MAX: u32 = 4;
/// Set by the format.
const KEY_BYTES_MAX: u64 = 65_535;
/// Length of a key, one byte of key, its type, one byte of value.
const ENTRY_BYTES_MIN: u64 = 8 + 1 + 4 + 1;

/// A value of the metadata, as stored.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variants are the types of the format")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of the metadata: elements of one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variants are the types of the format")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// The type of a value; numbers are those of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the types of the format")]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

/// All keys of a file with their values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: BTreeMap<String, Value>,
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// All keys in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries
            .iter()
            .map(|(key, value)| (key.as_str(), value))
    }

    /// A string.
    ///
    /// # Errors
    /// [`SourceError::WrongValueType`] when the key holds something else.
    pub fn str(&self, key: &str) -> Result<Option<&str>, SourceError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(key, "a string", other.value_type())),
        }
    }

    /// A truth value: a bool, or a number that is 0 or 1, in any of the forms of [`Metadata::u32`].
    ///
    /// # Errors
    /// [`SourceError::WrongValueType`] when the key holds something else, [`SourceError::ValueOutOfRange`] for other numbers.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, SourceError> {
        const WANTED: &str = "a boolean";
        let Some(integer) = self.number(key, WANTED, Scalar::integer)? else {
            return Ok(None);
        };
        let bit: u8 = fit(key, integer, WANTED)?;
        match bit {
            0 | 1 => Ok(Some(bit == 1)),
            _ => Err(out_of_range(key, integer, WANTED)),
        }
    }

    /// An integer that fits u32, however it is stored: in any width, as a float without a fraction, as a bool, or as an
    /// array that has it for every layer.
    ///
    /// # Errors
    /// [`SourceError::WrongValueType`] when it is no integer, [`SourceError::ValueOutOfRange`] when it does not fit,
    /// [`SourceError::MixedValues`] for an array of several.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, SourceError> {
        self.integer(key, "a u32")
    }

    /// The same that fits u64.
    ///
    /// # Errors
    /// As [`Metadata::u32`].
    pub fn u64(&self, key: &str) -> Result<Option<u64>, SourceError> {
        self.integer(key, "a u64")
    }

    /// The number of a token. One that no vocabulary can have, as the -1 by which some files say that there is none, is
    /// `u32::MAX`.
    ///
    /// # Errors
    /// As [`Metadata::u32`].
    pub fn token_id(&self, key: &str) -> Result<Option<u32>, SourceError> {
        let integer = self.number(key, "an integer", Scalar::integer)?;
        Ok(integer.map(|id| u32::try_from(id).unwrap_or(u32::MAX)))
    }

    /// A number, in any of the forms of [`Metadata::u32`] or with a fraction.
    ///
    /// # Errors
    /// [`SourceError::WrongValueType`] when the key holds something else, [`SourceError::MixedValues`] for an array of
    /// several.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, SourceError> {
        let float = self.number(key, "a number", |scalar| Some(scalar.float()))?;
        Ok(float.map(|float| float as f32))
    }

    /// An array of strings.
    ///
    /// # Errors
    /// [`SourceError::WrongValueType`] when the key holds something else.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, SourceError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::String(texts))) => Ok(Some(texts)),
            Some(other) => Err(wrong(key, "an array of strings", other.value_type())),
        }
    }

    /// An array of truth values, which may be stored as numbers.
    ///
    /// # Errors
    /// As [`Metadata::bool`].
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>, SourceError> {
        const WANTED: &str = "an array of booleans";
        self.numbers(key, WANTED, |scalar| match scalar.integer() {
            Some(integer @ (0 | 1)) => Ok(integer == 1),
            Some(other) => Err(out_of_range(key, other, WANTED)),
            None => Err(wrong(key, WANTED, ValueType::Array)),
        })
    }

    /// An array of numbers.
    ///
    /// # Errors
    /// [`SourceError::WrongValueType`] when the key holds something else.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, SourceError> {
        self.numbers(key, "an array of numbers", |scalar| {
            Ok(scalar.float() as f32)
        })
    }

    /// An array of integers that fit i32, in any of the forms of [`Metadata::u32`].
    ///
    /// # Errors
    /// As [`Metadata::u32`].
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, SourceError> {
        const WANTED: &str = "an array of integers";
        self.numbers(key, WANTED, |scalar| match scalar.integer() {
            Some(integer) => fit(key, integer, "an i32"),
            None => Err(wrong(key, WANTED, ValueType::Array)),
        })
    }

    /// [`Metadata::str`] of a key that must be there.
    ///
    /// # Errors
    /// [`SourceError::MissingKey`], and those of the twin.
    pub fn require_str(&self, key: &str) -> Result<&str, SourceError> {
        self.str(key)?.ok_or_else(|| missing(key))
    }

    /// [`Metadata::bool`] of a key that must be there.
    ///
    /// # Errors
    /// [`SourceError::MissingKey`], and those of the twin.
    pub fn require_bool(&self, key: &str) -> Result<bool, SourceError> {
        self.bool(key)?.ok_or_else(|| missing(key))
    }

    /// [`Metadata::u32`] of a key that must be there.
    ///
    /// # Errors
    /// [`SourceError::MissingKey`], and those of the twin.
    pub fn require_u32(&self, key: &str) -> Result<u32, SourceError> {
        self.u32(key)?.ok_or_else(|| missing(key))
    }

    /// [`Metadata::u64`] of a key that must be there.
    ///
    /// # Errors
    /// [`SourceError::MissingKey`], and those of the twin.
    pub fn require_u64(&self, key: &str) -> Result<u64, SourceError> {
        self.u64(key)?.ok_or_else(|| missing(key))
    }

    /// [`Metadata::f32`] of a key that must be there.
    ///
    /// # Errors
    /// [`SourceError::MissingKey`], and those of the twin.
    pub fn require_f32(&self, key: &str) -> Result<f32, SourceError> {
        self.f32(key)?.ok_or_else(|| missing(key))
    }

    /// [`Metadata::strings`] of a key that must be there.
    ///
    /// # Errors
    /// [`SourceError::MissingKey`], and those of the twin.
    pub fn require_strings(&self, key: &str) -> Result<&[String], SourceError> {
        self.strings(key)?.ok_or_else(|| missing(key))
    }

    /// [`Metadata::f32s`] of a key that must be there.
    ///
    /// # Errors
    /// [`SourceError::MissingKey`], and those of the twin.
    pub fn require_f32s(&self, key: &str) -> Result<Vec<f32>, SourceError> {
        self.f32s(key)?.ok_or_else(|| missing(key))
    }

    /// [`Metadata::i32s`] of a key that must be there.
    ///
    /// # Errors
    /// [`SourceError::MissingKey`], and those of the twin.
    pub fn require_i32s(&self, key: &str) -> Result<Vec<i32>, SourceError> {
        self.i32s(key)?.ok_or_else(|| missing(key))
    }

    fn integer<T: TryFrom<i128>>(
        &self,
        key: &str,
        wanted: &'static str,
    ) -> Result<Option<T>, SourceError> {
        let integer = self.number(key, "an integer", Scalar::integer)?;
        integer.map(|integer| fit(key, integer, wanted)).transpose()
    }

    /// The one number that a key states, by itself or as an array that has it for every layer.
    fn number<T>(
        &self,
        key: &str,
        wanted: &'static str,
        read: impl Fn(Scalar) -> Option<T>,
    ) -> Result<Option<T>, SourceError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let scalar = match value {
            Value::Array(array) => {
                let mut scalars = array.scalars().into_iter().flatten();
                let first = scalars.next();
                if first.is_some_and(|first| scalars.any(|other| other != first)) {
                    return Err(SourceError::MixedValues {
                        key: key.to_owned(),
                    });
                }
                first
            }
            value => value.scalar(),
        };
        match scalar.and_then(read) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(key, wanted, value.value_type())),
        }
    }

    fn numbers<T>(
        &self,
        key: &str,
        wanted: &'static str,
        read: impl Fn(Scalar) -> Result<T, SourceError>,
    ) -> Result<Option<Vec<T>>, SourceError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let scalars = match value {
            Value::Array(array) => array.scalars(),
            _ => None,
        };
        match scalars {
            Some(scalars) => scalars.map(read).collect::<Result<_, _>>().map(Some),
            None => Err(wrong(key, wanted, value.value_type())),
        }
    }

    /// Reads `count` entries; a count the rest of the file cannot hold is refused before anything is read.
    pub(crate) fn parse(reader: &mut Reader<'_>, count: u64) -> Result<Metadata, GgufError> {
        let room = reader.left() as u64 / ENTRY_BYTES_MIN;
        if count > room {
            return Err(GgufError::TooMany {
                what: "metadata keys",
                count,
                room,
            });
        }
        let mut entries = BTreeMap::new();
        for index in 0..count {
            let key = reader.name(KEY_BYTES_MAX, || format!("metadata key {index}"))?;
            let id = reader.u32(|| format!("the type of key {key}"))?;
            let value = parse_value(reader, key, value_type(key, id)?)?;
            if entries.insert(key.to_owned(), value).is_some() {
                return Err(GgufError::DuplicateKey {
                    key: key.to_owned(),
                });
            }
        }
        Ok(Metadata { entries })
    }
}

fn parse_value(reader: &mut Reader<'_>, key: &str, ty: ValueType) -> Result<Value, GgufError> {
    let what = || format!("the value of key {key}");
    Ok(match ty {
        ValueType::U8 => Value::U8(u8::from_le_bytes(reader.array(what)?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(reader.array(what)?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(reader.array(what)?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(reader.array(what)?)),
        ValueType::U32 => Value::U32(u32::from_le_bytes(reader.array(what)?)),
        ValueType::I32 => Value::I32(i32::from_le_bytes(reader.array(what)?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(reader.array(what)?)),
        ValueType::Bool => Value::Bool(parse_bool(reader.array(what)?)),
        ValueType::String => Value::String(reader.string(what)?.to_owned()),
        ValueType::Array => Value::Array(parse_array(reader, key, 1)?),
        ValueType::U64 => Value::U64(u64::from_le_bytes(reader.array(what)?)),
        ValueType::I64 => Value::I64(i64::from_le_bytes(reader.array(what)?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(reader.array(what)?)),
    })
}

fn parse_array(reader: &mut Reader<'_>, key: &str, depth: u32) -> Result<Array, GgufError> {
    if depth > ARRAY_DEPTH_MAX {
        return Err(GgufError::ArrayTooDeep {
            key: key.to_owned(),
            depth_max: ARRAY_DEPTH_MAX,
        });
    }
    let id = reader.u32(|| format!("the element type of key {key}"))?;
    let ty = value_type(key, id)?;
    let count = reader.u64(|| format!("the length of key {key}"))?;
    // Every element takes at least these many bytes of file, so `count` is true once it passes, and
    // what is allocated for it is at most a small multiple of the file.
    let room = reader.left() as u64 / ty.bytes_min();
    if count > room {
        return Err(GgufError::ArrayTooLong {
            key: key.to_owned(),
            count,
            room,
        });
    }
    let what = || format!("the elements of key {key}");
    Ok(match ty {
        ValueType::U8 => Array::U8(numbers(reader, count, u8::from_le_bytes, what)?),
        ValueType::I8 => Array::I8(numbers(reader, count, i8::from_le_bytes, what)?),
        ValueType::U16 => Array::U16(numbers(reader, count, u16::from_le_bytes, what)?),
        ValueType::I16 => Array::I16(numbers(reader, count, i16::from_le_bytes, what)?),
        ValueType::U32 => Array::U32(numbers(reader, count, u32::from_le_bytes, what)?),
        ValueType::I32 => Array::I32(numbers(reader, count, i32::from_le_bytes, what)?),
        ValueType::F32 => Array::F32(numbers(reader, count, f32::from_le_bytes, what)?),
        ValueType::U64 => Array::U64(numbers(reader, count, u64::from_le_bytes, what)?),
        ValueType::I64 => Array::I64(numbers(reader, count, i64::from_le_bytes, what)?),
        ValueType::F64 => Array::F64(numbers(reader, count, f64::from_le_bytes, what)?),
        ValueType::Bool => Array::Bool(
            (0..count)
                .map(|_| reader.array(what).map(parse_bool))
                .collect::<Result<_, _>>()?,
        ),
        ValueType::String => Array::String(
            (0..count)
                .map(|index| {
                    let what = || format!("element {index} of key {key}");
                    reader.string(what).map(str::to_owned)
                })
                .collect::<Result<_, _>>()?,
        ),
        ValueType::Array => Array::Array(
            (0..count)
                .map(|_| parse_array(reader, key, depth + 1))
                .collect::<Result<_, _>>()?,
        ),
    })
}

fn numbers<T, const N: usize>(
    reader: &mut Reader<'_>,
    count: u64,
    from: fn([u8; N]) -> T,
    what: impl FnOnce() -> String,
) -> Result<Vec<T>, GgufError> {
    // `count` was held against the bytes left, so the product cannot overflow.
    let bytes = reader.take(count * N as u64, what)?;
    let (chunks, _) = bytes.as_chunks::<N>();
    Ok(chunks.iter().map(|chunk| from(*chunk)).collect())
}

/// Whatever is not 0 is true, as llama.cpp has it.
fn parse_bool([byte]: [u8; 1]) -> bool {
    byte != 0
}

fn value_type(key: &str, id: u32) -> Result<ValueType, GgufError> {
    ValueType::from_id(id).ok_or_else(|| GgufError::UnknownValueType {
        key: key.to_owned(),
        id,
    })
}

fn fit<T: TryFrom<i128>>(key: &str, value: i128, wanted: &'static str) -> Result<T, SourceError> {
    T::try_from(value).map_err(|_| out_of_range(key, value, wanted))
}

fn out_of_range(key: &str, value: i128, wanted: &'static str) -> SourceError {
    SourceError::ValueOutOfRange {
        key: key.to_owned(),
        value,
        wanted,
    }
}

fn wrong(key: &str, wanted: &'static str, found: ValueType) -> SourceError {
    SourceError::WrongValueType {
        key: key.to_owned(),
        wanted,
        found,
    }
}

fn missing(key: &str) -> SourceError {
    SourceError::MissingKey {
        key: key.to_owned(),
    }
}

impl Value {
    /// The stored type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    fn scalar(&self) -> Option<Scalar> {
        Some(match self {
            Value::U8(value) => Scalar::of(*value),
            Value::I8(value) => Scalar::of(*value),
            Value::U16(value) => Scalar::of(*value),
            Value::I16(value) => Scalar::of(*value),
            Value::U32(value) => Scalar::of(*value),
            Value::I32(value) => Scalar::of(*value),
            Value::U64(value) => Scalar::of(*value),
            Value::I64(value) => Scalar::of(*value),
            Value::Bool(value) => Scalar::of(*value),
            Value::F32(value) => Scalar::Float((*value).into()),
            Value::F64(value) => Scalar::Float(*value),
            Value::String(_) | Value::Array(_) => return None,
        })
    }
}

/// A number, whichever type it is stored in. Writers do not agree on types, and none of them changes what is meant.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scalar {
    Integer(i128),
    Float(f64),
}

impl Scalar {
    fn of(value: impl Into<i128>) -> Scalar {
        Scalar::Integer(value.into())
    }

    /// The integer that it is.
    fn integer(self) -> Option<i128> {
        match self {
            Scalar::Integer(integer) => Some(integer),
            // Beyond 2^64 there is nothing to count; what is cast is exact.
            Scalar::Float(float) => {
                let is_integer = float.fract() == 0.0 && float.abs() < u64::MAX as f64;
                is_integer.then_some(float as i128)
            }
        }
    }

    fn float(self) -> f64 {
        match self {
            Scalar::Integer(integer) => integer as f64,
            Scalar::Float(float) => float,
        }
    }
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(values) => values.len(),
            Array::I8(values) => values.len(),
            Array::U16(values) => values.len(),
            Array::I16(values) => values.len(),
            Array::U32(values) => values.len(),
            Array::I32(values) => values.len(),
            Array::F32(values) => values.len(),
            Array::Bool(values) => values.len(),
            Array::String(values) => values.len(),
            Array::Array(values) => values.len(),
            Array::U64(values) => values.len(),
            Array::I64(values) => values.len(),
            Array::F64(values) => values.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn scalars(&self) -> Option<Box<dyn Iterator<Item = Scalar> + '_>> {
        Some(match self {
            Array::U8(values) => Box::new(values.iter().map(|value| Scalar::of(*value))),
            Array::I8(values) => Box::new(values.iter().map(|value| Scalar::of(*value))),
            Array::U16(values) => Box::new(values.iter().map(|value| Scalar::of(*value))),
            Array::I16(values) => Box::new(values.iter().map(|value| Scalar::of(*value))),
            Array::U32(values) => Box::new(values.iter().map(|value| Scalar::of(*value))),
            Array::I32(values) => Box::new(values.iter().map(|value| Scalar::of(*value))),
            Array::U64(values) => Box::new(values.iter().map(|value| Scalar::of(*value))),
            Array::I64(values) => Box::new(values.iter().map(|value| Scalar::of(*value))),
            Array::Bool(values) => Box::new(values.iter().map(|value| Scalar::of(*value))),
            Array::F32(values) => {
                Box::new(values.iter().map(|value| Scalar::Float((*value).into())))
            }
            Array::F64(values) => Box::new(values.iter().map(|value| Scalar::Float(*value))),
            Array::String(_) | Array::Array(_) => return None,
        })
    }
}

impl ValueType {
    fn from_id(id: u32) -> Option<ValueType> {
        Some(match id {
            0 => ValueType::U8,
            1 => ValueType::I8,
            2 => ValueType::U16,
            3 => ValueType::I16,
            4 => ValueType::U32,
            5 => ValueType::I32,
            6 => ValueType::F32,
            7 => ValueType::Bool,
            8 => ValueType::String,
            9 => ValueType::Array,
            10 => ValueType::U64,
            11 => ValueType::I64,
            12 => ValueType::F64,
            _ => return None,
        })
    }

    /// Fewest bytes that one value takes in a file.
    fn bytes_min(self) -> u64 {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 | ValueType::String => 8,
            ValueType::Array => 12,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ValueType::U8 => "a u8",
            ValueType::I8 => "an i8",
            ValueType::U16 => "a u16",
            ValueType::I16 => "an i16",
            ValueType::U32 => "a u32",
            ValueType::I32 => "an i32",
            ValueType::F32 => "an f32",
            ValueType::Bool => "a boolean",
            ValueType::String => "a string",
            ValueType::Array => "an array",
            ValueType::U64 => "a u64",
            ValueType::I64 => "an i64",
            ValueType::F64 => "an f64",
        })
    }
}

/// One line for people: long strings are cut, arrays show their length only.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHARS_MAX: usize = 80;
        match self {
            Value::U8(value) => value.fmt(f),
            Value::I8(value) => value.fmt(f),
            Value::U16(value) => value.fmt(f),
            Value::I16(value) => value.fmt(f),
            Value::U32(value) => value.fmt(f),
            Value::I32(value) => value.fmt(f),
            Value::F32(value) => value.fmt(f),
            Value::Bool(value) => value.fmt(f),
            Value::U64(value) => value.fmt(f),
            Value::I64(value) => value.fmt(f),
            Value::F64(value) => value.fmt(f),
            Value::Array(array) => write!(f, "[{} elements]", array.len()),
            Value::String(text) => {
                let shown: String = text.chars().take(CHARS_MAX).collect();
                let cut = if shown.len() < text.len() { "…" } else { "" };
                write!(f, "{shown:?}{cut}")
            }
        }
    }
}
