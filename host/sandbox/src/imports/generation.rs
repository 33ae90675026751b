//! `realm:llm/generation`: policies are plain data here, runs are the engine's.

use crate::bindings::realm::llm::generation::{Event, Finish, Host, HostPolicy, HostRun};
use crate::bindings::realm::llm::types::{Alternative, TokenLogprob, Usage};
use crate::imports::Failure;
use crate::imports::sequence::SequenceHandle;
use crate::memory::{HANDLE_BYTES, Held};
use crate::state::State;
use realm_engine as engine;
use std::time::Duration;
use wasmtime::component::Resource;

/// A policy under construction. The engine checks it when a run starts.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct PolicyHandle {
    pub(crate) policy: engine::Policy,
    held: Held,
}

/// A run that a component reads.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct RunHandle {
    pub(crate) run: engine::Run,
    /// The handle, its jobs, and all they may say before they wait to be read.
    _held: Held,
}

/// Entries of one policy's lists. The engine has its own limits; this one bounds the handle before it gets there.
const POLICY_ENTRIES_MAX: usize = 4096;
/// A token that was not read yet, with its text.
const UNREAD_TOKEN_BYTES: usize = 32;
/// What matches a byte of a stop string.
const STOP_STATE_BYTES: usize = 64;

impl Host for State {}

impl State {
    fn policy(&mut self, policy: &Resource<PolicyHandle>) -> wasmtime::Result<&mut engine::Policy> {
        Ok(&mut self.table.get_mut(policy)?.policy)
    }

    /// Keeps a policy for the component.
    pub(crate) fn push_policy(
        &mut self,
        policy: engine::Policy,
    ) -> wasmtime::Result<Resource<PolicyHandle>> {
        let held = self.memory.hold(policy_bytes(&policy))?;
        Ok(self.table.push(PolicyHandle { policy, held })?)
    }

    /// Changes what a policy holds, which is charged before it is kept.
    fn set(
        &mut self,
        policy: &Resource<PolicyHandle>,
        change: impl FnOnce(&mut engine::Policy),
    ) -> wasmtime::Result<()> {
        let PolicyHandle { policy, held } = self.table.get_mut(policy)?;
        change(policy);
        Ok(held.resize(policy_bytes(policy))?)
    }
}

/// What a policy takes of the host's memory.
fn policy_bytes(policy: &engine::Policy) -> usize {
    let stops: usize = policy.stop.iter().map(String::capacity).sum();
    HANDLE_BYTES
        + size_of::<engine::Policy>()
        + policy.stop.capacity() * size_of::<String>()
        + stops
        + policy.logit_bias.capacity() * size_of::<(u32, f32)>()
}

/// What a job may take of the host's memory beside its sequence: its policy once more with what follows it, and what it may
/// say before it waits to be read.
fn job_bytes(policy: &engine::Policy) -> usize {
    let token = match policy.logprobs {
        None => UNREAD_TOKEN_BYTES,
        Some(top) => {
            let alternatives = top as usize * size_of::<(u32, f32)>();
            UNREAD_TOKEN_BYTES + size_of::<engine::TokenLogprob>() + alternatives
        }
    };
    // A stop string is matched by an automaton of several states a byte.
    let stops: usize = policy.stop.iter().map(String::len).sum();
    policy_bytes(policy) + stops * STOP_STATE_BYTES + engine::UNREAD_TOKENS_MAX * token
}

impl HostPolicy for State {
    async fn new(&mut self) -> wasmtime::Result<Resource<PolicyHandle>> {
        self.push_policy(engine::Policy::default())
    }

    async fn copy(
        &mut self,
        policy: Resource<PolicyHandle>,
    ) -> wasmtime::Result<Resource<PolicyHandle>> {
        let policy = self.policy(&policy)?.clone();
        self.push_policy(policy)
    }

