//! The engine through its handles, on the scripted model: most tests step it by hand, those about threads do not.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use crate::account::Account;
use crate::batch::SequenceState;
use crate::client::{Client, Owner};
use crate::clock::Clock;
use crate::engine::{EngineConfig, assemble};
use crate::error::EngineError;
use crate::outlet::{Event, Finish, StopReason, Usage};
use crate::policy::Policy;
use crate::run::{Job, Run};
use crate::scripted::{self, Script, Scripted};
use crate::sequence::Sequence;
use crate::stats::{Observer, StepReport};
use crate::step::StepLoop;

mod shares;

const OWNER: Owner = Owner {
    tenant: 1,
    weight: 1,
    kv_blocks_max: 1000,
};

fn tenant(tenant: u32) -> Owner {
    Owner { tenant, ..OWNER }
}

fn greedy(max_tokens: u32) -> Policy {
    Policy {
        max_tokens: Some(max_tokens),
        temperature: 0.0,
        ..Policy::default()
    }
}

fn reply(text: &str) -> Scripted {
    Scripted {
        script: Script::Reply(text.to_owned()),
        ..Scripted::default()
    }
}

/// Time stands still, so that no test depends on it.
struct NoClock;

impl Clock for NoClock {
    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

/// An engine that steps when it is told to.
struct Stepped {
    client: Client,
    engine: StepLoop,
}

impl Stepped {
    fn new(scripted: Scripted, config: EngineConfig) -> Stepped {
        let config = EngineConfig {
            clock: Arc::new(NoClock),
            ..config
        };
        let facts = scripted::facts(&scripted);
        let text = scripted::text_model();
        let (client, engine) = assemble(scripted::executor(scripted), facts, text, config);
        Stepped { client, engine }
    }

    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.engine.step().unwrap();
        }
    }

    fn sequence(&self, tokens: &[u32]) -> Sequence {
        let sequence = self.client.sequence(OWNER, &Account::new()).unwrap();
        sequence.append(tokens).unwrap();
        sequence
    }

    fn start(&self, sequence: &Sequence, policy: Policy) -> Run {
        self.client.start(vec![Job { sequence, policy }]).unwrap()
    }

    /// Steps until the run's jobs have ended; their events put together, by job.
    fn finish(&mut self, run: &mut Run) -> Vec<Event> {
        let mut jobs: Vec<Event> = Vec::new();
        for _ in 0..10_000 {
            self.steps(1);
            while let Some(taken) = run.try_next() {
                let Some(events) = taken else { return jobs };
                for event in events {
                    let index = event.job as usize;
                    while jobs.len() <= index {
                        jobs.push(Event::default());
                    }
                    jobs[index].text.push_str(&event.text);
                    jobs[index].tokens.extend(event.tokens);
                    jobs[index].logprobs.extend(event.logprobs);
                    jobs[index].prompt_logprobs.extend(event.prompt_logprobs);
                    jobs[index].ended_at_once |= event.ended_at_once;
                    jobs[index].finished = event.finished;
                }
            }
        }
        panic!("the run does not end");
    }

    fn free(&self) -> u64 {
        self.client.stats().blocks_free
    }
}

/// Waits on the calling thread.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn stopped(reason: StopReason) -> Option<Finish> {
    Some(Finish::Stopped(reason))
}

#[test]
fn a_reply_ends_with_its_turn_and_can_be_gone_on_from() {
    let mut engine = Stepped::new(reply("good day"), EngineConfig::default());
    let sequence = engine.sequence(&bytes("hello "));
    let mut run = engine.start(&sequence, greedy(100));
    let events = engine.finish(&mut run);
    assert_eq!(events[0].text, "good day");
    assert_eq!(events[0].tokens, bytes("good day"));
    assert_eq!(events[0].finished, stopped(StopReason::EndOfTurn));
    let usage = Usage {
        prompt: 6,
        cached: 0,
        completion: 8,
    };
    assert_eq!(run.usage(), usage);
    assert_eq!(block_on(sequence.length()), 14);

    sequence.append(bytes(" again ")).unwrap();
    let mut run = engine.start(&sequence, greedy(4));
    assert_eq!(engine.finish(&mut run)[0].text, "good");
    assert_eq!(run.usage().prompt, 7, "the first prompt was counted before");
    let ready = sequence.begin_read(0, 100).unwrap();
    engine.steps(1);
    let tokens = block_on(ready).unwrap();
    assert_eq!(tokens, bytes("hello good day again good"));
}

#[test]
fn a_job_ends_exactly_before_its_stop_string() {
    let mut engine = Stepped::new(reply("one two three"), EngineConfig::default());
    let sequence = engine.sequence(&bytes("count: "));
    let policy = Policy {
        stop: vec![" thr".to_owned(), "zzz".to_owned()],
        ..greedy(100)
    };
    let mut run = engine.start(&sequence, policy);
    let events = engine.finish(&mut run);
    assert_eq!(events[0].text, "one two");
    assert_eq!(events[0].finished, stopped(StopReason::StopString));
}

