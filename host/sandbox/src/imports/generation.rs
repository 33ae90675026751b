//! `realm:llm/generation`: policies are plain data here, runs are the engine's.

use crate::bindings::realm::llm::generation::{Event, Finish, Host, HostPolicy, HostRun};
use crate::bindings::realm::llm::types::{Alternative, TokenLogprob, Usage};
use crate::imports::Failure;
use crate::imports::sequence::SequenceHandle;
use crate::memory::{HANDLE_BYTES, Held};
use crate::state::State;
use crate::tokens::{TokenCharge, token_bytes};
use realm_engine as engine;
use std::time::Duration;
use wasmtime::component::Resource;

/// A policy under construction. It is checked when a run starts.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct PolicyHandle {
    policy: engine::Policy,
    /// What is wrong with lists that were too long to be kept.
    refused: Refused,
    held: Held,
}

/// Why lists were not kept, for the run that is to report it.
#[derive(Clone, Default)]
struct Refused {
    stop: Option<String>,
    stop_tokens: Option<String>,
    bias: Option<String>,
}

impl Refused {
    fn first(&self) -> Option<&String> {
        let lists = [&self.stop, &self.stop_tokens, &self.bias];
        lists.into_iter().flatten().next()
    }
}

/// A run that a component reads.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct RunHandle {
    pub(crate) run: engine::Run,
    jobs: Vec<JobCharge>,
    /// Sequences that the component has dropped while the run decoded them.
    pub(crate) outlived: Vec<TokenCharge>,
    /// The handle, its jobs, and all they may say before they wait to be read.
    _held: Held,
}

/// What a job has set aside for the tokens it may make.
struct JobCharge {
    /// Its sequence, by the place in the table.
    sequence: u32,
    reserved: Held,
}

/// Entries of one policy's lists. The engine has its own limits; this one bounds the handle before it gets there.
const POLICY_ENTRIES_MAX: usize = 4096;
/// What matches a byte of a stop string.
const STOP_STATE_BYTES: usize = 64;

impl Host for State {}

impl State {
    fn policy(&mut self, policy: &Resource<PolicyHandle>) -> wasmtime::Result<&mut engine::Policy> {
        Ok(&mut self.table.get_mut(policy)?.policy)
    }

    /// Keeps a policy for the component, with what `held` pays for.
    pub(crate) fn push_policy(
        &mut self,
        policy: engine::Policy,
        held: Held,
    ) -> wasmtime::Result<Resource<PolicyHandle>> {
        let refused = Refused::default();
        Ok(self.table.push(PolicyHandle {
            policy,
            refused,
            held,
        })?)
    }

    /// Keeps what was changed, which is charged first.
    fn charge_policy(&mut self, policy: &Resource<PolicyHandle>) -> wasmtime::Result<()> {
        let PolicyHandle { policy, held, .. } = self.table.get_mut(policy)?;
        Ok(held.resize(policy_bytes(policy))?)
    }
}

/// What a policy takes of the host's memory.
pub(crate) fn policy_bytes(policy: &engine::Policy) -> usize {
    let stops: usize = policy.stop.iter().map(String::capacity).sum();
    HANDLE_BYTES
        + size_of::<engine::Policy>()
        + policy.stop.capacity() * size_of::<String>()
        + stops
        + policy.stop_token_ids.capacity() * size_of::<u32>()
        + policy.logit_bias.capacity() * size_of::<(u32, f32)>()
}

/// What a job may take of the host's memory beside its sequence: its policy once more with what follows it, and what it may
/// say before it waits to be read.
fn job_bytes(policy: &engine::Policy, client: &engine::Client) -> usize {
    let text = client.text().text_bytes_max(1);
    let logprob = policy.logprobs.map_or(0, |top| {
        size_of::<engine::TokenLogprob>() + top as usize * size_of::<(u32, f32)>()
    });
    let token = text.saturating_add(size_of::<u32>() + logprob);
    // Lists that grow are at least half full.
    let unread = token.saturating_mul(2 * engine::UNREAD_TOKENS_MAX);
    // A stop string is matched by an automaton of several states a byte.
    let stops: usize = policy.stop.iter().map(String::len).sum();
    unread.saturating_add(policy_bytes(policy) + stops * STOP_STATE_BYTES)
}

