//! Random blocks of any type that are valid weights: finite and about as large as those of real models.

use std::collections::HashMap;
use std::io::{self, Write};

use realm_kernels::quant::{BlockType, dequantize};

use crate::sampler::Rng;

/// Different blocks of a type; every matrix is made of these, drawn anew for each place.
const POOL: usize = 1024;
/// Blocks written at once.
const CHUNK: usize = 4096;
/// What the largest weight of a block may be. Norms keep the activations in bounds, whatever the weights.
const LARGEST: std::ops::RangeInclusive<f32> = 0.004..=0.08;

/// A pool of blocks for every type that was asked for.
pub(super) struct Blocks {
    random: Rng,
    pools: HashMap<BlockType, Vec<u8>>,
}

impl Blocks {
    pub(super) fn new(seed: u64) -> Blocks {
        Blocks {
            random: Rng::new(seed),
            pools: HashMap::new(),
        }
    }

    /// Writes `bytes` bytes of blocks.
    pub(super) fn write(
        &mut self,
        ty: BlockType,
        bytes: usize,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let Blocks { random, pools } = self;
        let pool = pools.entry(ty).or_insert_with(|| fill_pool(ty, random));
        let size = ty.block_bytes();
        let mut left = bytes / size;
        let mut chunk = Vec::with_capacity(CHUNK * size);
        while left > 0 {
            let count = left.min(CHUNK);
            chunk.clear();
            for _ in 0..count {
                let index = random.next_u64() as usize % POOL;
                chunk.extend_from_slice(&pool[index * size..(index + 1) * size]);
            }
            out.write_all(&chunk)?;
            left -= count;
        }
        Ok(())
    }
}

/// Any bytes, as long as they mean weights of a usual size. That needs no knowledge of where in a block its scales are.
fn fill_pool(ty: BlockType, random: &mut Rng) -> Vec<u8> {
    let mut pool = Vec::with_capacity(POOL * ty.block_bytes());
    let mut block = vec![0; ty.block_bytes()];
    let mut values = vec![0.0; ty.block_len()];
    while pool.len() < POOL * ty.block_bytes() {
        for bytes in block.chunks_mut(8) {
            bytes.copy_from_slice(&random.next_u64().to_le_bytes()[..bytes.len()]);
        }
        dequantize(ty, &block, &mut values);
        let largest = values.iter().fold(0f32, |max, value| max.max(value.abs()));
        // `max` passes over what is no number.
        if LARGEST.contains(&largest) && values.iter().all(|value| value.is_finite()) {
            pool.extend_from_slice(&block);
        }
    }
    pool
}
