//! The owner thread of a model that gives embeddings: texts of all tenants wait in lines of their own, and each pass takes
//! from the line of the least served.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use realm_kernels::Cpu;
use realm_text::{Specials, TextModel};
use realm_weights::ModelSource;
use tokio::sync::oneshot;

use crate::client::Owner;
use crate::error::{EngineError, OVERLOADED};
use crate::model::{Encoder, LoadError, ModelOptions, PASS_TOKENS_MAX, load_encoder};
use crate::scheduler::Shares;

/// Texts of one call at most.
pub const EMBED_TEXTS_MAX: usize = 2048;
/// Texts of one tenant that may wait at most.
const WAITING_MAX: usize = 4 * EMBED_TEXTS_MAX;

/// A running embedding model. Dropping it ends it; who still waits is told.
pub struct Embedder {
    client: EmbedderClient,
    thread: Option<JoinHandle<()>>,
}

/// The way to it; clones share it.
#[derive(Clone)]
pub struct EmbedderClient(Arc<EmbedderShared>);

struct EmbedderShared {
    text: Arc<TextModel>,
    context: usize,
    dimensions: usize,
    lines: Mutex<Lines>,
    work: Condvar,
}

#[derive(Default)]
struct Lines {
    shares: Shares,
    waiting: BTreeMap<u32, VecDeque<Waiting>>, // by tenant, none of them empty
    stopped: bool,
}

/// A text and who wants its vector.
struct Waiting {
    tokens: Vec<u32>,
    reply: oneshot::Sender<Vec<f32>>,
}