impl HostPolicy for State {
    async fn new(&mut self) -> wasmtime::Result<Resource<PolicyHandle>> {
        let policy = engine::Policy::default();
        let held = self.memory.hold(policy_bytes(&policy))?;
        self.push_policy(policy, held)
    }

    async fn copy(
        &mut self,
        policy: Resource<PolicyHandle>,
    ) -> wasmtime::Result<Resource<PolicyHandle>> {
        let PolicyHandle {
            policy, refused, ..
        } = self.table.get(&policy)?;
        let held = self.memory.hold(policy_bytes(policy))?;
        let copy = PolicyHandle {
            policy: policy.clone(),
            refused: refused.clone(),
            held,
        };
        Ok(self.table.push(copy)?)
    }

    async fn max_tokens(&mut self, policy: Resource<PolicyHandle>, n: u32) -> wasmtime::Result<()> {
        self.policy(&policy)?.max_tokens = Some(n);
        Ok(())
    }

    async fn min_tokens(&mut self, policy: Resource<PolicyHandle>, n: u32) -> wasmtime::Result<()> {
        self.policy(&policy)?.min_tokens = n;
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
        biases: Vec<(u32, f32)>,
    ) -> wasmtime::Result<()> {
        let handle = self.table.get_mut(&policy)?;
        handle.refused.bias = too_many_biases(biases.len());
        handle.policy.logit_bias = match handle.refused.bias {
            None => biases,
            Some(_) => Vec::new(),
        };
        self.charge_policy(&policy)
    }

    async fn stop(
        &mut self,
        policy: Resource<PolicyHandle>,
        strings: Vec<String>,
    ) -> wasmtime::Result<()> {
        let handle = self.table.get_mut(&policy)?;
        // The engine's own judgement of them, while they are all there.
        let of_strings = engine::Policy {
            stop: strings,
            ..engine::Policy::default()
        };
        handle.refused.stop = of_strings.validate(0).err();
        handle.policy.stop = match handle.refused.stop {
            None => of_strings.stop,
            Some(_) => Vec::new(),
        };
        self.charge_policy(&policy)
    }

    async fn stop_tokens(
        &mut self,
        policy: Resource<PolicyHandle>,
        tokens: Vec<u32>,
    ) -> wasmtime::Result<()> {
        let handle = self.table.get_mut(&policy)?;
        let of_tokens = engine::Policy {
            stop_token_ids: tokens,
            ..engine::Policy::default()
        };
        // Which tokens there are is known when the run starts.
        let is_short = of_tokens.stop_token_ids.len() <= engine::STOP_TOKENS_MAX;
        handle.refused.stop_tokens = match is_short {
            true => None,
            false => of_tokens.validate(u32::MAX).err(),
        };
        handle.policy.stop_token_ids = match is_short {
            true => of_tokens.stop_token_ids,
            false => Vec::new(),
        };
        self.charge_policy(&policy)
    }

    async fn ignore_end(
        &mut self,
        policy: Resource<PolicyHandle>,
        on: bool,
    ) -> wasmtime::Result<()> {
        self.policy(&policy)?.ignore_eos = on;
        Ok(())
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
        // What is wrong is said before anything is charged for it: absurd wishes cost absurd amounts.
        for (sequence, policy) in &pairs {
            self.check_job(&client, sequence, policy)?;
        }
        let (held, charges) = self.hold_jobs(&client, &pairs).await?;
        let mut jobs = Vec::with_capacity(pairs.len());
        for (index, (sequence, policy)) in pairs.iter().enumerate() {
            let mut policy = self.table.get(policy)?.policy.clone();
            // Equal policies of one group still draw differently.
            policy.seed = policy.seed.map(|seed| seed.wrapping_add(index as u64));
            jobs.push(engine::Job {
                sequence: &self.table.get(sequence)?.sequence,
                policy,
            });
        }
        let run = client
            .start(jobs)
            .map_err(|error| self.engine_error(error))?;
        let run = self.table.push(RunHandle {
            run,
            jobs: charges,
            outlived: Vec::new(),
            _held: held,
        })?;
        for (sequence, _) in &pairs {
            self.table.get_mut(sequence)?.run = Some(run.rep());
        }
        Ok(run)
    }

