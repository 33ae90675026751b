//! What tenants get of places, blocks and rows when others want them too.

use super::*;
use crate::sampler::Rng;
use crate::scripted::VOCAB;

fn sequence_of(engine: &Stepped, owner: Owner, tokens: &[u32]) -> Sequence {
    let sequence = engine.client.sequence(owner, &Account::new()).unwrap();
    sequence.append(tokens).unwrap();
    sequence
}

/// Goes on until the context is full.
fn endless() -> Policy {
    Policy {
        ignore_eos: true,
        ..greedy(100_000)
    }
}

/// Steps until a run says something; how many it took.
fn steps_to_first_token(engine: &mut Stepped, run: &mut Run) -> usize {
    for step in 1..1000 {
        engine.steps(1);
        if let Some(Some(events)) = run.try_next()
            && events.iter().any(|event| !event.tokens.is_empty())
        {
            return step;
        }
    }
    panic!("nothing is said in 1000 steps");
}

#[test]
fn many_endless_jobs_of_one_tenant_do_not_keep_another_waiting() {
    for jobs_of_a_run in [1, 64] {
        let scripted = Scripted {
            kv_blocks: 64 * 1024,
            ..Scripted::default()
        };
        let config = EngineConfig {
            unread_tokens_max: 1 << 20,
            ..EngineConfig::default()
        };
        let mut engine = Stepped::new(scripted.clone(), config);
        let sequences: Vec<Sequence> = (0..64).map(|i| engine.sequence(&[i, 2, 3])).collect();
        let mut runs: Vec<Run> = sequences
            .chunks(jobs_of_a_run)
            .map(|sequences| {
                let job = |sequence| Job {
                    sequence,
                    policy: endless(),
                };
                let jobs = sequences.iter().map(job).collect();
                engine.client.start(jobs).unwrap()
            })
            .collect();
        engine.steps(100);
        assert_eq!(engine.client.stats().sequences_running, 64);
        let chat = sequence_of(&engine, tenant(2), &[7; 40]);
        let mut run = engine.start(&chat, greedy(10));
        assert!(steps_to_first_token(&mut engine, &mut run) <= 3);
        assert_eq!(engine.client.stats().yields_total, 1, "one place is enough");
        engine.finish(&mut run);
        engine.steps(50);
        assert_eq!(engine.client.stats().sequences_running, 64, "it goes on");

        let last = runs.last_mut().unwrap();
        let said = last.try_next().unwrap().unwrap();
        let youngest = said
            .iter()
            .find(|event| event.job as usize == jobs_of_a_run - 1);
        let mut alone = Stepped::new(scripted.clone(), EngineConfig::default());
        let sequence = alone.sequence(&[63, 2, 3]);
        let tokens = &youngest.unwrap().tokens;
        let mut run = alone.start(&sequence, greedy(tokens.len() as u32));
        assert_eq!(alone.finish(&mut run)[0].tokens, *tokens, "nothing is lost");
    }
}

#[test]
fn a_heavier_tenant_takes_back_the_places_that_its_weight_gives_it() {
    let mut engine = Stepped::new(Scripted::default(), EngineConfig::default());
    let heavy = Owner {
        weight: 3,
        ..tenant(2)
    };
    let flood = |engine: &Stepped, owner| -> Vec<(Sequence, Run)> {
        let one = |i| {
            let sequence = sequence_of(engine, owner, &[i, 1]);
            let run = engine.start(&sequence, endless());
            (sequence, run)
        };
        (0..64).map(one).collect()
    };
    let _light = flood(&engine, tenant(1));
    engine.steps(5);
    let _heavy = flood(&engine, heavy);
    engine.steps(5);
    let places = engine.engine.batch.lines().running_by();
    assert_eq!((places[&1], places[&2]), (16, 48));
}

/// Keeps a hundred short jobs of a tenant in the engine.
struct Flood {
    owner: Owner,
    rng: Rng,
    jobs: Vec<(Sequence, Run)>,
}

