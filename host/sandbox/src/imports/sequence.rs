//! `realm:llm/sequence`: tokens with KV behind them. The handle owns the engine's sequence: dropping it frees blocks.

use crate::bindings::realm::llm::sequence::{Host, HostSequence};
use crate::imports::Failure;
use crate::imports::model::ModelHandle;
use crate::state::State;
use realm_engine::{Client, Sequence};
use wasmtime::component::Resource;

/// A sequence that a component holds, and the engine it lives in.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct SequenceHandle {
    pub(crate) client: Client,
    pub(crate) sequence: Sequence,
}

impl Host for State {}

impl HostSequence for State {
    async fn create(
        &mut self,
        model: Resource<ModelHandle>,
    ) -> Result<Resource<SequenceHandle>, Failure> {
        let client = self.table.get(&model)?.client.clone();
        let sequence = client
            .sequence(self.tenant.owner(), &self.account)
            .map_err(|error| self.engine_error(error))?;
        Ok(self.table.push(SequenceHandle { client, sequence })?)
    }

    async fn append(
        &mut self,
        sequence: Resource<SequenceHandle>,
        tokens: Vec<u32>,
    ) -> Result<u32, Failure> {
        let count = tokens.len();
        let length = self
            .table
            .get(&sequence)?
            .sequence
            .append(tokens)
            .map_err(|error| self.engine_error(error))?;
        self.usage.prompt(count);
        Ok(length)
    }

    async fn fork(
        &mut self,
        sequence: Resource<SequenceHandle>,
    ) -> Result<Resource<SequenceHandle>, Failure> {
        let parent = self.table.get(&sequence)?;
        let client = parent.client.clone();
        let sequence = parent
            .sequence
            .fork()
            .await
            .map_err(|error| self.engine_error(error))?;
        Ok(self.table.push(SequenceHandle { client, sequence })?)
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
