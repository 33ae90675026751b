//! Who holds which block of the KV cache. Accounting only: the keys and values are the executor's.

mod block_pool;
mod block_table;

pub(crate) use block_pool::BlockPool;
pub(crate) use block_table::{BlockTable, blocks_for};