impl Flood {
    fn new(owner: Owner) -> Flood {
        Flood {
            owner,
            rng: Rng::new(owner.tenant.into()),
            jobs: Vec::new(),
        }
    }

    fn keep_up(&mut self, engine: &Stepped) {
        self.jobs
            .retain_mut(|(_, run)| !matches!(run.try_next(), Some(Some(events)) if events[0].finished.is_some()));
        while self.jobs.len() < 100 {
            let prompt: Vec<u32> = (0..1 + self.rng.below(120))
                .map(|_| self.rng.below(VOCAB - 3))
                .collect();
            let sequence = sequence_of(engine, self.owner, &prompt);
            let policy = Policy {
                ignore_eos: true,
                ..greedy(1 + self.rng.below(60))
            };
            let run = engine.start(&sequence, policy);
            self.jobs.push((sequence, run));
        }
    }
}

#[test]
fn a_fresh_and_a_long_served_tenant_get_the_same_over_any_200_steps() {
    for (first, second) in [(1, 2), (2, 1)] {
        let config = EngineConfig {
            queue_max: 1 << 16,
            step_tokens_max: 96,
            ..EngineConfig::default()
        };
        let scripted = Scripted {
            kv_blocks: 4096,
            ..Scripted::default()
        };
        let mut engine = Stepped::new(scripted, config);
        let mut old = Flood::new(tenant(first));
        for _ in 0..500 {
            old.keep_up(&engine);
            engine.steps(1);
        }
        let mut fresh = Flood::new(tenant(second));
        let mut served = Vec::new();
        for _ in 0..1000 {
            old.keep_up(&engine);
            fresh.keep_up(&engine);
            engine.steps(1);
            let rows = |owner: Owner| engine.engine.scheduler.served(owner.tenant) >> 16;
            served.push((rows(old.owner), rows(fresh.owner)));
        }
        for window in served.windows(201) {
            let (from, to) = (window[0], window[200]);
            let (a, b) = (to.0 - from.0, to.1 - from.1);
            let off = a.abs_diff(b) as f64 / (a + b) as f64 * 2.0;
            assert!(off <= 0.05, "{a} and {b} rows in 200 steps");
        }
    }
}

#[test]
fn blocks_are_a_share_too() {
    let scripted = Scripted {
        kv_blocks: 64,
        ..Scripted::default()
    };
    let mut engine = Stepped::new(scripted, EngineConfig::default());
    let hogs: Vec<Sequence> = (0..4).map(|i| engine.sequence(&[i; 200])).collect();
    let _runs: Vec<Run> = hogs.iter().map(|s| engine.start(s, endless())).collect();
    engine.steps(30);
    assert!(engine.free() < 8);
    let chat = sequence_of(&engine, tenant(2), &[7; 300]);
    let mut run = engine.start(&chat, greedy(10));
    assert!(steps_to_first_token(&mut engine, &mut run) <= 4);
}

#[test]
fn a_request_too_large_for_its_share_keeps_nobody_from_theirs_and_gets_its_turn() {
    let scripted = Scripted {
        kv_blocks: 64,
        ..Scripted::default()
    };
    let config = EngineConfig {
        queue_max: 1 << 16,
        ..EngineConfig::default()
    };
    let mut engine = Stepped::new(scripted, config);
    let mut hog = Flood::new(tenant(1));
    let large = sequence_of(&engine, tenant(2), &[7; 900]);
    let mut large_run = engine.start(&large, greedy(10));
    for _ in 0..50 {
        hog.keep_up(&engine);
        engine.steps(1);
    }
    let small = sequence_of(&engine, tenant(3), &[9; 20]);
    let mut run = engine.start(&small, greedy(5));
    assert!(steps_to_first_token(&mut engine, &mut run) <= 3);
    for _ in 0..2000 {
        hog.keep_up(&engine);
        engine.steps(1);
        if let Some(Some(events)) = large_run.try_next()
            && events[0].finished.is_some()
        {
            return;
        }
    }
    panic!("the large request starves");
}

