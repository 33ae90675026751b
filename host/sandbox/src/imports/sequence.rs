//! `realm:llm/sequence`: tokens with KV behind them. The handle owns the engine's sequence: dropping it frees blocks.

use crate::bindings::realm::llm::sequence::{Host, HostSequence};
use crate::imports::Failure;
use crate::imports::generation::RunHandle;
use crate::imports::model::ModelHandle;
use crate::state::State;
use crate::tokens::{TokenCharge, token_bytes};
use realm_engine::{Client, Sequence};
use std::sync::Arc;
use wasmtime::component::Resource;

/// A sequence that a component holds, and the engine it lives in.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct SequenceHandle {
    pub(crate) client: Client,
    pub(crate) sequence: Sequence,
    pub(crate) charge: TokenCharge,
    /// The run that was started with it last, by its place in the table.
    pub(crate) run: Option<u32>,
}

impl SequenceHandle {
    fn new(client: Client, sequence: Sequence, charge: TokenCharge) -> SequenceHandle {
        SequenceHandle {
            client,
            sequence,
            charge,
            run: None,
        }
    }
}

impl Host for State {}

impl State {
    /// Adds tokens to a sequence, which pays for them from now on.
    pub(crate) async fn append_tokens(
        &mut self,
        sequence: &Resource<SequenceHandle>,
        tokens: Vec<u32>,
    ) -> Result<u32, Failure> {
        let handle = self.table.get_mut(sequence)?;
        let length = handle.sequence.length().await;
        let count = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let longest = handle.client.facts().context_length.max(length);
        let wanted = length.saturating_add(count).min(longest);
        handle.charge.settle(wanted)?;
        let appended = handle.sequence.append(tokens);
        if appended.is_err() {
            handle.charge.settle(length)?;
        } else if let Some(exchange) = &self.exchange {
            exchange.accepted();
        }
        Ok(appended.map_err(|error| self.engine_error(error))?)
    }
}

impl HostSequence for State {
    async fn create(
        &mut self,
        model: Resource<ModelHandle>,
    ) -> Result<Resource<SequenceHandle>, Failure> {
        let charge = TokenCharge::new(&self.memory)?;
        let client = self.table.get(&model)?.client.clone();
        let sequence = client
            .sequence(self.tenant.owner(), &self.account)
            .map_err(|error| self.engine_error(error))?;
        let handle = SequenceHandle::new(client, sequence, charge);
        Ok(self.table.push(handle)?)
    }

    async fn append(
        &mut self,
        sequence: Resource<SequenceHandle>,
        tokens: Vec<u32>,
    ) -> Result<u32, Failure> {
        self.append_tokens(&sequence, tokens).await
    }

    async fn fork(
        &mut self,
        sequence: Resource<SequenceHandle>,
    ) -> Result<Resource<SequenceHandle>, Failure> {
        let parent = self.table.get(&sequence)?;
        let client = parent.client.clone();
        let fork = parent
            .sequence
            .fork()
            .await
            .map_err(|error| self.engine_error(error))?;
        let length = fork.length().await;
        let memory = Arc::clone(&self.memory);
        let parent = self.table.get_mut(&sequence)?;
        let charge = parent.charge.fork(&memory, length)?;
        let handle = SequenceHandle::new(client, fork, charge);
        Ok(self.table.push(handle)?)
    }

    async fn rewind(
        &mut self,
        sequence: Resource<SequenceHandle>,
        length: u32,
    ) -> Result<(), Failure> {
        let handle = self.table.get_mut(&sequence)?;
        let rewound = handle.sequence.rewind(length).await;
        if rewound.is_ok() {
            handle.charge.settle(length)?;
        }
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
        let length = self.table.get(&sequence)?.sequence.length().await;
        if start > end || end > length {
            return Err(Failure::invalid(format!(
                "the positions {start}..{end} are not within the sequence, which has {length} tokens"
            )));
        }
        self.handed_over.resize(token_bytes(end - start))?;
        let tokens = self.table.get(&sequence)?.sequence.tokens(start, end);
        let tokens = tokens.await;
        Ok(tokens.map_err(|error| self.engine_error(error))?)
    }

    async fn drop(&mut self, sequence: Resource<SequenceHandle>) -> wasmtime::Result<()> {
        let handle = self.table.delete(sequence)?;
        // The engine keeps it for as long as a run decodes it, so it is paid for as long.
        if let Some(run) = handle.run
            && let Ok(run) = self.table.get_mut(&Resource::<RunHandle>::new_borrow(run))
        {
            run.outlived.push(handle.charge);
        }
        Ok(())
    }
}
