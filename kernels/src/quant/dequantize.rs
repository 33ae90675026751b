//! Blocks back to f32, exactly as the format's authority (gguf-py `quants.py`) computes them, bit for bit.

use super::{BlockType, GROUP, GroupCodes, coding};
use half::{bf16, f16};

/// Writes the values of the blocks in `src` to `dst`.
///
/// - `src`: whole blocks of `ty`; `dst`: as many elements as they hold.
///
/// # Panics
/// When `ty` is not [runnable](BlockType::is_runnable) or the lengths do not match: a file was checked before it came here.
pub fn dequantize(ty: BlockType, src: &[u8], dst: &mut [f32]) {
    assert!(
        ty.is_runnable(),
        "there is no way to dequantise weights of type {}",
        ty.name()
    );
    assert_eq!(
        Some(src.len()),
        ty.row_bytes(dst.len()),
        "{} bytes of {} do not make {} elements",
        src.len(),
        ty.name(),
        dst.len()
    );
    match ty {
        BlockType::F32 => {
            for (out, b) in dst.iter_mut().zip(src.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*b);
            }
        }
        BlockType::F16 => {
            for (out, b) in dst.iter_mut().zip(src.as_chunks::<2>().0) {
                *out = f16::from_le_bytes(*b).to_f32();
            }
        }
        BlockType::BF16 => {
            for (out, b) in dst.iter_mut().zip(src.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*b).to_f32();
            }
        }
        _ => {
            let coding = coding(ty).expect("a runnable type is a float type or has a coding");
            for (index, out) in dst.chunks_exact_mut(GROUP).enumerate() {
                out.copy_from_slice(&GroupCodes::read(ty, src, index).values(coding));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_made_q4_1_block() {
        let mut block = vec![0x00, 0x3c, 0x00, 0xc0]; // scale 1, min -2
        block.extend(std::iter::repeat_n(0x5a, 16));
        let mut out = [0.0; 32];
        dequantize(BlockType::Q4_1, &block, &mut out);
        assert!(out[..16].iter().all(|&v| v == 8.0));
        assert!(out[16..].iter().all(|&v| v == 3.0));
    }

    #[test]
    #[should_panic(expected = "no way to dequantise")]
    fn a_type_that_is_only_recognised_is_our_own_misuse() {
        dequantize(BlockType::NVFP4, &[0; 36], &mut [0.0; 64]);
    }
}