#[test]
fn more_tenants_than_places_take_turns() {
    let config = EngineConfig {
        sequences_running_max: 2,
        ..EngineConfig::default()
    };
    let mut engine = Stepped::new(Scripted::default(), config);
    let jobs: Vec<(Sequence, Run)> = (0..6)
        .map(|i| {
            let sequence = sequence_of(&engine, tenant(i), &[i, 1]);
            let run = engine.start(&sequence, endless());
            (sequence, run)
        })
        .collect();
    engine.steps(1500);
    for (_, mut run) in jobs {
        let tokens = run.try_next().unwrap().unwrap()[0].tokens.len();
        assert!(tokens.abs_diff(500) <= 130, "{tokens} of 500");
    }
}

#[test]
fn a_tenant_has_a_bounded_number_of_sequences_and_the_others_theirs() {
    let config = EngineConfig {
        tenant_sequences_max: 3,
        ..EngineConfig::default()
    };
    let mut engine = Stepped::new(Scripted::default(), config);
    let held: Vec<Sequence> = (0..3).map(|_| engine.sequence(&[1])).collect();
    let error = engine.client.sequence(OWNER, &Account::new()).unwrap_err();
    let EngineError::Quota { what, .. } = error else {
        panic!("{error}");
    };
    assert!(what.contains("3 sequences"), "{what}");
    assert!(held[0].begin_fork().is_err(), "a fork is one more");
    let _other = sequence_of(&engine, tenant(2), &[1]);
    drop(held);
    engine.steps(1);
    engine.sequence(&[1]);
}

#[test]
fn a_tenant_without_a_number_gets_its_part_of_the_blocks_and_room_for_one_long_sequence() {
    for (kv_blocks, percent, expected) in [(100, 50, 50), (100, 1, 25), (100, 100, 100)] {
        let scripted = Scripted {
            kv_blocks,
            context_length: 400,
            ..Scripted::default()
        };
        let config = EngineConfig {
            tenant_kv_percent_max: percent,
            ..EngineConfig::default()
        };
        let mut engine = Stepped::new(scripted, config);
        let owner = Owner {
            kv_blocks_max: u32::MAX,
            ..OWNER
        };
        let _many: Vec<Sequence> = (0..20)
            .map(|i| sequence_of(&engine, owner, &[i; 390]))
            .collect();
        engine.steps(100);
        assert_eq!(engine.client.stats().blocks_held, expected);
    }
}

#[test]
fn a_dropped_run_lets_go_of_its_sequences_at_once() {
    let mut engine = Stepped::new(Scripted::default(), EngineConfig::default());
    let sequence = engine.sequence(&[1; 20]);
    let run = engine.start(&sequence, endless());
    engine.steps(5);
    drop(run);
    assert_eq!(sequence.append([9, 9]), Ok(27));
    let mut again = engine.start(&sequence, greedy(3));
    engine.steps(1);
    let ready = sequence.begin_read(20, 100).unwrap();
    let said = engine.finish(&mut again).remove(0).tokens;
    let tokens = block_on(ready).unwrap();
    assert_eq!(
        tokens[5..7],
        [9, 9],
        "after what was made, and nothing more"
    );
    assert_eq!(said.len(), 3);
    let replayed = engine.sequence(&[&[1; 20][..], &tokens[..7]].concat());
    let mut run = engine.start(&replayed, greedy(3));
    assert_eq!(engine.finish(&mut run)[0].tokens, said);
}

#[test]
fn tokens_are_counted_whether_they_are_read_or_not() {
    let mut engine = Stepped::new(Scripted::default(), EngineConfig::default());
    let account = Account::new();
    let sequence = engine.client.sequence(OWNER, &account).unwrap();
    sequence.append([5; 10]).unwrap();
    let run = engine.start(&sequence, endless());
    engine.steps(4);
    drop(run);
    engine.steps(3);
    let (fork, ready) = sequence.begin_fork().unwrap();
    engine.steps(2);
    block_on(ready).unwrap().unwrap();
    fork.append([6; 2]).unwrap();
    let mut run = engine.start(&fork, greedy(3));
    engine.finish(&mut run);
    drop((run, fork, sequence));
    let expected = Usage {
        prompt: 12,
        cached: 0,
        completion: 7,
    };
    assert_eq!(account.usage(), expected);
    let tenants = engine.client.usage_by_tenant();
    assert_eq!(
        (tenants[0].tenant, tenants[0].prompt, tenants[0].completion),
        (1, 12, 7)
    );
}