/// What a job says after `prompt:`, how it ends, and how many tokens it was.
fn said(script: &str, policy: Policy) -> (String, Option<Finish>, usize) {
    let mut engine = Stepped::new(reply(script), EngineConfig::default());
    let sequence = engine.sequence(&bytes("prompt:"));
    let mut run = engine.start(&sequence, policy);
    let event = engine.finish(&mut run).remove(0);
    assert_eq!(run.usage().completion as usize, event.tokens.len());
    (event.text, event.finished, event.tokens.len())
}

#[test]
fn a_job_ends_before_its_stop_token() {
    let policy = Policy {
        stop_token_ids: vec![u32::from(b'z'), u32::from(b't')],
        stop: vec!["thr".to_owned()],
        ..greedy(100)
    };
    let expected = ("one ".to_owned(), stopped(StopReason::StopString), 4);
    assert_eq!(said("one two three", policy.clone()), expected);
    let deaf = Policy {
        ignore_eos: true,
        ..policy
    };
    assert_eq!(said("one two three", deaf), expected);
}

#[test]
fn text_held_back_for_a_stop_string_comes_out_before_a_stop_token() {
    let policy = Policy {
        stop_token_ids: vec![u32::from(b'w')],
        stop: vec!["two".to_owned()],
        ..greedy(100)
    };
    let expected = ("one t".to_owned(), stopped(StopReason::StopString), 5);
    assert_eq!(said("one two", policy), expected);
}

#[test]
fn a_job_says_at_least_as_much_as_was_asked() {
    let least = |min_tokens, max_tokens| Policy {
        min_tokens,
        ..greedy(max_tokens)
    };
    // Where the end may not come the script has no other word, and the first token is the likeliest; then it begins anew.
    let ended = stopped(StopReason::EndOfTurn);
    let expected = ("ab\0ab".to_owned(), ended.clone(), 5);
    assert_eq!(said("ab", least(3, 20)), expected);
    assert_eq!(said("ab", least(2, 20)), ("ab".to_owned(), ended, 2));
    let full = stopped(StopReason::MaxTokens);
    assert_eq!(said("ab", least(3, 3)), ("ab\0".to_owned(), full, 3));
    let stop_token = Policy {
        stop_token_ids: vec![u32::from(b't')],
        ..least(6, 100)
    };
    let stop = stopped(StopReason::StopString);
    let expected = ("one \0one ".to_owned(), stop.clone(), 9);
    assert_eq!(said("one two", stop_token), expected);
    let stop_string = Policy {
        stop: vec!["X".to_owned()],
        ..least(2, 100)
    };
    let expected = ("aXb".to_owned(), stop, 4);
    assert_eq!(said("aXbXc", stop_string), expected);
}

#[test]
fn a_job_that_ignores_the_end_goes_on_after_it() {
    let policy = Policy {
        ignore_eos: true,
        min_tokens: 4,
        ..greedy(5)
    };
    let expected = ("abab".to_owned(), stopped(StopReason::MaxTokens), 5);
    assert_eq!(said("ab", policy), expected);
}

#[test]
fn a_full_context_has_no_room_for_an_answer() {
    let scripted = Scripted {
        context_length: 20,
        ..Scripted::default()
    };
    let mut engine = Stepped::new(scripted, EngineConfig::default());
    for (prompt, expected) in [
        (19, stopped(StopReason::ContextFull)),
        (
            20,
            Some(Finish::Failed(EngineError::ContextFull { room: 0 })),
        ),
    ] {
        let sequence = engine.sequence(&vec![1; prompt]);
        let mut run = engine.start(&sequence, greedy(100));
        let event = engine.finish(&mut run).remove(0);
        assert_eq!(
            (event.finished, event.tokens.len()),
            (expected, 20 - prompt)
        );
    }
}

#[test]
fn text_held_back_for_a_stop_string_comes_out_when_the_job_ends() {
    let mut engine = Stepped::new(reply("one two"), EngineConfig::default());
    let sequence = engine.sequence(&bytes("count: "));
    let policy = Policy {
        stop: vec!["two three".to_owned()],
        ..greedy(6)
    };
    let mut run = engine.start(&sequence, policy);
    let events = engine.finish(&mut run);
    assert_eq!(events[0].text, "one tw");
    assert_eq!(events[0].finished, stopped(StopReason::MaxTokens));
}