    async fn max_tokens(&mut self, policy: Resource<PolicyHandle>, n: u32) -> wasmtime::Result<()> {
        self.policy(&policy)?.max_tokens = Some(n);
        Ok(())
    }

    async fn temperature(
        &mut self,
        policy: Resource<PolicyHandle>,
        value: f32,
    ) -> wasmtime::Result<()> {
        self.policy(&policy)?.temperature = value;
        Ok(())
    }

    async fn top_k(&mut self, policy: Resource<PolicyHandle>, k: u32) -> wasmtime::Result<()> {
        self.policy(&policy)?.top_k = k;
        Ok(())
    }

    async fn top_p(&mut self, policy: Resource<PolicyHandle>, p: f32) -> wasmtime::Result<()> {
        self.policy(&policy)?.top_p = p;
        Ok(())
    }

    async fn min_p(&mut self, policy: Resource<PolicyHandle>, p: f32) -> wasmtime::Result<()> {
        self.policy(&policy)?.min_p = p;
        Ok(())
    }

    async fn seed(&mut self, policy: Resource<PolicyHandle>, seed: u64) -> wasmtime::Result<()> {
        self.policy(&policy)?.seed = Some(seed);
        Ok(())
    }

    async fn penalties(
        &mut self,
        policy: Resource<PolicyHandle>,
        repetition: f32,
        presence: f32,
        frequency: f32,
    ) -> wasmtime::Result<()> {
        let policy = self.policy(&policy)?;
        policy.repetition_penalty = repetition;
        policy.presence_penalty = presence;
        policy.frequency_penalty = frequency;
        Ok(())
    }

    async fn bias(
        &mut self,
        policy: Resource<PolicyHandle>,
        mut biases: Vec<(u32, f32)>,
    ) -> wasmtime::Result<()> {
        biases.truncate(POLICY_ENTRIES_MAX + 1);
        self.set(&policy, |policy| policy.logit_bias = biases)
    }

    async fn stop(
        &mut self,
        policy: Resource<PolicyHandle>,
        mut strings: Vec<String>,
    ) -> wasmtime::Result<()> {
        // One too many, or one too long by a byte, is enough for the run to say so.
        strings.truncate(engine::STOPS_MAX + 1);
        strings.shrink_to_fit();
        for string in &mut strings {
            let end = string.floor_char_boundary(engine::STOP_BYTES_MAX + 4);
            string.truncate(end);
            string.shrink_to_fit();
        }
        self.set(&policy, |policy| policy.stop = strings)
    }

    async fn logprobs(&mut self, policy: Resource<PolicyHandle>, top: u32) -> wasmtime::Result<()> {
        let policy = self.policy(&policy)?;
        policy.logprobs = policy.logprobs.max(Some(top));
        Ok(())
    }

    async fn drop(&mut self, policy: Resource<PolicyHandle>) -> wasmtime::Result<()> {
        self.table.delete(policy)?;
        Ok(())
    }
}

impl HostRun for State {
    async fn start(
        &mut self,
        pairs: Vec<(Resource<SequenceHandle>, Resource<PolicyHandle>)>,
    ) -> Result<Resource<RunHandle>, Failure> {
        if pairs.is_empty() || pairs.len() > self.tenant.limits.jobs_max {
            let most = self.tenant.limits.jobs_max;
            return Err(Failure::invalid(format!(
                "a run has 1 to {most} jobs, not {}",
                pairs.len()
            )));
        }
        let client = self.table.get(&pairs[0].0)?.client.clone();
        let held = self.hold_jobs(&pairs)?;
        let mut jobs = Vec::with_capacity(pairs.len());
        for (index, (sequence, policy)) in pairs.iter().enumerate() {
            let handle = self.table.get(sequence)?;
            if handle.client.facts().name != client.facts().name {
                return Err(Failure::invalid(
                    "the sequences of a run belong to one model",
                ));
            }
            let mut policy = self.table.get(policy)?.policy.clone();
            if policy.logit_bias.len() > POLICY_ENTRIES_MAX {
                return Err(Failure::invalid(format!(
                    "bias: more than {POLICY_ENTRIES_MAX} entries"
                )));
            }
            policy
                .validate(client.facts().vocab_size)
                .map_err(Failure::invalid)?;
            // Equal policies of one group still draw differently.
            policy.seed = policy.seed.map(|seed| seed.wrapping_add(index as u64));
            jobs.push(engine::Job {
                sequence: &handle.sequence,
                policy,
            });
        }
        let run = client
            .start(jobs)
            .map_err(|error| self.engine_error(error))?;
        Ok(self.table.push(RunHandle { run, _held: held })?)
    }

