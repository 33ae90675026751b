//! Places where threads meet, under [loom]: each model below is run once for every order in which its threads can go and for
//! every value that the memory model lets them read. A deadlock, a race and a failed assertion end the program with the
//! first order that leads there.
//!
//! The sources are the real ones. What they take from `crate::sync` is the standard library's where they live and loom's
//! here, so that no other crate has to know of loom. `cargo xtask loom` runs all models, `cargo xtask loom NAME` some.

#![allow(clippy::unwrap_used, reason = "in a model it is an assertion")]

mod inbox;
mod pool;
mod sync;
mod turns;

#[path = "../../../kernels/src/cpu/threads.rs"]
mod pool_source;
#[path = "../../../host/engine/src/inbox/queue.rs"]
mod queue_source;
#[path = "../../../kernels/src/cpu/turns.rs"]
mod turns_source;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// As much of the engine's errors as its queue gives.
mod error {
    #[derive(Debug, PartialEq)]
    pub(crate) enum EngineError {
        Overloaded,
        Stopped,
    }

    pub(crate) const OVERLOADED: EngineError = EngineError::Overloaded;
}

/// A few threads and what must hold of them.
#[derive(Clone, Copy)]
struct Model {
    name: &'static str,
    /// How often a thread may lose its processor where it could have gone on; without a bound every order is tried. Nearly
    /// all known bugs of this kind need two such places or fewer.
    preemptions: Option<usize>,
    body: fn(),
}

impl Model {
    const fn new(name: &'static str, preemptions: Option<usize>, body: fn()) -> Model {
        Model {
            name,
            preemptions,
            body,
        }
    }

    /// Runs every order; how many there were.
    fn check(&self) -> u64 {
        let orders = Arc::new(AtomicU64::new(0));
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = self.preemptions;
        let (body, counted) = (self.body, Arc::clone(&orders));
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            body();
        });
        orders.load(Ordering::Relaxed)
    }
}

fn main() -> ExitCode {
    let part = std::env::args().nth(1).unwrap_or_default();
    let models = [pool::MODELS, turns::MODELS, inbox::MODELS].concat();
    let chosen = models.iter().filter(|model| model.name.contains(&part));
    let mut checked = 0;
    for model in chosen {
        println!("{} ...", model.name);
        let orders = model.check();
        assert!(orders > 1, "threads that meet nowhere: nothing was checked");
        println!("{}: holds in {orders} orders", model.name);
        checked += 1;
    }
    if checked == 0 {
        eprintln!("no model's name contains '{part}'");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
