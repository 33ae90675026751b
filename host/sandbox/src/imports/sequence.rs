//! `realm:llm/sequence`: tokens with KV behind them. The handle owns the engine's sequence: dropping it frees blocks.

use crate::bindings::realm::llm::sequence::{Host, HostSequence};
use crate::imports::Failure;
use crate::imports::model::ModelHandle;
use crate::memory::{HANDLE_BYTES, Held, NoMemory};
use crate::state::State;
use realm_engine::{Client, Sequence};
use wasmtime::component::Resource;

/// A sequence that a component holds, and the engine it lives in.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct SequenceHandle {
    pub(crate) client: Client,
    pub(crate) sequence: Sequence,
    /// The handle, and the tokens that it added to what it was forked from.
    pub(crate) held: Held,
}

impl SequenceHandle {
    /// Pays for `count` tokens more, or for as many as a sequence can have.
    pub(crate) fn hold_tokens(&mut self, count: usize) -> Result<(), NoMemory> {
        let bytes = |tokens: usize| tokens.saturating_mul(size_of::<u32>());
        let most = HANDLE_BYTES + bytes(self.client.facts().context_length as usize);
        let wanted = self.held.bytes().saturating_add(bytes(count));
        self.held.resize(wanted.min(most))
    }
}

impl Host for State {}

impl State {
    /// Adds tokens to a sequence, which pays for them from now on.
    pub(crate) fn append_tokens(
        &mut self,
        sequence: &Resource<SequenceHandle>,
        tokens: Vec<u32>,
    ) -> Result<u32, Failure> {
        let handle = self.table.get_mut(sequence)?;
        let before = handle.held.bytes();
        handle.hold_tokens(tokens.len())?;
        let appended = handle.sequence.append(tokens);
        if appended.is_err() {
            handle.held.resize(before)?;
        }
        Ok(appended.map_err(|error| self.engine_error(error))?)
    }
}

impl HostSequence for State {
    async fn create(
        &mut self,
        model: Resource<ModelHandle>,
    ) -> Result<Resource<SequenceHandle>, Failure> {
        let held = self.memory.hold(HANDLE_BYTES)?;
        let client = self.table.get(&model)?.client.clone();
        let sequence = client
            .sequence(self.tenant.owner(), &self.account)
            .map_err(|error| self.engine_error(error))?;
        Ok(self.table.push(SequenceHandle {
            client,
            sequence,
            held,
        })?)
    }

    async fn append(
        &mut self,
        sequence: Resource<SequenceHandle>,
        tokens: Vec<u32>,
    ) -> Result<u32, Failure> {
        self.append_tokens(&sequence, tokens)
    }

    async fn fork(
        &mut self,
        sequence: Resource<SequenceHandle>,
    ) -> Result<Resource<SequenceHandle>, Failure> {
        let held = self.memory.hold(HANDLE_BYTES)?;
        let parent = self.table.get(&sequence)?;
        let client = parent.client.clone();
        let sequence = parent
            .sequence
            .fork()
            .await
            .map_err(|error| self.engine_error(error))?;
        Ok(self.table.push(SequenceHandle {
            client,
            sequence,
            held,
        })?)
    }

    async fn rewind(
        &mut self,
        sequence: Resource<SequenceHandle>,
        length: u32,
    ) -> Result<(), Failure> {
        let rewound = self.table.get(&sequence)?.sequence.rewind(length).await;
        Ok(rewound.map_err(|error| self.engine_error(error))?)
    }

    async fn length(&mut self, sequence: Resource<SequenceHandle>) -> Result<u32, Failure> {
        Ok(self.table.get(&sequence)?.sequence.length().await)
    }

    async fn tokens(
        &mut self,
        sequence: Resource<SequenceHandle>,
        start: u32,
        end: u32,
    ) -> Result<Vec<u32>, Failure> {
        let sequence = &self.table.get(&sequence)?.sequence;
        let length = sequence.length().await;
        if start > end || end > length {
            return Err(Failure::invalid(format!(
                "{start}..{end} does not lie in a sequence of {length} tokens"
            )));
        }
        let tokens = sequence.tokens(start, end).await;
        Ok(tokens.map_err(|error| self.engine_error(error))?)
    }

    async fn drop(&mut self, sequence: Resource<SequenceHandle>) -> wasmtime::Result<()> {
        self.table.delete(sequence)?;
        Ok(())
    }
}
