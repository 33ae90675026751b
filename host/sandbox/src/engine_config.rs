//! How wasmtime is set up: the smallest surface that runs components, every resource bounded, interruptible.
//!
//! Artifacts are compiled and run under the same settings; only the pool is the runner's alone.

use std::num::NonZeroUsize;
use wasmtime::{Config, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, Strategy};

/// The most linear memory a component can be given, and the address space of one memory in the pool. Far below the
/// 4 GiB a guard region could stand in for, so that compiled code checks its bounds, and does it without speculation.
pub(crate) const MEMORY_BYTES_CEILING: usize = 256 << 20;

/// Core instances, memories and tables of one component. A component of one module has up to three core instances:
/// itself, and two that the encoder adds to tie it to its imports.
const CORE_INSTANCES_PER_COMPONENT: u32 = 8;
const MEMORIES_PER_COMPONENT: u32 = 2;
const TABLES_PER_COMPONENT: u32 = 4;
/// A tenant's limit may be smaller; the pool cannot give more.
const TABLE_ELEMENTS_CEILING: usize = 100_000;

/// Components recurse to this depth; the rest of the stack is for the host functions they call.
const WASM_STACK_BYTES: usize = 512 << 10;
const STACK_BYTES: usize = 2 << 20;

/// Frames of a trap that are looked at: enough to tell a recursion from a call.
pub(crate) const BACKTRACE_FRAMES: usize = 64;

/// What compiler and runner share.
fn common() -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .wasm_component_model(true)
        // One call, one store, no concurrency inside: sync functions suspend the fiber.
        .concurrency_support(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_relaxed_simd(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false)
        .epoch_interruption(true)
        .wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES))
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(STACK_BYTES)
        // A stack is reused by the next tenant.
        .async_stack_zeroing(true)
        .memory_reservation(MEMORY_BYTES_CEILING as u64)
        .memory_guard_size(64 << 10)
        .memory_may_move(false)
        .memory_init_cow(true);
    config
}

/// For the compile worker: one thread, so that its limits mean the same on every machine.
pub(crate) fn compiler() -> Config {
    let mut config = common();
    config.parallel_compilation(false);
    config
}

/// For running: everything an instance needs comes from a pool that is reserved at the start.
pub(crate) fn runner(instances_max: u32) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances_max)
        .total_core_instances(instances_max * CORE_INSTANCES_PER_COMPONENT)
        .total_memories(instances_max * MEMORIES_PER_COMPONENT)
        .total_tables(instances_max * TABLES_PER_COMPONENT)
        .total_stacks(instances_max)
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT)
        .max_memories_per_component(MEMORIES_PER_COMPONENT)
        .max_tables_per_component(TABLES_PER_COMPONENT)
        .max_component_instance_size(1 << 20)
        .max_core_instance_size(1 << 20)
        .max_memories_per_module(1)
        .max_tables_per_module(TABLES_PER_COMPONENT)
        .table_elements(TABLE_ELEMENTS_CEILING)
        .max_memory_size(MEMORY_BYTES_CEILING);
    let mut config = common();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}
