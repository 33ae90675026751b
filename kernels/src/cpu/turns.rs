//! Turns at the threads: models that share them compute one after another, in the order in which they asked.
//!
//! Without, two models would take single operations from each other, and each would find the threads taken for half of its
//! own. A turn lasts a whole step or pass, so it is as short as those are.

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Who is next. First come, first served: whoever has just had a turn queues behind those who wait.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,    // the number that is given out next
    current: u64, // the number whose turn it is
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn of its own.
    pub(crate) fn begin(&self) {
        let mut state = self.lock();
        let own = state.next;
        state.next += 1;
        while state.current != own {
            state = self
                .ended
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn end(&self) {
        self.lock().current += 1;
        self.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn whoever_waits_comes_before_whoever_had_a_turn() {
        let turns = Arc::new(Turns::default());
        let order = Arc::new(Mutex::new(Vec::new()));
        turns.begin();
        let waiting = {
            let (turns, order) = (Arc::clone(&turns), Arc::clone(&order));
            std::thread::spawn(move || {
                turns.begin();
                order.lock().unwrap().push("other");
                turns.end();
            })
        };
        while turns.lock().next < 2 {
            std::thread::yield_now();
        }
        turns.end();
        turns.begin();
        order.lock().unwrap().push("again");
        turns.end();
        waiting.join().unwrap();
        assert_eq!(*order.lock().unwrap(), ["other", "again"]);
    }
}