    async fn next(
        &mut self,
        run: Resource<RunHandle>,
        max_wait_ms: u32,
    ) -> Result<Option<Vec<Event>>, Failure> {
        let run = &mut self.table.get_mut(&run)?.run;
        // The call's own deadline cuts longer waits off from outside.
        match tokio::time::timeout(Duration::from_millis(max_wait_ms.into()), run.next()).await {
            Err(_) => Ok(Some(Vec::new())),
            Ok(None) => Ok(None),
            Ok(Some(events)) => Ok(Some(
                events.into_iter().map(|event| self.event(event)).collect(),
            )),
        }
    }

    async fn cancel(&mut self, run: Resource<RunHandle>, job: u32) -> wasmtime::Result<()> {
        self.table.get(&run)?.run.cancel(job);
        Ok(())
    }

    async fn usage(&mut self, run: Resource<RunHandle>) -> wasmtime::Result<Usage> {
        Ok(usage(self.table.get(&run)?.run.usage()))
    }

    async fn drop(&mut self, run: Resource<RunHandle>) -> wasmtime::Result<()> {
        self.table.delete(run)?;
        Ok(())
    }
}

impl State {
    /// Charges a run for what it may say, and its sequences for what they may grow by.
    fn hold_jobs(
        &mut self,
        pairs: &[(Resource<SequenceHandle>, Resource<PolicyHandle>)],
    ) -> wasmtime::Result<Held> {
        let mut bytes = HANDLE_BYTES;
        for (sequence, policy) in pairs {
            let policy = &self.table.get(policy)?.policy;
            bytes += job_bytes(policy);
            let max_tokens = policy.max_tokens.unwrap_or(u32::MAX);
            let handle = self.table.get_mut(sequence)?;
            handle.hold_tokens(max_tokens as usize)?;
        }
        Ok(self.memory.hold(bytes)?)
    }

    fn event(&self, event: engine::Event) -> Event {
        Event {
            job: event.job,
            text: event.text,
            tokens: event.tokens,
            logprobs: event.logprobs.into_iter().map(token_logprob).collect(),
            finish: event.finished.map(|finish| match finish {
                engine::Finish::Stopped(reason) => Finish::Stopped(reason.into()),
                engine::Finish::Failed(error) => Finish::Failed(self.engine_error(error).into()),
            }),
        }
    }
}

pub(crate) fn usage(usage: engine::Usage) -> Usage {
    Usage {
        prompt: usage.prompt,
        cached: usage.cached,
        completion: usage.completion,
    }
}

fn token_logprob(logprob: engine::TokenLogprob) -> TokenLogprob {
    let alternative = |(token, logprob)| Alternative { token, logprob };
    TokenLogprob {
        token: logprob.token,
        logprob: logprob.logprob,
        top: logprob.top.into_iter().map(alternative).collect(),
    }
}

/// Back into the engine's words, for events that a component passes on.
pub(crate) fn engine_logprob(logprob: TokenLogprob) -> engine::TokenLogprob {
    engine::TokenLogprob {
        token: logprob.token,
        logprob: logprob.logprob,
        top: logprob
            .top
            .into_iter()
            .map(|one| (one.token, one.logprob))
            .collect(),
    }
}
