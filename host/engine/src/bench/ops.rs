//! The time of every operation of a step, by operation and shape of its weights.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use realm_kernels::cpu::{Op, Unit, Watcher, Weights};

use crate::clock::{Clock, SystemClock};

/// Where the time of some steps went.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Steps that were run.
    pub steps: u64,
    /// Seconds of all of them.
    pub seconds: f64,
    /// The operations, in the order of their first call.
    pub ops: Vec<OpTime>,
}

/// All calls of one operation with weights of one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct OpTime {
    /// Which operation.
    pub name: &'static str,
    /// The weights it multiplies with.
    pub weights: Option<Weights>,
    /// What its multiplications work on.
    pub unit: Unit,
    /// How often it was called.
    pub calls: u64,
    /// Seconds of all calls.
    pub seconds: f64,
    /// Bytes all calls had to move; see [`Op`].
    pub bytes: u64,
    /// Multiplications and additions of all calls.
    pub arithmetic: u64,
}

impl Profile {
    /// Seconds inside operations; the rest is laying out the batch and choosing tokens.
    pub fn seconds_in_ops(&self) -> f64 {
        self.ops.iter().map(|op| op.seconds).sum()
    }

    /// Bytes of weights that all steps read.
    pub fn weight_bytes(&self) -> u64 {
        let with_weights = self.ops.iter().filter(|op| op.weights.is_some());
        with_weights.map(|op| op.bytes).sum()
    }

    /// Operations of all steps.
    pub fn calls(&self) -> u64 {
        self.ops.iter().map(|op| op.calls).sum()
    }
}

/// Adds up operations while it is on. The executor's thread is the only one that calls operations.
pub(super) struct Recorder {
    clock: Arc<SystemClock>,
    is_on: AtomicBool,
    record: Mutex<Record>,
}

#[derive(Default)]
struct Record {
    begun: Duration,
    ops: Vec<OpTime>,
}

impl Recorder {
    pub(super) fn new(clock: Arc<SystemClock>) -> Recorder {
        Recorder {
            clock,
            is_on: AtomicBool::new(false),
            record: Mutex::default(),
        }
    }

    pub(super) fn start(&self) {
        self.with(|record| record.ops.clear());
        self.is_on.store(true, Ordering::Relaxed);
    }

    pub(super) fn finish(&self, total: Duration, steps: u64) -> Profile {
        self.is_on.store(false, Ordering::Relaxed);
        Profile {
            steps,
            seconds: total.as_secs_f64(),
            ops: self.with(|record| std::mem::take(&mut record.ops)),
        }
    }

    fn with<T>(&self, use_record: impl FnOnce(&mut Record) -> T) -> T {
        use_record(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Watcher for Recorder {
    fn begins(&self) {
        if self.is_on.load(Ordering::Relaxed) {
            self.with(|record| record.begun = self.clock.now());
        }
    }

    fn ends(&self, op: &Op) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        let now = self.clock.now();
        self.with(|record| {
            let seconds = (now - record.begun).as_secs_f64();
            let known = record
                .ops
                .iter_mut()
                .find(|known| known.name == op.name && known.weights == op.weights);
            match known {
                Some(known) => {
                    known.calls += 1;
                    known.seconds += seconds;
                    known.bytes += op.bytes;
                    known.arithmetic += op.arithmetic;
                }
                None => record.ops.push(OpTime {
                    name: op.name,
                    weights: op.weights,
                    unit: op.unit,
                    calls: 1,
                    seconds,
                    bytes: op.bytes,
                    arithmetic: op.arithmetic,
                }),
            }
        });
    }
}
