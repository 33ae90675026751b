//! What a sandbox is made with.

use crate::engine_config::MEMORY_BYTES_CEILING;
use crate::{Limits, SandboxError};
use std::path::PathBuf;

/// What a sandbox is made with.
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// The defaults; a tenant carries its own.
    pub limits: Limits,
    /// Where components are compiled.
    pub compiler: Compiler,
    /// Authenticates artifacts, which the host runs as native code.
    pub cache_key: [u8; 32],
    /// How many components may run at once; one more is [`CallError::Busy`](crate::CallError::Busy).
    pub instances_max: u32,
    /// How often a running component is looked at: the grain of CPU budgets and of hang-ups, and how long each of those that
    /// compute keeps a thread from the connections.
    pub epoch_tick_ms: u64,
}

impl Default for SandboxConfig {
    /// Compiles in this process, with a key of zeros: for tests. A server sets both.
    fn default() -> SandboxConfig {
        SandboxConfig {
            limits: Limits::default(),
            compiler: Compiler::InProcess,
            cache_key: [0; 32],
            instances_max: 128,
            epoch_tick_ms: 1,
        }
    }
}

impl SandboxConfig {
    pub(crate) fn check(&self) -> Result<(), SandboxError> {
        let wrong = |what: String| Err(SandboxError::Config(what));
        if self.instances_max == 0 || self.instances_max > 4096 {
            return wrong(format!(
                "instances_max is {} and must be from 1 to 4096",
                self.instances_max
            ));
        }
        if self.epoch_tick_ms == 0 || self.epoch_tick_ms > 1000 {
            return wrong(format!(
                "epoch_tick_ms is {} and must be from 1 to 1000",
                self.epoch_tick_ms
            ));
        }
        if self.limits.memory_bytes_max > MEMORY_BYTES_CEILING {
            return wrong(format!(
                "memory_bytes_max is {} and can be {MEMORY_BYTES_CEILING} at most",
                self.limits.memory_bytes_max
            ));
        }
        Ok(())
    }
}

/// Where components are compiled. Compiling is the one step whose cost a hostile component decides.
#[derive(Clone, Debug)]
pub enum Compiler {
    /// A process that limits itself and is killed when it takes too long.
    Child {
        /// A program that ends up in [`compile_worker_main`](crate::compile_worker_main).
        program: PathBuf,
        /// What it needs to get there.
        args: Vec<String>,
        /// Its address space.
        memory_bytes_max: u64,
        /// Its time on the clock, and on the processor.
        wall_ms_max: u64,
    },
    /// On a thread of this process, without limits: for tests and trusted components.
    InProcess,
}
