//! A model that follows a script: no weights, any number of blocks, exact answers. For tests of this crate and above.
//!
//! Its "keys and values" are the token ids themselves, and the next token is a function of the tokens it reads back
//! through the block table. A wrong table, a missed copy or a block used after it was freed gives a wrong answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use realm_kernels::AttentionRow;
use realm_text::{TextModel, TextSource};

use crate::engine::{Engine, EngineConfig};
use crate::executor::{
    BlockElement, BlockLayout, Executor, ExecutorError, ImportError, ModelFacts, StepBatch,
};

/// Token ids below this are bytes.
const BYTES: u32 = 256;
/// The token that ends a turn, `<|im_end|>`.
pub const END: u32 = 257;
/// Token ids of the model: 256 bytes, `<|im_start|>`, `<|im_end|>`, `<|endoftext|>`.
pub const VOCAB: u32 = 259;
/// Tokens of a block.
pub const BLOCK_TOKENS: u32 = 16;

/// A next token chosen from all tokens so far.
pub type NextToken = Arc<dyn Fn(&[u32]) -> u32 + Send + Sync>;

/// What the model says.
#[derive(Clone)]
pub enum Script {
    /// A lower-case letter that depends on every token before it, for ever.
    Letters,
    /// This text and then the end of the turn: the part of it that the sequence ends with is not said again.
    Reply(String),
    /// Anything.
    Custom(NextToken),
}

/// A scripted engine's shape.
#[derive(Clone)]
pub struct Scripted {
    /// What it says.
    pub script: Script,
    /// Blocks of its cache.
    pub kv_blocks: u32,
    /// Longest sequence.
    pub context_length: u32,
    /// Time each step takes.
    pub step_delay: Duration,
    /// Panics in the forward pass with this number (from 0), to see what becomes of the callers.
    pub panic_at: Option<u64>,
    /// Refuses the forward pass with this number (from 0).
    pub refuse_at: Option<u64>,
}

impl Default for Scripted {
    fn default() -> Scripted {
        Scripted {
            script: Script::Letters,
            kv_blocks: 1024,
            context_length: 4096,
            step_delay: Duration::ZERO,
            panic_at: None,
            refuse_at: None,
        }
    }
}

/// An engine on a scripted model, on a thread of its own.
pub fn engine(scripted: Scripted, config: EngineConfig) -> Engine {
    let facts = facts(&scripted);
    Engine::spawn(executor(scripted), facts, text_model(), config)
}

/// The executor alone.
pub fn executor(scripted: Scripted) -> Box<dyn Executor> {
    Box::new(ScriptedExecutor {
        slots: vec![u32::MAX; (scripted.kv_blocks * BLOCK_TOKENS) as usize],
        steps: 0,
        scripted,
    })
}

/// What is true of the scripted model.
pub fn facts(scripted: &Scripted) -> ModelFacts {
    ModelFacts {
        name: "scripted".to_owned(),
        architecture: "scripted".to_owned(),
        context_length: scripted.context_length,
        vocab_size: VOCAB,
        layers: 1,
        parameters: 0,
        file_bytes: 0,
        kv_blocks: scripted.kv_blocks,
        kv_bytes: 0,
        block_tokens: BLOCK_TOKENS,
        can_rewind: true,
        isa: "script".to_owned(),
    }
}

/// A tokenizer of bytes with three control tokens and no template of its own.
pub fn text_model() -> Arc<TextModel> {
    let mut tokens: Vec<String> = (0..=u8::MAX).map(|byte| byte_char(byte).into()).collect();
    for control in ["<|im_start|>", "<|im_end|>", "<|endoftext|>"] {
        tokens.push(control.to_owned());
    }
    let mut token_types = vec![1; BYTES as usize];
    token_types.extend([3, 3, 3]);
    let source = TextSource {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        scores: Vec::new(),
        tokens,
        token_types,
        merges: Vec::new(),
        bos: None,
        eos: Some(END),
        eot: None,
        sep: None,
        unk: None,
        pad: None,
        add_bos: Some(false),
        add_eos: Some(false),
        add_space_prefix: None,
        chat_template: Some(TEMPLATE.to_owned()),
        chat_template_tools: None,
    };
    Arc::new(TextModel::new(source).expect("bytes are a complete vocabulary"))
}

/// ChatML with a place for tools and their calls. It names tools and leaves out long arguments, so that a chat can have
/// more of both than the context has room for.
const TEMPLATE: &str = "\
{% for tool in tools or [] %}{{ tool.function.name }}
{% endfor %}{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}{% for call in message.tool_calls or [] %}{% if call.function.arguments | length < 9 %}{{ call.function.arguments | tojson }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}";