#[test]
fn a_character_is_never_split_between_events() {
    let mut engine = Stepped::new(reply("§é"), EngineConfig::default());
    let sequence = engine.sequence(&bytes("x"));
    let mut run = engine.start(&sequence, greedy(3));
    engine.steps(1);
    let first = run.try_next().unwrap().unwrap();
    assert_eq!((first[0].text.as_str(), first[0].tokens.len()), ("", 1));
    engine.steps(1);
    assert_eq!(run.try_next().unwrap().unwrap()[0].text, "§");
    engine.steps(1);
    let cut = run.try_next().unwrap().unwrap();
    assert_eq!(cut[0].text, "\u{fffd}", "half a character at the end");
}

#[test]
fn prefill_starts_with_the_append_and_leaves_the_last_token() {
    let mut engine = Stepped::new(Scripted::default(), EngineConfig::default());
    let _sequence = engine.sequence(&[1; 40]);
    engine.steps(1);
    let stats = engine.client.stats();
    assert_eq!((stats.tokens_prefill_total, stats.blocks_held), (39, 3));
    assert!(!engine.engine.has_work());
}

#[test]
fn a_long_prompt_does_not_stop_the_decoding_of_others() {
    let config = EngineConfig {
        step_tokens_max: 8,
        ..EngineConfig::default()
    };
    let mut engine = Stepped::new(Scripted::default(), config);
    let quick = engine.sequence(&[1]);
    let mut run = engine.start(&quick, greedy(1000));
    engine.steps(1);
    let _slow = engine.sequence(&[2; 500]);
    run.try_next();
    engine.steps(10);
    assert_eq!(run.try_next().unwrap().unwrap()[0].tokens.len(), 10);
    assert_eq!(engine.client.stats().batch_rows_last, 8);
}

#[test]
fn a_long_prompt_does_not_stop_the_prompts_of_another_tenant() {
    let config = EngineConfig {
        step_tokens_max: 8,
        ..EngineConfig::default()
    };
    let mut engine = Stepped::new(Scripted::default(), config);
    let _long = engine.sequence(&[2; 2000]);
    engine.steps(20);
    let short = engine.client.sequence(tenant(2), &Account::new()).unwrap();
    short.append([3; 15]).unwrap();
    let mut run = engine.start(&short, greedy(1));
    engine.steps(5);
    assert!(run.try_next().is_some(), "15 rows take a few of 5 steps");
}

#[test]
fn one_tenant_with_many_requests_does_not_keep_another_waiting() {
    let config = EngineConfig {
        sequences_running_max: 1,
        ..EngineConfig::default()
    };
    let mut engine = Stepped::new(Scripted::default(), config);
    let many: Vec<Sequence> = (0..20).map(|i| engine.sequence(&[i, 1, 2])).collect();
    let _runs: Vec<Run> = many.iter().map(|s| engine.start(s, greedy(10))).collect();
    engine.steps(15);
    let one = engine.client.sequence(tenant(2), &Account::new()).unwrap();
    one.append([3]).unwrap();
    let mut run = engine.start(&one, greedy(10));
    engine.steps(20);
    let events = run.try_next().unwrap().unwrap();
    assert_eq!(events[0].finished, stopped(StopReason::MaxTokens));
}

#[test]
fn prompts_are_computed_in_the_proportion_of_weights() {
    let config = EngineConfig {
        step_tokens_max: 8,
        ..EngineConfig::default()
    };
    let mut engine = Stepped::new(Scripted::default(), config);
    let heavy = Owner {
        weight: 3,
        ..tenant(2)
    };
    let prompts = [tenant(1), heavy].map(|owner| {
        let sequence = engine.client.sequence(owner, &Account::new()).unwrap();
        sequence.append([1; 4000]).unwrap();
        sequence
    });
    engine.steps(100);
    let computed: Vec<u32> = engine
        .engine
        .batch
        .sequences()
        .map(SequenceState::computed)
        .collect();
    assert_eq!(computed.iter().sum::<u32>(), 800);
    assert!(computed[0].abs_diff(200) <= 16, "{computed:?}");
    drop(prompts);
}

#[test]
fn a_fork_of_a_sequence_being_decoded_goes_on_from_there() {
    let mut engine = Stepped::new(Scripted::default(), EngineConfig::default());
    let sequence = engine.sequence(&[1; 20]);
    let mut run = engine.start(&sequence, greedy(40));
    engine.steps(15);
    let (child, ready) = sequence.begin_fork().unwrap();
    let all = engine.finish(&mut run).remove(0).tokens;
    block_on(ready).unwrap().unwrap();
    let length = block_on(child.length());
    assert_eq!(length, 35);
    let mut run = engine.start(&child, greedy(25));
    assert_eq!(engine.finish(&mut run)[0].tokens, all[15..]);
}

