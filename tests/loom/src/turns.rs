//! Turns at the threads of the kernels.

use crate::Model;
use crate::sync::{Arc, AtomicU32, Ordering};
use crate::turns_source::Turns;

pub(crate) const MODELS: &[Model] = &[Model::new(
    "turns: one at a time, and everybody has one",
    None,
    one_at_a_time,
)];

/// Reads and writes that would lose one of two overlapping changes, or miss one that was not handed over.
fn one_at_a_time() {
    let shared = Arc::new((Turns::default(), AtomicU32::new(0)));
    let turn = |shared: &(Turns, AtomicU32)| {
        let (turns, count) = shared;
        turns.begin();
        let before = count.load(Ordering::Relaxed);
        count.store(before + 1, Ordering::Relaxed);
        turns.end();
    };
    let others: Vec<_> = (0..2)
        .map(|_| {
            let shared = Arc::clone(&shared);
            loom::thread::spawn(move || turn(&shared))
        })
        .collect();
    turn(&shared);
    for other in others {
        other.join().unwrap();
    }
    assert_eq!(shared.1.load(Ordering::Relaxed), 3);
}
