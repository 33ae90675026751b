//! Writes small GGUF files, right or wrong on purpose.

#![allow(
    dead_code,
    reason = "each test binary uses its own part of this module"
)]

pub(crate) const U8: u32 = 0;
pub(crate) const U32: u32 = 4;
pub(crate) const F32: u32 = 6;
pub(crate) const BOOL: u32 = 7;
pub(crate) const STRING: u32 = 8;
pub(crate) const ARRAY: u32 = 9;
pub(crate) const U64: u32 = 10;

pub(crate) const GGML_F32: u32 = 0;
pub(crate) const GGML_Q4_0: u32 = 2;
pub(crate) const GGML_Q8_K: u32 = 15;

/// A file in parts; every part can be made wrong.
#[derive(Clone)]
pub(crate) struct File {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) key_count: Option<u64>,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) keys: Vec<(Vec<u8>, u32, Vec<u8>)>,
    pub(crate) tensors: Vec<TensorEntry>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

#[derive(Clone)]
pub(crate) struct TensorEntry {
    pub(crate) name: Vec<u8>,
    pub(crate) shape: Vec<u64>,
    pub(crate) ty: u32,
    pub(crate) offset: u64,
}

/// A valid file: a few keys of every kind, an f32 vector and a Q4_0 matrix.
pub(crate) fn good() -> File {
    let words = [string("a"), string(""), string("é")].concat();
    let inner = [array(U8, 2, &[1, 2]), array(U8, 1, &[3])].concat();
    File {
        magic: *b"GGUF",
        version: 3,
        key_count: None,
        tensor_count: None,
        keys: vec![
            key("general.architecture", STRING, &string("llama")),
            key("general.alignment", U32, &32u32.to_le_bytes()),
            key("llama.block_count", U64, &2u64.to_le_bytes()),
            key("llama.eps", F32, &1e-5f32.to_le_bytes()),
            key("tokenizer.ggml.add_bos_token", BOOL, &[1]),
            key("tokenizer.ggml.tokens", ARRAY, &array(STRING, 3, &words)),
            key("nested", ARRAY, &array(ARRAY, 2, &inner)),
        ],
        tensors: vec![
            tensor("norm.weight", &[4], GGML_F32, 0),
            tensor("output.weight", &[32, 2], GGML_Q4_0, 32),
        ],
        alignment: 32,
        data: (0..68).collect(),
    }
}

impl File {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        let tensors = self.tensor_count.unwrap_or(self.tensors.len() as u64);
        bytes.extend(tensors.to_le_bytes());
        let keys = self.key_count.unwrap_or(self.keys.len() as u64);
        bytes.extend(keys.to_le_bytes());
        for (key, ty, value) in &self.keys {
            bytes.extend((key.len() as u64).to_le_bytes());
            bytes.extend(key);
            bytes.extend(ty.to_le_bytes());
            bytes.extend(value);
        }
        for tensor in &self.tensors {
            bytes.extend((tensor.name.len() as u64).to_le_bytes());
            bytes.extend(&tensor.name);
            bytes.extend((tensor.shape.len() as u32).to_le_bytes());
            for length in &tensor.shape {
                bytes.extend(length.to_le_bytes());
            }
            bytes.extend(tensor.ty.to_le_bytes());
            bytes.extend(tensor.offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(&self.data);
        bytes
    }

    pub(crate) fn with_key(mut self, name: &str, ty: u32, value: &[u8]) -> File {
        self.keys.retain(|(known, _, _)| known != name.as_bytes());
        self.keys.push(key(name, ty, value));
        self
    }
}

pub(crate) fn key(name: &str, ty: u32, value: &[u8]) -> (Vec<u8>, u32, Vec<u8>) {
    (name.as_bytes().to_vec(), ty, value.to_vec())
}

pub(crate) fn tensor(name: &str, shape: &[u64], ty: u32, offset: u64) -> TensorEntry {
    TensorEntry {
        name: name.as_bytes().to_vec(),
        shape: shape.to_vec(),
        ty,
        offset,
    }
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

pub(crate) fn array(ty: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}