#[test]
fn a_fork_given_up_leaves_nothing() {
    let mut engine = Stepped::new(Scripted::default(), EngineConfig::default());
    let parent = engine.sequence(&[1; 600]);
    let given_up = parent.begin_fork().unwrap();
    engine.steps(1);
    drop(given_up);
    let orphan = parent.begin_fork().unwrap();
    drop(parent);
    engine.steps(5);
    let (child, ready) = orphan;
    assert_eq!(block_on(ready).unwrap(), Err(EngineError::Cancelled));
    drop(child);
    engine.steps(1);
    assert_eq!(engine.free(), 1024);
    assert!(engine.engine.batch.is_empty());
}

#[test]
fn a_fork_shares_all_but_the_row_it_writes() {
    let mut engine = Stepped::new(Scripted::default(), EngineConfig::default());
    let parent = engine.sequence(&[7; 40]);
    let forks: Vec<_> = (0..4).map(|_| parent.begin_fork().unwrap()).collect();
    engine.steps(2);
    assert_eq!(engine.client.stats().blocks_held, 3);
    let policy = greedy(5);
    let jobs = forks.iter().map(|(child, _)| Job {
        sequence: child,
        policy: policy.clone(),
    });
    let mut run = engine.client.start(jobs.collect()).unwrap();
    let events = engine.finish(&mut run);
    assert!(events.iter().all(|event| event.tokens == events[0].tokens));
    assert_eq!(run.usage().prompt, 40, "a shared prefix counts once");
    assert_eq!(run.usage().completion, 20);
    assert_eq!(engine.client.stats().blocks_held, 2 + 5, "tails are copied");
    assert_eq!(engine.client.stats().tokens_prefill_total, 39);
    drop((parent, forks, run));
    engine.steps(1);
    assert_eq!(engine.free(), 1024);
}

#[test]
fn a_rewind_takes_back_tokens_and_blocks() {
    let mut engine = Stepped::new(Scripted::default(), EngineConfig::default());
    let sequence = engine.sequence(&[7; 40]);
    engine.steps(1);
    block_on(sequence.rewind(10)).unwrap();
    engine.steps(1);
    assert_eq!(engine.client.stats().blocks_held, 1);
    assert_eq!(sequence.append([8; 2]), Ok(12));
    let mut run = engine.start(&sequence, greedy(3));
    let rewound = engine.finish(&mut run);
    let direct = engine.sequence(&[&[7; 10][..], &[8; 2]].concat());
    let mut run = engine.start(&direct, greedy(3));
    assert_eq!(rewound[0].tokens, engine.finish(&mut run)[0].tokens);
    let error = block_on(sequence.rewind(100)).unwrap_err();
    let what = "cannot rewind to 100; the sequence has 15 tokens";
    assert_eq!(error, EngineError::Invalid(what.to_owned()));
}

#[test]
fn dropping_a_run_and_its_sequence_frees_the_blocks_by_the_next_step() {
    let mut engine = Stepped::new(Scripted::default(), EngineConfig::default());
    let sequence = engine.sequence(&[7; 100]);
    let run = engine.start(&sequence, greedy(1000));
    engine.steps(3);
    assert_eq!(engine.free(), 1024 - 7);
    drop(sequence);
    engine.steps(1);
    assert_eq!(engine.free(), 1024 - 7, "the run keeps its sequence");
    drop(run);
    engine.steps(1);
    assert_eq!(engine.free(), 1024);
    assert!(!engine.engine.has_work());
}

#[test]
fn a_cancelled_job_ends_and_the_others_of_its_run_go_on() {
    let mut engine = Stepped::new(Scripted::default(), EngineConfig::default());
    let (a, b) = (engine.sequence(&[1]), engine.sequence(&[2]));
    let job = |sequence| Job {
        sequence,
        policy: greedy(5),
    };
    let mut run = engine.client.start(vec![job(&a), job(&b)]).unwrap();
    engine.steps(2);
    run.cancel(0);
    run.cancel(9);
    let events = engine.finish(&mut run);
    assert_eq!(events[0].finished, stopped(StopReason::Cancelled));
    assert_eq!(events[0].tokens.len(), 2);
    assert_eq!(events[1].finished, stopped(StopReason::MaxTokens));
    assert_eq!(a.append([1]), Ok(4), "what was made stays");
}

#[test]
fn a_full_queue_is_refused_not_buffered_and_still_takes_drops() {
    let config = EngineConfig {
        queue_max: 4,
        ..EngineConfig::default()
    };
    let mut engine = Stepped::new(Scripted::default(), config);
    let sequence = engine.sequence(&[1]);
    sequence.append([2]).unwrap();
    let full = sequence.append([3]).unwrap_err();
    assert!(matches!(full, EngineError::Overloaded { .. }));
    let other = engine.client.sequence(tenant(2), &Account::new()).unwrap();
    assert_eq!(other.append([1]), Ok(1), "one tenant cannot fill it");
    engine.steps(1);
    assert_eq!(sequence.append([3]), Ok(3), "the refused one left no trace");
    sequence.append([4]).unwrap();
    drop((sequence, other));
    engine.steps(1);
    assert_eq!(engine.free(), 1024);
    assert!(engine.engine.batch.is_empty());
}

