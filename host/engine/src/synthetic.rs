//! Models without knowledge: the shape of a real one, random weights. They run as fast as the real one, and no download
//! is needed to find out how fast that is.

mod blocks;
mod shapes;

use std::io::{self, Write};

use realm_kernels::quant::BlockType;
use realm_weights::GgufWriter;

use blocks::Blocks;
pub use shapes::{SHAPES, Shape};

/// What the matrices are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quant {
    /// All alike, where their width is whole blocks.
    Pure(BlockType),
    /// Mostly Q4_K, with Q6_K for the output matrix and for the values and `ffn_down` of some layers: llama.cpp's mix of
    /// that name.
    Q4KM,
}

/// What a matrix is for, as far as mixes tell matrices apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Embedding, // and output, where these are one
    Output,
    Value,
    Down,
    Router,
    Other,
}

impl Quant {
    /// By name: a block type, or `q4_k_m`.
    pub fn from_name(name: &str) -> Option<Quant> {
        if name.eq_ignore_ascii_case("q4_k_m") {
            return Some(Quant::Q4KM);
        }
        let named = |ty: &&BlockType| ty.name().eq_ignore_ascii_case(name);
        BlockType::RUNNABLE
            .iter()
            .find(named)
            .map(|ty| Quant::Pure(*ty))
    }

    /// All names.
    pub fn names() -> Vec<String> {
        let types = BlockType::RUNNABLE.iter();
        types
            .map(|ty| ty.name().to_lowercase())
            .chain(["q4_k_m".to_owned()])
            .collect()
    }

    fn ty(self, shape: &Shape, role: Role, layer: usize, cols: usize) -> BlockType {
        let layers = shape.layers as usize;
        let more_bits =
            layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
        let ty = match (self, role) {
            (_, Role::Router) => BlockType::F32, // in every file there is
            (Quant::Pure(ty), _) => ty,
            (Quant::Q4KM, Role::Output) => BlockType::Q6_K,
            (Quant::Q4KM, Role::Embedding) if shape.is_tied => BlockType::Q6_K,
            (Quant::Q4KM, Role::Value | Role::Down) if more_bits => BlockType::Q6_K,
            (Quant::Q4KM, _) => BlockType::Q4_K,
        };
        match (cols.is_multiple_of(ty.block_len()), ty) {
            (true, ty) => ty,
            // What llama.cpp takes for rows that are no whole blocks of 256.
            (false, BlockType::Q4_K) => BlockType::Q5_0,
            (false, _) => BlockType::Q8_0,
        }
    }
}

/// Writes a model; the same seed gives the same file.
///
/// # Errors
/// Those of `out`.
pub fn write(shape: &Shape, quant: Quant, seed: u64, out: impl Write) -> io::Result<()> {
    let mut file = GgufWriter::default();
    shapes::keys(shape, &mut file);
    vocabulary(shape, &mut file);
    shape.tensors(|name, sizes, role, layer| {
        let ty = match sizes {
            [_] => BlockType::F32,
            [cols, ..] => quant.ty(shape, role, layer, *cols),
            [] => unreachable!("a tensor has a length"),
        };
        file.tensor(name, ty, sizes);
    });
    let mut blocks = Blocks::new(seed);
    file.write(out, |name, ty, bytes, out| {
        // Norms of 1, and no biases or factors to speak of.
        if ty == BlockType::F32 && shapes::is_vector(name) {
            return out.write_all(&1f32.to_le_bytes().repeat(bytes / 4));
        }
        blocks.write(ty, bytes, out)
    })
}

/// A vocabulary of the SentencePiece kind that covers every text: bytes, then made-up words in the order of the alphabet.
fn vocabulary(shape: &Shape, file: &mut GgufWriter) {
    const UNKNOWN: i32 = 2;
    const CONTROL: i32 = 3;
    const BYTE: i32 = 6;
    const NORMAL: i32 = 1;
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    let mut types = vec![UNKNOWN, CONTROL, CONTROL];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    types.resize(tokens.len(), BYTE);
    tokens.extend((0..shape.vocab as usize - tokens.len()).map(word));
    types.resize(tokens.len(), NORMAL);
    let specials = types.iter().take_while(|ty| **ty != NORMAL).count();
    let scores: Vec<f32> = (0..tokens.len())
        .map(|id| -(id.saturating_sub(specials) as f32))
        .collect();
    file.str("tokenizer.ggml.model", "llama");
    file.str("tokenizer.ggml.pre", "default");
    file.strings("tokenizer.ggml.tokens", &tokens);
    file.f32s("tokenizer.ggml.scores", &scores);
    file.i32s("tokenizer.ggml.token_type", &types);
    file.u32("tokenizer.ggml.unknown_token_id", 0);
    file.u32("tokenizer.ggml.bos_token_id", 1);
    file.u32("tokenizer.ggml.eos_token_id", 2);
}

/// Word `index`: with and without a space before it, one letter, two letters and so on.
fn word(index: usize) -> String {
    let (mut rest, space) = (index / 2, index % 2 == 1);
    let mut letters = vec![b'a' + (rest % 26) as u8];
    while rest >= 26 {
        rest = rest / 26 - 1;
        letters.push(b'a' + (rest % 26) as u8);
    }
    letters.reverse();
    let space = if space { "\u{2581}" } else { "" };
    letters.iter().fold(space.to_owned(), |mut word, letter| {
        word.push(char::from(*letter));
        word
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn words_differ() {
        let words: HashSet<String> = (0..300_000).map(word).collect();
        assert_eq!(words.len(), 300_000);
        assert_eq!([word(0), word(1), word(2)], ["a", "\u{2581}a", "b"]);
        assert_eq!([word(52), word(54)], ["aa", "ab"]);
    }
}