impl Embedder {
    /// Reads the model and starts its thread. It computes on `cpu`, whose threads it shares with whoever else has it.
    ///
    /// # Errors
    /// [`LoadError`], naming the key or tensor.
    pub fn load(
        cpu: Cpu,
        source: &dyn ModelSource,
        options: &ModelOptions,
    ) -> Result<Embedder, LoadError> {
        let (encoder, text) = load_encoder(cpu, source, options)?;
        let shared = Arc::new(EmbedderShared {
            text,
            context: encoder.shape().context as usize,
            dimensions: encoder.shape().hidden,
            lines: Mutex::default(),
            work: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("embedder".to_owned())
            .spawn(move || own.serve(encoder))
            .map_err(LoadError::Thread)?;
        Ok(Embedder {
            client: EmbedderClient(shared),
            thread: Some(thread),
        })
    }

    /// The way to it.
    pub fn client(&self) -> EmbedderClient {
        self.client.clone()
    }
}

impl Drop for Embedder {
    fn drop(&mut self) {
        self.client.0.stop();
        if let Some(thread) = self.thread.take() {
            // Its panics were caught and said.
            let _ = thread.join();
        }
    }
}

impl EmbedderClient {
    /// Tokens of one text at most, those in front and at the end included.
    pub fn context(&self) -> usize {
        self.0.context
    }

    /// Width of a vector.
    pub fn dimensions(&self) -> usize {
        self.0.dimensions
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> u32 {
        self.0.text.vocab_size()
    }

    /// The tokens of a text as the model was trained to read it. Names of control tokens in it are text.
    ///
    /// # Errors
    /// `Invalid` for a text that the model's context does not hold, as soon as that is known.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let encoded = (self.0.text).encode(text, Specials::Literal, true, self.context());
        encoded.map_err(|error| EngineError::Invalid(error.to_string()))
    }

    /// Whether the model is gone.
    pub fn is_stopped(&self) -> bool {
        self.0.lock().stopped
    }

    /// A vector of length 1 for each text, in their order. Dropping the future gives up what has not begun.
    ///
    /// # Errors
    /// `Invalid` for no texts or too many, an empty text, one that is too long, or an id outside the vocabulary; `Overloaded` when too
    /// many texts of the tenant wait; `Stopped`.
    pub async fn embed(
        &self,
        owner: Owner,
        texts: Vec<Vec<u32>>,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        self.check(&texts)?;
        let mut replies = Vec::with_capacity(texts.len());
        {
            let mut lines = self.0.lock();
            if lines.stopped {
                return Err(EngineError::Stopped);
            }
            let line = lines.waiting.get(&owner.tenant).map_or(0, VecDeque::len);
            if line + texts.len() > WAITING_MAX {
                return Err(OVERLOADED);
            }
            lines.shares.know(&owner);
            for tokens in texts {
                let (reply, ready) = oneshot::channel();
                lines.push(owner.tenant, Waiting { tokens, reply });
                replies.push(ready);
            }
        }
        self.0.work.notify_one();
        let mut vectors = Vec::with_capacity(replies.len());
        for reply in replies {
            vectors.push(reply.await.map_err(|_| EngineError::Stopped)?);
        }
        Ok(vectors)
    }

    fn check(&self, texts: &[Vec<u32>]) -> Result<(), EngineError> {
        let (count, vocab, context) = (texts.len(), self.vocab_size(), self.context());
        let wrong = |text: String| Err(EngineError::Invalid(text));
        if !(1..=EMBED_TEXTS_MAX).contains(&count) {
            return wrong(format!(
                "{count} texts cannot be embedded at once: it takes 1 to {EMBED_TEXTS_MAX}"
            ));
        }
        for (index, text) in texts.iter().enumerate() {
            let length = text.len();
            if !(1..=context).contains(&length) {
                return wrong(format!(
                    "text {index} has {length} tokens, but the model reads 1 to {context}"
                ));
            }
            if let Some(token) = text.iter().find(|token| **token >= vocab) {
                return wrong(format!(
                    "token {token} of text {index} is not in the vocabulary of {vocab} tokens"
                ));
            }
        }
        Ok(())
    }
}

impl EmbedderShared {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        let mut lines = self.lock();
        lines.stopped = true;
        lines.waiting.clear();
        self.work.notify_all();
    }

    /// The thread's life.
    fn serve(&self, mut encoder: Encoder) {
        let pass = catch_unwind(AssertUnwindSafe(|| {
            while let Some(pass) = self.next_pass() {
                let (texts, replies): (Vec<_>, Vec<_>) =
                    pass.into_iter().map(|one| (one.tokens, one.reply)).unzip();
                for (reply, vector) in replies.into_iter().zip(encoder.embed(&texts)) {
                    // Who hung up meanwhile does not want it.
                    let _ = reply.send(vector);
                }
            }
        }));
        if pass.is_err() {
            tracing::error!("the embedding model has stopped after a panic");
        }
        self.stop();
    }

    /// Waits for texts and takes what one pass computes; `None` when the model is stopped.
    fn next_pass(&self) -> Option<Vec<Waiting>> {
        let mut lines = self.lock();
        loop {
            if lines.stopped {
                return None;
            }
            let pass = lines.take_pass();
            if !pass.is_empty() {
                return Some(pass);
            }
            lines = self
                .work
                .wait(lines)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Lines {
    fn push(&mut self, tenant: u32, text: Waiting) {
        let line = self.waiting.entry(tenant).or_default();
        if line.is_empty() {
            self.shares.activate(tenant);
        }
        line.push_back(text);
    }

    /// The next text of the least served tenant that fits into `room` tokens, if it is still wanted.
    fn pop(&mut self, room: usize) -> Option<Waiting> {
        loop {
            let least = self.waiting.keys().copied();
            let tenant = least.min_by_key(|tenant| self.shares.served(*tenant))?;
            let line = self.waiting.get_mut(&tenant)?;
            if line.front()?.tokens.len() > room {
                return None;
            }
            let text = line.pop_front()?;
            if line.is_empty() {
                self.waiting.remove(&tenant);
                self.shares.deactivate(tenant);
            }
            if !text.reply.is_closed() {
                self.shares.charge(tenant, text.tokens.len() as u32);
                return Some(text);
            }
        }
    }

    /// Texts that together have as many tokens as a pass takes; one alone may have more.
    fn take_pass(&mut self) -> Vec<Waiting> {
        let mut pass: Vec<Waiting> = self.pop(usize::MAX).into_iter().collect();
        let tokens = |pass: &[Waiting]| pass.iter().map(|one| one.tokens.len()).sum::<usize>();
        while let Some(room) = PASS_TOKENS_MAX.checked_sub(tokens(&pass))
            && let Some(text) = self.pop(room)
        {
            pass.push(text);
        }
        pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(texts: &[(u32, usize)]) -> (Lines, Vec<oneshot::Receiver<Vec<f32>>>) {
        let mut lines = Lines::default();
        let mut replies = Vec::new();
        for &(tenant, tokens) in texts {
            let (reply, ready) = oneshot::channel();
            lines.shares.know(&Owner {
                tenant,
                weight: 1,
                kv_blocks_max: 0,
            });
            let tokens = vec![tenant; tokens];
            lines.push(tenant, Waiting { tokens, reply });
            replies.push(ready);
        }
        (lines, replies)
    }

    fn pass(lines: &mut Lines) -> Vec<(u32, usize)> {
        let pass = lines.take_pass();
        pass.iter()
            .map(|one| (one.tokens[0], one.tokens.len()))
            .collect()
    }

    #[test]
    fn a_tenant_with_many_texts_does_not_keep_another_waiting() {
        let many = [[(1, 200); 9].as_slice(), &[(2, 200)]].concat();
        let (mut lines, _replies) = lines(&many);
        assert_eq!(pass(&mut lines), [(1, 200), (2, 200)]);
        assert_eq!(pass(&mut lines), [(1, 200), (1, 200)]);
    }

    #[test]
    fn what_nobody_waits_for_is_not_computed() {
        let (mut lines, mut replies) = lines(&[(1, 10), (1, 20), (1, 30)]);
        replies.remove(1);
        assert_eq!(pass(&mut lines), [(1, 10), (1, 30)]);
        assert_eq!(pass(&mut lines), []);
        assert!(lines.waiting.is_empty());
    }

    #[test]
    fn a_text_longer_than_a_pass_goes_alone() {
        let (mut lines, _replies) = lines(&[(1, 600), (1, 5), (1, 5)]);
        assert_eq!(pass(&mut lines), [(1, 600)]);
        assert_eq!(pass(&mut lines), [(1, 5), (1, 5)]);
    }
}