#[test]
fn a_sequence_in_a_run_is_not_changed_by_others() {
    let mut engine = Stepped::new(Scripted::default(), EngineConfig::default());
    let sequence = engine.sequence(&[1, 2]);
    let mut run = engine.start(&sequence, greedy(3));
    assert!(matches!(sequence.append([1]), Err(EngineError::Invalid(_))));
    assert!(matches!(
        block_on(sequence.rewind(0)),
        Err(EngineError::Invalid(_))
    ));
    let again = Job {
        sequence: &sequence,
        policy: greedy(1),
    };
    let fresh = engine.sequence(&[3]);
    let job = Job {
        sequence: &fresh,
        policy: greedy(1),
    };
    let error = engine.client.start(vec![job.clone(), again]).unwrap_err();
    assert!(matches!(error, EngineError::Invalid(_)));
    engine.client.start(vec![job]).expect("not claimed in vain");
    engine.finish(&mut run);
    assert_eq!(sequence.append([1]), Ok(6));
}

#[test]
fn wrong_calls_are_named() {
    let engine = Stepped::new(Scripted::default(), EngineConfig::default());
    let check = |result: Result<u32, EngineError>, expected: &str| {
        assert_eq!(result.unwrap_err().to_string(), expected);
    };
    let sequence = engine.client.sequence(OWNER, &Account::new()).unwrap();
    check(
        sequence.append([259]),
        "token 259 is not in the vocabulary of 259 tokens",
    );
    check(
        sequence.append([0; 5000]),
        "the context is full; 4096 more tokens would fit",
    );
    let start = |sequence, policy| {
        let run = engine.client.start(vec![Job { sequence, policy }]);
        run.map(|_| 0)
    };
    check(
        start(&sequence, greedy(1)),
        "the sequence of job 0 is empty",
    );
    let policy = Policy {
        top_p: 2.0,
        ..greedy(1)
    };
    check(
        start(&sequence, policy),
        "top_p is 2, but it must be at least 0 and at most 1",
    );
    let owner = Owner {
        kv_blocks_max: 2,
        ..OWNER
    };
    let poor = engine.client.sequence(owner, &Account::new());
    check(
        poor.unwrap().append([0; 33]),
        "the context is full; 32 more tokens would fit",
    );
    assert!(engine.client.start(Vec::new()).is_err());
    let elsewhere = Stepped::new(Scripted::default(), EngineConfig::default());
    check(
        start(&elsewhere.sequence(&[1]), greedy(1)),
        "a job's sequence belongs to another model",
    );
}

#[test]
fn a_slow_reader_pauses_its_job_and_reading_resumes_it() {
    let config = EngineConfig {
        unread_tokens_max: 10,
        ..EngineConfig::default()
    };
    let mut engine = Stepped::new(Scripted::default(), config);
    let sequence = engine.sequence(&[1]);
    let mut run = engine.start(&sequence, greedy(25));
    engine.steps(50);
    assert!(!engine.engine.has_work(), "a paused job costs nothing");
    let read = |run: &mut Run| run.try_next().unwrap().unwrap()[0].tokens.len();
    assert_eq!(read(&mut run), 10);
    engine.steps(50);
    assert_eq!(read(&mut run), 10);
    engine.steps(50);
    assert_eq!(read(&mut run), 5);
    assert_eq!(run.try_next(), Some(None));
}

#[test]
fn a_sequence_that_outgrows_all_blocks_ends_as_full() {
    let scripted = Scripted {
        kv_blocks: 3,
        ..Scripted::default()
    };
    let mut engine = Stepped::new(scripted, EngineConfig::default());
    let sequence = engine.sequence(&[1; 20]);
    let mut run = engine.start(&sequence, greedy(1000));
    let events = engine.finish(&mut run);
    assert_eq!(events[0].finished, stopped(StopReason::ContextFull));
    assert_eq!(events[0].tokens.len(), 29, "48 positions and a last token");
}

#[test]
fn a_sequence_that_outgrows_its_tenant_ends_as_full() {
    let mut engine = Stepped::new(Scripted::default(), EngineConfig::default());
    let owner = Owner {
        kv_blocks_max: 2,
        ..OWNER
    };
    let sequence = engine.client.sequence(owner, &Account::new()).unwrap();
    sequence.append([1; 20]).unwrap();
    let mut run = engine.start(&sequence, greedy(1000));
    let events = engine.finish(&mut run);
    assert_eq!(events[0].finished, stopped(StopReason::ContextFull));
    assert_eq!(events[0].tokens.len(), 13, "32 positions and a last token");
    assert_eq!(engine.client.length_max(owner), 32);
}