#[test]
fn a_busy_sequence_takes_from_the_idle_ones_what_it_needs_and_from_the_least_used() {
    let config = EngineConfig {
        queue_max: 1 << 20,
        tenant_sequences_max: 1 << 20,
        ..EngineConfig::default()
    };
    let scripted = Scripted {
        kv_blocks: 2048,
        ..Scripted::default()
    };
    let mut engine = Stepped::new(scripted, config);
    let owner = Owner {
        kv_blocks_max: u32::MAX,
        ..OWNER
    };
    let _idle: Vec<Sequence> = (0..3000)
        .map(|i| sequence_of(&engine, owner, &[i % 200; 17]))
        .collect();
    engine.steps(400);
    assert_eq!(engine.free(), 0, "the idle ones hold all blocks");
    let busy = sequence_of(&engine, owner, &[3; 40]);
    let mut run = engine.start(&busy, greedy(60));
    engine.finish(&mut run);
    let tables = engine.engine.batch.sequences();
    let with_blocks: Vec<usize> = tables
        .take(3000)
        .enumerate()
        .filter(|(_, sequence)| !sequence.table().is_empty())
        .map(|(index, _)| index)
        .collect();
    let expected: Vec<usize> = (3000 - 2048 + 7..3000).collect();
    assert_eq!(
        with_blocks, expected,
        "the 7 that were used the longest ago"
    );
}

/// Lookups of sequences in each of some decoding steps, beside `idle` sequences that hold tokens.
fn visits_of_steps(idle: u32, kv_blocks: u32) -> Vec<u64> {
    let config = EngineConfig {
        queue_max: 1 << 20,
        tenant_sequences_max: 1 << 20,
        unread_tokens_max: 1 << 20,
        ..EngineConfig::default()
    };
    let scripted = Scripted {
        kv_blocks,
        ..Scripted::default()
    };
    let mut engine = Stepped::new(scripted, config);
    let owner = |number| Owner {
        kv_blocks_max: u32::MAX,
        ..tenant(number)
    };
    let _idle: Vec<Sequence> = (0..idle)
        .map(|i| sequence_of(&engine, owner(i % 250), &[1, 2]))
        .collect();
    engine.steps(1 + idle as usize / 64);
    assert!(!engine.engine.has_work());
    let jobs: Vec<(Sequence, Run)> = (0..64)
        .map(|i| {
            let sequence = sequence_of(&engine, owner(i), &[i, 1, 2]);
            let run = engine.start(&sequence, endless());
            (sequence, run)
        })
        .collect();
    engine.steps(5);
    assert_eq!(engine.client.stats().batch_rows_last, 64);
    let visits = (0..100).map(|_| {
        let before = engine.engine.batch.visits();
        engine.steps(1);
        engine.engine.batch.visits() - before
    });
    let visits = visits.collect();
    drop(jobs);
    visits
}

#[test]
fn a_step_does_not_look_at_the_sequences_that_are_idle() {
    let few = visits_of_steps(0, 32 * 1024);
    assert!(few.iter().all(|&visits| visits >= 64), "{few:?}");
    assert_eq!(visits_of_steps(16_000, 32 * 1024), few);
    // Where the idle ones hold all blocks a step visits those that it takes blocks from.
    let short = visits_of_steps(16_000, 8 * 1024);
    let most = few.iter().max().unwrap() + 64 * 8;
    assert!(short.iter().all(|&visits| visits <= most), "{short:?}");
    assert!(short.iter().sum::<u64>() > few.iter().sum::<u64>());
}