    async fn next(
        &mut self,
        run: Resource<RunHandle>,
        max_wait_ms: u32,
    ) -> Result<Option<Vec<Event>>, Failure> {
        let reading = &mut self.table.get_mut(&run)?.run;
        // The call's own deadline cuts longer waits off from outside.
        let wait = Duration::from_millis(max_wait_ms.into());
        let Ok(read) = tokio::time::timeout(wait, reading.next()).await else {
            return Ok(Some(Vec::new()));
        };
        let Some(events) = read else {
            return Ok(None);
        };
        for event in events.iter().filter(|event| event.finished.is_some()) {
            let job = self.table.get_mut(&run)?.jobs.get_mut(event.job as usize);
            if let Some(job) = job.map(JobCharge::take) {
                self.settle(run.rep(), job).await?;
            }
        }
        self.handed_over
            .resize(events.iter().map(event_bytes).sum())?;
        let events = events.into_iter().map(|event| self.event(event));
        Ok(Some(events.collect()))
    }

    async fn cancel(&mut self, run: Resource<RunHandle>, job: u32) -> wasmtime::Result<()> {
        self.table.get(&run)?.run.cancel(job);
        Ok(())
    }

    async fn usage(&mut self, run: Resource<RunHandle>) -> wasmtime::Result<Usage> {
        Ok(usage(self.table.get(&run)?.run.usage()))
    }

    async fn drop(&mut self, run: Resource<RunHandle>) -> wasmtime::Result<()> {
        let rep = run.rep();
        let handle = self.table.delete(run)?;
        self.end_run(rep, handle).await
    }
}

impl JobCharge {
    /// What there is to settle; nothing is left.
    fn take(&mut self) -> JobCharge {
        let reserved = self.reserved.take();
        JobCharge {
            sequence: self.sequence,
            reserved,
        }
    }
}

/// More biases than a policy keeps.
fn too_many_biases(count: usize) -> Option<String> {
    (count > POLICY_ENTRIES_MAX).then(|| {
        format!("logit_bias has {count} entries, at most {POLICY_ENTRIES_MAX} are allowed")
    })
}

impl State {
    /// Whether a job can be part of a run on `client`'s model.
    fn check_job(
        &self,
        client: &engine::Client,
        sequence: &Resource<SequenceHandle>,
        policy: &Resource<PolicyHandle>,
    ) -> Result<(), Failure> {
        let facts = client.facts();
        if self.table.get(sequence)?.client.facts().name != facts.name {
            return Err(Failure::invalid(
                "the sequences of a run must belong to one model",
            ));
        }
        let PolicyHandle {
            policy, refused, ..
        } = self.table.get(policy)?;
        let too_many = || too_many_biases(policy.logit_bias.len());
        let refused = refused.first().cloned();
        if let Some(reason) = refused.or_else(too_many) {
            return Err(Failure::invalid(reason));
        }
        policy.validate(facts.vocab_size).map_err(Failure::invalid)
    }