#[test]
fn jobs_that_do_not_fit_together_take_turns_and_say_the_same() {
    let scripted = Scripted {
        kv_blocks: 8,
        ..Scripted::default()
    };
    let mut engine = Stepped::new(scripted, EngineConfig::default());
    let sequences: Vec<Sequence> = (0..6).map(|i| engine.sequence(&[i; 30])).collect();
    let job = |sequence| Job {
        sequence,
        policy: greedy(60),
    };
    let mut together = engine
        .client
        .start(sequences.iter().map(job).collect())
        .unwrap();
    let together = engine.finish(&mut together);
    assert!(engine.client.stats().preemptions_total > 0);
    for (i, together) in together.iter().enumerate() {
        let alone = engine.sequence(&[i as u32; 30]);
        let mut run = engine.start(&alone, greedy(60));
        assert_eq!(engine.finish(&mut run)[0].tokens, together.tokens);
    }
}

#[test]
fn a_seeded_job_says_the_same_whatever_else_is_in_the_batch() {
    let hot = |seed| Policy {
        temperature: 20.0,
        seed,
        ignore_eos: true,
        ..greedy(50)
    };
    let say = |others: u32, seed| {
        let mut engine = Stepped::new(Scripted::default(), EngineConfig::default());
        let noise: Vec<Sequence> = (0..others).map(|i| engine.sequence(&[i + 9])).collect();
        let _runs: Vec<Run> = noise.iter().map(|s| engine.start(s, hot(None))).collect();
        let sequence = engine.sequence(&[5]);
        let mut run = engine.start(&sequence, hot(seed));
        engine.finish(&mut run).remove(0).tokens
    };
    assert_eq!(say(0, Some(7)), say(9, Some(7)));
    assert_ne!(say(0, Some(7)), say(0, Some(8)));
    assert_ne!(say(0, None), say(0, None), "engines differ without a seed");
}

#[test]
fn a_refused_batch_fails_its_jobs_and_the_engine_goes_on() {
    let scripted = Scripted {
        refuse_at: Some(2),
        ..Scripted::default()
    };
    let mut engine = Stepped::new(scripted, EngineConfig::default());
    let sequence = engine.sequence(&[1; 20]);
    let mut run = engine.start(&sequence, greedy(10));
    let events = engine.finish(&mut run);
    assert!(matches!(
        events[0].finished,
        Some(Finish::Failed(EngineError::Internal(_)))
    ));
    let sequence = engine.sequence(&[1; 20]);
    let mut run = engine.start(&sequence, greedy(10));
    let events = engine.finish(&mut run);
    assert_eq!(events[0].finished, stopped(StopReason::MaxTokens));
}

#[test]
fn logprobs_come_with_their_tokens() {
    let mut engine = Stepped::new(reply("ab"), EngineConfig::default());
    let sequence = engine.sequence(&bytes("x"));
    let policy = Policy {
        logprobs: Some(3),
        ..greedy(10)
    };
    let mut run = engine.start(&sequence, policy);
    let events = engine.finish(&mut run);
    let tokens: Vec<u32> = events[0].logprobs.iter().map(|l| l.token).collect();
    assert_eq!(tokens, bytes("ab"));
    assert!(events[0].logprobs[0].logprob > -1e-3);
    assert_eq!(events[0].logprobs[1].top[0].0, u32::from(b'b'));
    assert_eq!(events[0].logprobs[1].top.len(), 3);
}

#[test]
fn no_tokens_asked_is_none_given() {
    let mut engine = Stepped::new(Scripted::default(), EngineConfig::default());
    let sequence = engine.sequence(&[1]);
    let mut run = engine.start(&sequence, greedy(0));
    let events = engine.finish(&mut run);
    assert_eq!(events[0].finished, stopped(StopReason::MaxTokens));
    assert!(events[0].tokens.is_empty());
}

