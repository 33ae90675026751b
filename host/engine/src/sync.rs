//! What callers and the engine's thread meet at: the standard library's, named here, so that `tests/loom` can build the same
//! source with loom's in their place and try every interleaving.

pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