    /// Charges a run for what it may say, and each job for the tokens its sequence may grow by.
    async fn hold_jobs(
        &mut self,
        client: &engine::Client,
        pairs: &[(Resource<SequenceHandle>, Resource<PolicyHandle>)],
    ) -> Result<(Held, Vec<JobCharge>), Failure> {
        let mut bytes = HANDLE_BYTES;
        let mut jobs = Vec::with_capacity(pairs.len());
        for (sequence, policy) in pairs {
            let policy = &self.table.get(policy)?.policy;
            bytes = bytes.saturating_add(job_bytes(policy, client));
            let wanted = policy.max_tokens.unwrap_or(u32::MAX);
            // Through `&mut`, because what is borrowed while waiting must be this task's own.
            let handle = self.table.get_mut(sequence)?;
            let length = handle.sequence.length().await;
            let room = client.facts().context_length.saturating_sub(length);
            jobs.push(JobCharge {
                sequence: sequence.rep(),
                reserved: self.memory.hold(token_bytes(wanted.min(room)))?,
            });
        }
        Ok((self.memory.hold(bytes)?, jobs))
    }

    /// Ends the run that was in the place `rep` of the table: what its jobs have made is paid for by their sequences, and the
    /// rest of what they set aside is free.
    pub(crate) async fn end_run(&mut self, rep: u32, handle: RunHandle) -> wasmtime::Result<()> {
        let RunHandle { run, jobs, .. } = handle;
        // First, because from here on no sequence grows any more.
        drop(run);
        for job in jobs {
            self.settle(rep, job).await?;
        }
        Ok(())
    }

    /// Settles what a job of a run has set aside, when it has ended.
    async fn settle(&mut self, run: u32, mut job: JobCharge) -> wasmtime::Result<()> {
        let sequence = Resource::<SequenceHandle>::new_borrow(job.sequence);
        // The component may have dropped the sequence, and another may have its place.
        if let Ok(handle) = self.table.get_mut(&sequence)
            && handle.run == Some(run)
        {
            let length = handle.sequence.length().await;
            handle.charge.settle_with(length, &mut job.reserved)?;
            handle.run = None;
        }
        Ok(())
    }

    fn event(&mut self, event: engine::Event) -> Event {
        Event {
            job: event.job,
            text: event.text,
            tokens: event.tokens,
            logprobs: event.logprobs.into_iter().map(token_logprob).collect(),
            finish: event.finished.map(|finish| match finish {
                engine::Finish::Stopped(reason) => Finish::Stopped(reason.into()),
                engine::Finish::Failed(error) => {
                    let error = self.engine_error(error);
                    Finish::Failed(self.given(error))
                }
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

/// What an event takes of the host's memory while it is handed over.
fn event_bytes(event: &engine::Event) -> usize {
    let logprobs = event.logprobs.iter();
    let logprobs = logprobs.map(|one| size_of_val(one) + size_of_val(one.top.as_slice()));
    size_of::<engine::Event>()
        + event.text.len()
        + size_of_val(event.tokens.as_slice())
        + logprobs.sum::<usize>()
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

#[cfg(test)]
mod tests {
    use super::*;
    use engine::scripted::{self, Scripted};
    use engine::text::{TextModel, TextSource};
    use std::sync::Arc;

    #[test]
    fn what_a_job_may_say_is_as_long_as_the_models_tokens() {
        for longest in [20, 1_000] {
            let text = TextSource {
                model: "llama".to_owned(),
                tokens: vec!["<unk>".to_owned(), "x".repeat(longest)],
                scores: vec![0.0; 2],
                token_types: vec![2, 1],
                unk: Some(0),
                ..TextSource::default()
            };
            let scripted = Scripted::default();
            let facts = scripted::facts(&scripted);
            let executor = scripted::executor(scripted);
            let text = Arc::new(TextModel::new(text).unwrap());
            let engine = engine::Engine::spawn(executor, facts, text, Default::default());
            let unread = engine::UNREAD_TOKENS_MAX * (longest + size_of::<u32>());
            let bytes = job_bytes(&engine::Policy::default(), &engine.client());
            assert!((unread..3 * unread).contains(&bytes), "{longest}: {bytes}");
            engine.shutdown();
        }
    }
}
