//! Every runnable block type against vectors made by an independent implementation (`vectors.py`), bit for bit.

use realm_kernels::quant::{BlockType, dequantize};
use std::path::Path;

#[test]
fn blocks_read_as_the_formats_authority_reads_them() {
    let folder = Path::new("tests/vectors");
    for ty in BlockType::RUNNABLE {
        let file = std::fs::read(folder.join(format!("{}.bin", ty.name())))
            .expect("vectors are committed");
        let (size, rest) = file.split_first_chunk::<4>().unwrap();
        let (blocks, values) = rest.split_at(u32::from_le_bytes(*size) as usize);
        let expected: Vec<u32> = values
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| u32::from_le_bytes(*b))
            .collect();
        assert!(!expected.is_empty());
        let mut out = vec![0.0; expected.len()];
        dequantize(ty, blocks, &mut out);
        for (i, (got, want)) in out.iter().zip(&expected).enumerate() {
            assert_eq!(
                got.to_bits(),
                *want,
                "{} element {i}: {got} for {}",
                ty.name(),
                f32::from_bits(*want)
            );
        }
    }
}