#[test]
fn a_first_token_that_ends_the_answer_is_reported_and_counted() {
    for logprobs in [None, Some(2)] {
        let mut engine = Stepped::new(reply(""), EngineConfig::default());
        let account = Account::new();
        let sequence = engine.client.sequence(OWNER, &account).unwrap();
        sequence.append([1]).unwrap();
        let policy = Policy {
            logprobs,
            ..greedy(10)
        };
        let mut run = engine.start(&sequence, policy);
        let event = engine.finish(&mut run).remove(0);
        assert_eq!(event.finished, stopped(StopReason::EndOfTurn));
        assert!(event.ended_at_once && event.tokens.is_empty());
        let reported: Vec<_> = event.logprobs.iter().map(|it| it.token).collect();
        assert_eq!(reported, vec![scripted::END; logprobs.iter().len()]);
        assert!(event.logprobs.iter().all(|it| it.top.len() == 2));
        assert_eq!((run.usage().completion, account.usage().completion), (1, 1));
        assert_eq!(
            block_on(sequence.length()),
            1,
            "it is no part of the sequence"
        );
    }
    // After a token the end is only an end.
    let mut engine = Stepped::new(reply("a"), EngineConfig::default());
    let sequence = engine.sequence(&[1]);
    let policy = Policy {
        logprobs: Some(0),
        ..greedy(10)
    };
    let mut run = engine.start(&sequence, policy);
    let event = engine.finish(&mut run).remove(0);
    assert!(!event.ended_at_once);
    assert_eq!((event.logprobs.len(), run.usage().completion), (1, 1));
}

/// What the scripted model makes of each token of `tokens` but the first.
fn scripted_scores(tokens: &[u32]) -> Vec<(u32, u32, f32)> {
    let normalizer = (20f32.exp() + (scripted::VOCAB - 1) as f32).ln();
    (1..tokens.len())
        .map(|place| {
            let is_next = Script::Letters.next(&tokens[..place]) == tokens[place];
            let (rank, logit) = if is_next { (1, 20.0) } else { (2, 0.0) };
            (tokens[place], rank, logit - normalizer)
        })
        .collect()
}

#[test]
fn a_prompts_tokens_are_scored_the_same_whatever_the_pieces_and_the_neighbours() {
    let mut prompt = bytes("what comes next: ");
    for _ in 0..60 {
        prompt.push(Script::Letters.next(&prompt));
    }
    let wanted = scripted_scores(&prompt);
    for (step_tokens_max, scored_rows) in [(512, 512), (16, 512), (7, 3), (512, 5), (512, 0)] {
        let config = EngineConfig {
            step_tokens_max,
            scored_logits_max: scored_rows * scripted::VOCAB as usize,
            ..EngineConfig::default()
        };
        let mut engine = Stepped::new(Scripted::default(), config);
        let beside = engine.sequence(&[9; 50]);
        let _beside = engine.start(&beside, greedy(1000));
        // Computed in the background already, and once more for its scores.
        let sequence = engine.sequence(&prompt);
        engine.steps(3);
        let fork = sequence.begin_fork().unwrap();
        engine.steps(20);
        let policy = Policy {
            prompt_logprobs: Some(3),
            ..greedy(2)
        };
        let mut run = engine.start(&sequence, policy);
        let event = engine.finish(&mut run).remove(0);
        assert_eq!(event.prompt_logprobs.len(), wanted.len());
        for (scored, wanted) in event.prompt_logprobs.iter().zip(&wanted) {
            let (token, rank, logprob) = *wanted;
            assert_eq!((scored.logprob.token, scored.rank), (token, rank));
            assert!((scored.logprob.logprob - logprob).abs() < 1e-5);
            assert_eq!(scored.logprob.top.len(), 3);
        }
        // What follows is what would have followed, there and in the fork.
        let (child, ready) = fork;
        block_on(ready).unwrap().unwrap();
        let mut run = engine.start(&child, greedy(2));
        assert_eq!(engine.finish(&mut run)[0].tokens, event.tokens);
    }
}

#[test]
fn a_step_holds_the_logits_of_few_rows_of_a_prompt() {
    let seen = Arc::new(Seen::default());
    let config = EngineConfig {
        scored_logits_max: 8 * scripted::VOCAB as usize,
        observer: Some(Arc::clone(&seen) as Arc<dyn Observer>),
        ..EngineConfig::default()
    };
    let mut engine = Stepped::new(Scripted::default(), config);
    let sequences = [0; 3].map(|_| engine.sequence(&[5; 33]));
    engine.steps(1);
    let jobs = sequences.iter().map(|sequence| Job {
        sequence,
        policy: Policy {
            prompt_logprobs: Some(0),
            ..greedy(0)
        },
    });
    let mut run = engine.client.start(jobs.collect()).unwrap();
    let before = seen.0.lock().unwrap().len();
    let events = engine.finish(&mut run);
    for event in &events {
        assert_eq!(event.prompt_logprobs.len(), 32);
        assert_eq!(event.finished, stopped(StopReason::MaxTokens));
        assert!(event.tokens.is_empty());
    }
    let steps = seen.0.lock().unwrap()[before..].to_vec();
    assert!(steps.iter().all(|step| step.prefill_rows <= 8), "{steps:?}");
    assert_eq!(steps.iter().map(|step| step.rows).sum::<u32>(), 3 * 33);
}