/// The character that stands for a byte in GPT-2's vocabulary: itself if it can be seen, else one from U+0100 on.
fn byte_char(byte: u8) -> char {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let invisible_before = (0..byte).filter(|&other| !visible(other)).count() as u32;
    char::from_u32(256 + invisible_before).expect("below the surrogates")
}

/// What its blocks are made of: a token id stands for its key and value.
const LAYOUT: BlockLayout = BlockLayout {
    layers: 1,
    kv_heads: 1,
    head_dim: 1,
    block_tokens: BLOCK_TOKENS,
    element: BlockElement::TokenId,
    block_bytes: 4 * BLOCK_TOKENS as u64,
};

struct ScriptedExecutor {
    scripted: Scripted,
    slots: Vec<u32>, // [blocks, BLOCK_TOKENS], token ids
    steps: u64,
}

impl Executor for ScriptedExecutor {
    fn forward(
        &mut self,
        batch: &StepBatch<'_>,
        logits: &mut Vec<f32>,
    ) -> Result<(), ExecutorError> {
        let step = self.steps;
        self.steps += 1;
        assert_ne!(self.scripted.panic_at, Some(step), "the script says so");
        if self.scripted.refuse_at == Some(step) {
            return Err(ExecutorError::NoAdapter { row: 0, adapter: 0 });
        }
        if !self.scripted.step_delay.is_zero() {
            std::thread::sleep(self.scripted.step_delay);
        }
        for (&slot, &token) in batch.slots().iter().zip(batch.tokens()) {
            self.slots[slot as usize] = token;
        }
        assert_written_alone(batch);
        logits.clear();
        for &row in batch.outputs() {
            let AttentionRow { table, position } = batch.attention()[row as usize];
            let blocks = batch.tables()[table as usize];
            let history: Vec<u32> = (0..=position)
                .map(|position| {
                    let block = blocks[(position / BLOCK_TOKENS) as usize];
                    self.slots[(block * BLOCK_TOKENS + position % BLOCK_TOKENS) as usize]
                })
                .collect();
            let next = self.scripted.script.next(&history);
            // The others together are less likely than one in a million.
            let start = logits.len();
            logits.resize(start + VOCAB as usize, 0.0);
            logits[start + next as usize] = 20.0;
        }
        Ok(())
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        let start = (from * BLOCK_TOKENS) as usize;
        let end = start + BLOCK_TOKENS as usize;
        self.slots
            .copy_within(start..end, (to * BLOCK_TOKENS) as usize);
    }

    fn export_blocks(&self, blocks: &[u32], out: &mut Vec<u8>) {
        LAYOUT.begin(blocks.len(), out);
        for &block in blocks {
            let start = (block * BLOCK_TOKENS) as usize;
            for token in &self.slots[start..start + BLOCK_TOKENS as usize] {
                out.extend_from_slice(&token.to_le_bytes());
            }
        }
    }

    fn import_blocks(&mut self, bytes: &[u8], blocks: &[u32]) -> Result<(), ImportError> {
        for (bytes, block) in LAYOUT.blocks(bytes, blocks.len())?.zip(blocks) {
            let (tokens, _) = bytes.as_chunks::<4>();
            let start = (block * BLOCK_TOKENS) as usize;
            for (slot, token) in self.slots[start..].iter_mut().zip(tokens) {
                *slot = u32::from_le_bytes(*token);
            }
        }
        Ok(())
    }
}

/// Holds the engine to its side of [`StepBatch`]: a block that rows write is in no other table.
fn assert_written_alone(batch: &StepBatch<'_>) {
    let mut holders: BTreeMap<u32, u32> = BTreeMap::new();
    for &block in batch.tables().iter().copied().flatten() {
        *holders.entry(block).or_insert(0) += 1;
    }
    for slot in batch.slots() {
        let block = slot / BLOCK_TOKENS;
        assert_eq!(holders[&block], 1, "block {block} is written and shared");
    }
}

impl Script {
    /// What comes after `history`, which is not empty.
    pub fn next(&self, history: &[u32]) -> u32 {
        match self {
            Script::Letters => {
                // FNV-1a over the ids, so that every token before counts.
                let hash = history.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &token| {
                    (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3u64)
                });
                u32::from(b'a') + ((hash >> 32) % 26) as u32
            }
            Script::Reply(text) => {
                let said = |length: usize| {
                    history.len() >= length
                        && history[history.len() - length..]
                            .iter()
                            .zip(text.as_bytes())
                            .all(|(&token, &byte)| token == u32::from(byte))
                };
                let length = (0..=text.len()).rev().find(|&length| said(length));
                match text.as_bytes().get(length.unwrap_or(0)) {
                    Some(&byte) => u32::from(byte),
                    None => END,
                }
            }
            Script::Custom(next) => next(history),
        }
    }
}