#[test]
fn a_prompt_as_long_as_the_context_can_be_scored() {
    let scripted = Scripted {
        context_length: 40,
        ..Scripted::default()
    };
    let engine = scripted::engine(scripted, EngineConfig::default());
    let client = engine.client();
    for length in [1, 2, 40] {
        let sequence = client.sequence(OWNER, &Account::new()).unwrap();
        sequence.append(vec![3; length]).unwrap();
        let scored = block_on(sequence.score(1)).unwrap();
        assert_eq!(scored.len(), length - 1);
        // The sequence is free again.
        let job = Job {
            sequence: &sequence,
            policy: greedy(1),
        };
        client.start(vec![job]).unwrap();
    }
    let sequence = client.sequence(OWNER, &Account::new()).unwrap();
    sequence.append([3]).unwrap();
    let error = block_on(sequence.score(21)).unwrap_err();
    assert!(error.to_string().contains("prompt_logprobs"), "{error}");
    engine.shutdown();
}

#[derive(Default)]
struct Seen(Mutex<Vec<StepReport>>);

impl Observer for Seen {
    fn step(&self, report: &StepReport) {
        self.0.lock().unwrap().push(*report);
    }
}

#[test]
fn the_observer_sees_every_forward_pass() {
    let seen = Arc::new(Seen::default());
    let config = EngineConfig {
        observer: Some(Arc::clone(&seen) as Arc<dyn Observer>),
        ..EngineConfig::default()
    };
    let mut engine = Stepped::new(Scripted::default(), config);
    let sequence = engine.sequence(&[1; 5]);
    let mut run = engine.start(&sequence, greedy(3));
    engine.finish(&mut run);
    let reports = seen.0.lock().unwrap();
    let rows: Vec<(u32, u32)> = reports
        .iter()
        .map(|report| (report.prefill_rows, report.decode_rows))
        .collect();
    assert_eq!(rows, [(5, 0), (0, 1), (0, 1)]);
}

#[test]
fn the_owner_thread_serves_many_callers_at_once() {
    let engine = scripted::engine(Scripted::default(), EngineConfig::default());
    let client = engine.client();
    let say = |first: u32| {
        let sequence = client.sequence(tenant(first), &Account::new()).unwrap();
        sequence.append([first, 1, 2]).unwrap();
        let fork = block_on(sequence.fork()).unwrap();
        let mut run = client
            .start(vec![Job {
                sequence: &fork,
                policy: greedy(200),
            }])
            .unwrap();
        let mut text = String::new();
        while let Some(events) = block_on(run.next()) {
            for event in events {
                text.push_str(&event.text);
            }
        }
        let tokens = block_on(fork.tokens(3, 1000)).unwrap();
        assert_eq!(bytes(&text), tokens);
        text
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|i| scope.spawn(move || say(i % 4))).collect();
        let texts: Vec<String> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        for (i, text) in texts.iter().enumerate() {
            assert_eq!(text.len(), 200);
            assert_eq!(*text, texts[i % 4]);
        }
    });
    engine.shutdown();
    assert_eq!(
        client.sequence(OWNER, &Account::new()).err(),
        Some(EngineError::Stopped)
    );
}

#[test]
fn a_panic_of_the_executor_ends_every_wait() {
    let scripted = Scripted {
        panic_at: Some(3),
        step_delay: Duration::from_millis(1),
        ..Scripted::default()
    };
    let engine = scripted::engine(scripted, EngineConfig::default());
    let client = engine.client();
    let sequence = client.sequence(OWNER, &Account::new()).unwrap();
    sequence.append([1]).unwrap();
    let job = Job {
        sequence: &sequence,
        policy: greedy(100),
    };
    let mut run = client.start(vec![job]).unwrap();
    let mut finished = None;
    while let Some(events) = block_on(run.next()) {
        finished = events[0].finished.clone();
    }
    assert!(matches!(
        finished,
        Some(Finish::Failed(EngineError::Internal(_)))
    ));
    assert_eq!(block_on(sequence.fork()).err(), Some(EngineError::Stopped));
    assert!(client.is_stopped());
}

#[test]
fn shutting_down_fails_what_runs_and_what_waits() {
    let scripted = Scripted {
        step_delay: Duration::from_millis(2),
        ..Scripted::default()
    };
    let engine = scripted::engine(scripted, EngineConfig::default());
    let client = engine.client();
    let sequence = client.sequence(OWNER, &Account::new()).unwrap();
    sequence.append([1; 3000]).unwrap();
    let job = Job {
        sequence: &sequence,
        policy: greedy(1000),
    };
    let mut run = client.start(vec![job]).unwrap();
    engine.shutdown();
    let mut last = None;
    while let Some(events) = block_on(run.next()) {
        last = events.into_iter().next_back();
    }
    let finished = last.and_then(|event| event.finished);
    assert_eq!(finished, Some(Finish::Failed(EngineError::Stopped)));
}
