//! Every operation on every instruction set of this machine against the reference, and the two promises of `cpu`:
//! batched equals alone and any number of threads gives the same, bit for bit.

use realm_kernels::cpu::{Isa, Precision, Rounding, isas};
use realm_kernels::quant::{BlockType, dequantize};
use realm_kernels::reference::{self, PagedKv};
use realm_kernels::{
    Activation, Activations, AttentionRow, AttentionShape, BLOCK_TOKENS, Cpu, KvLayer, KvType,
    LayerNorm, MatrixView, Rope, RopeLayout,
};
use std::sync::Arc;

/// Against the reference on the same int8 activations: only the order of f32 additions differs.
const NMSE_MAX_SAME_ACTIVATIONS: f64 = 1e-10;
/// Against the reference on f32 activations, for weights that stay f32 sums on both sides.
const NMSE_MAX_FLOAT: f64 = 1e-11;
/// Against the reference on f32 activations: rounding them to int8 in groups of 32, outliers among them. Asked of
/// outputs large enough for the mean to mean something.
const NMSE_MAX_INT8_ACTIVATIONS: f64 = 5e-4;
/// The rounding of an int8 code is rounded to 254 steps again: 4e-9 of the above would be ideal, f32 sums add to it.
const NMSE_MAX_INT16_ACTIVATIONS: f64 = 1e-8;
const OUTPUTS_MIN_INT8: usize = 200;
/// Attention: f32 against f64 on the same f16 keys and values.
const NMSE_MAX_ATTENTION: f64 = 1e-10;
/// Element-wise operations, relative to the larger of 1 and the value.
const ERROR_MAX_ELEMENTWISE: f32 = 4e-6;

/// A small generator, so that a failing case is the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Roughly normal, with now and then an outlier as real activations have.
    fn float(&mut self) -> f32 {
        let sum: f32 = (0..4)
            .map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5)
            .sum();
        if self.next().is_multiple_of(61) {
            sum * 12.0
        } else {
            sum
        }
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    /// Valid blocks: any bytes, but small finite f16 scales.
    fn blocks(&mut self, ty: BlockType, rows: usize, cols: usize) -> Vec<u8> {
        let halves: &[usize] = match ty {
            BlockType::F32 => {
                return self
                    .floats(rows * cols)
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect();
            }
            BlockType::F16 => {
                return self.shorts(rows * cols, |v| half::f16::from_f32(v).to_bits());
            }
            BlockType::BF16 => {
                return self.shorts(rows * cols, |v| half::bf16::from_f32(v).to_bits());
            }
            ty => half_offsets(ty),
        };
        let mut data: Vec<u8> = (0..rows * ty.row_bytes(cols).expect("whole blocks"))
            .map(|_| self.next() as u8)
            .collect();
        for block in data.chunks_exact_mut(ty.block_bytes()) {
            for &at in halves {
                let scale = half::f16::from_f32(self.float() * 0.02).to_le_bytes();
                block[at..at + 2].copy_from_slice(&scale);
            }
            match ty {
                // 2^-12 to 2^-5.
                BlockType::MXFP4 => block[0] = 116 | block[0] & 7,
                // The f16 is in the upper nibbles of four words; an exponent of 2^-9 to 2^-6.
                BlockType::IQ1_M => {
                    block[53] = block[53] & 0x0f | 0x80 & block[53];
                    block[55] = 0x10 | block[55] & 0x8f;
                }
                _ => (),
            }
        }
        data
    }

    fn shorts(&mut self, count: usize, bits: impl Fn(f32) -> u16) -> Vec<u8> {
        (0..count)
            .flat_map(|_| bits(self.float()).to_le_bytes())
            .collect()
    }
}

/// Where a block of this type has its f16 fields.
fn half_offsets(ty: BlockType) -> &'static [usize] {
    match ty {
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => &[0, 2],
        BlockType::Q2_K => &[80, 82],
        BlockType::Q3_K => &[108],
        BlockType::Q6_K => &[208],
        BlockType::TQ1_0 => &[52],
        BlockType::TQ2_0 => &[64],
        BlockType::MXFP4 | BlockType::IQ1_M => &[],
        _ => &[0],
    }
}

fn nmse(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let error: f64 = got
        .iter()
        .zip(want)
        .map(|(&g, &w)| (f64::from(g) - f64::from(w)).powi(2))
        .sum();
    let power: f64 = want.iter().map(|&w| f64::from(w).powi(2)).sum();
    error / power.max(f64::MIN_POSITIVE)
}

fn assert_close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= ERROR_MAX_ELEMENTWISE * w.abs().max(1.0),
            "{what}, element {i}: {g} for {w}"
        );
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

fn quantized(cpu: &Cpu, x: &[f32], cols: usize) -> Activations {
    let mut out = Activations::default();
    cpu.quantize(x, cols, &mut out);
    out
}

fn matmul(cpu: &Cpu, view: MatrixView<'_>, x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / view.cols * view.rows];
    cpu.matmul(&cpu.prepare(view), &quantized(cpu, x, view.cols), &mut out);
    out
}

/// Runs a check on every instruction set, saying which.
fn on_every_isa(check: impl Fn(Isa)) {
    for isa in isas() {
        println!("on {}", isa.name());
        check(isa);
    }
}

/// All of a list; `count` of it, evenly spread, under Miri, which takes some thousand times as long.
fn fewer<T: Copy>(all: &[T], count: usize) -> Vec<T> {
    match cfg!(miri) {
        true => (0..count)
            .map(|i| all[(2 * i + 1) * all.len() / (2 * count)])
            .collect(),
        false => all.to_vec(),
    }
}

#[test]
fn a_nan_spoils_no_more_on_one_instruction_set_than_on_another() {
    let codes_of = |isa| {
        let mut x = vec![0.5; 64];
        x[9] = f32::NAN;
        let weights: Vec<u8> = (0..64).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let view = MatrixView {
            ty: BlockType::F32,
            rows: 1,
            cols: 64,
            data: &weights,
        };
        let cpu = Cpu::with_isa(isa, 1);
        let mut ones = vec![0x11u8; 2 * 18];
        for block in ones.chunks_exact_mut(18) {
            block[..2].copy_from_slice(&half::f16::from_f32(1.0).to_le_bytes());
        }
        let quant = MatrixView {
            ty: BlockType::Q4_0,
            rows: 1,
            cols: 64,
            data: &ones,
        };
        (
            matmul(&cpu, view, &x)[0].is_nan(),
            matmul(&cpu, quant, &x)[0].is_nan(),
        )
    };
    let all: Vec<_> = isas().into_iter().map(codes_of).collect();
    assert!(all.iter().all(|of| *of == all[0]), "{all:?}");
}

#[test]
fn what_the_machine_has_is_run() {
    let names: Vec<_> = isas().iter().map(|isa| isa.name()).collect();
    println!("instruction sets: {names:?}");
    assert_eq!(names[0], "scalar");
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        assert_eq!(
            avx2,
            names.contains(&"avx2"),
            "AVX2 is there and is not run"
        );
        let vnni = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl");
        assert_eq!(
            vnni,
            names.contains(&"avx512-vnni"),
            "AVX-512 VNNI is there and is not run"
        );
    }
    // Every machine and emulator that runs these tests has it; one without would leave NEON untested.
    #[cfg(all(target_arch = "aarch64", target_os = "linux"))]
    assert_eq!(names, ["scalar", "neon-dotprod"]);
}

#[test]
fn matmul_is_the_reference_on_the_same_int8_activations() {
    on_every_isa(|isa| {
        let mut random = Random(1);
        let cpu = Cpu::with_isa(isa, 2);
        for ty in fewer(&BlockType::RUNNABLE, 6) {
            let float = ty.block_len() == 1;
            let shapes: &[(usize, usize)] = match ty.block_len() {
                1 => &[(1, 1), (16, 64), (17, 33), (40, 100)],
                32 => &[(1, 32), (16, 64), (17, 96), (50, 576)],
                64 => &[(1, 64), (17, 192), (50, 576)],
                128 => &[(1, 128), (17, 384), (33, 640)],
                _ => &[(1, 256), (17, 512), (33, 768)],
            };
            for (rows, cols) in fewer(shapes, 1) {
                let data = random.blocks(ty, rows, cols);
                let view = MatrixView {
                    ty,
                    rows,
                    cols,
                    data: &data,
                };
                for count in fewer(&[1, 8, 9, 2, 3, 7, 13], 1) {
                    let x = random.floats(count * cols);
                    let got = matmul(&cpu, view, &x);
                    let what = format!(
                        "{} {rows}x{cols} times {count} on {}",
                        ty.name(),
                        isa.name()
                    );
                    let mut want = vec![0.0; got.len()];
                    reference::matmul(view, &x, &mut want);
                    let error = nmse(&got, &want);
                    if float {
                        assert!(error < NMSE_MAX_FLOAT, "{what}: {error:e}");
                        continue;
                    }
                    let large = got.len() >= OUTPUTS_MIN_INT8;
                    assert!(
                        !large || error < NMSE_MAX_INT8_ACTIVATIONS,
                        "{what}: {error:e}"
                    );
                    let (codes, scales) = reference::quantize(&x);
                    let rounded: Vec<f32> = codes
                        .iter()
                        .enumerate()
                        .map(|(i, &c)| f32::from(c) * scales[i / 32])
                        .collect();
                    reference::matmul(view, &rounded, &mut want);
                    let error = nmse(&got, &want);
                    assert!(error < NMSE_MAX_SAME_ACTIVATIONS, "{what}: {error:e}");
                }
            }
        }
    });
}

#[test]
fn the_largest_codes_and_activations_do_not_overflow() {
    on_every_isa(|isa| {
        let cpu = Cpu::with_isa(isa, 1);
        for ty in BlockType::RUNNABLE {
            // A power of two and a scale in nibbles cannot be set to 1 like the others.
            if ty.block_len() == 1 || half_offsets(ty).is_empty() {
                continue;
            }
            let cols = 256;
            for fill in [0x00, 0x7f, 0x80, 0xff] {
                let mut data = vec![fill; ty.row_bytes(cols).unwrap()];
                for block in data.chunks_exact_mut(ty.block_bytes()) {
                    for &at in half_offsets(ty) {
                        block[at..at + 2].copy_from_slice(&half::f16::from_f32(1.0).to_le_bytes());
                    }
                }
                let view = MatrixView {
                    ty,
                    rows: 1,
                    cols,
                    data: &data,
                };
                for x in [vec![127.0; cols], vec![-127.0; cols]] {
                    let mut want = [0.0];
                    reference::matmul(view, &x, &mut want);
                    let got = matmul(&cpu, view, &x);
                    let bound = want[0].abs().max(1.0) * 1e-5;
                    assert!(
                        (got[0] - want[0]).abs() <= bound,
                        "{} {fill:#x}: {} for {}",
                        ty.name(),
                        got[0],
                        want[0]
                    );
                }
            }
        }
    });
}

#[test]
fn int16_activations_come_close_and_depend_on_nothing_else() {
    on_every_isa(|isa| {
        let mut random = Random(12);
        let cpu = Cpu::with_isa(isa, 2).with_rounding(Rounding::Int16);
        for ty in BlockType::RUNNABLE {
            let (rows, cols, count) = (37, 512, 9);
            let data = random.blocks(ty, rows, cols);
            let view = MatrixView {
                ty,
                rows,
                cols,
                data: &data,
            };
            let x = random.floats(count * cols);
            let mut want = vec![0.0; count * rows];
            reference::matmul(view, &x, &mut want);
            let got = matmul(&cpu, view, &x);
            let (error, what) = (
                nmse(&got, &want),
                format!("{} on {}", ty.name(), isa.name()),
            );
            assert!(error < NMSE_MAX_INT16_ACTIVATIONS, "{what}: {error:e}");
            for threads in [1, 3] {
                let cpu = Cpu::with_isa(isa, threads).with_rounding(Rounding::Int16);
                for (row, x) in x.chunks_exact(cols).enumerate() {
                    let batched = &got[row * rows..(row + 1) * rows];
                    assert!(
                        same_bits(&matmul(&cpu, view, x), batched),
                        "{what}, row {row}"
                    );
                }
            }
        }
    });
}

#[test]
fn mixed_rounding_takes_16_bits_where_it_is_told_only() {
    on_every_isa(|isa| {
        let mut random = Random(13);
        let (rows, cols) = (16, 256);
        let data = random.blocks(BlockType::Q4_K, rows, cols);
        let view = MatrixView {
            ty: BlockType::Q4_K,
            rows,
            cols,
            data: &data,
        };
        let x = random.floats(3 * cols);
        let run = |rounding, mut acts: Activations| {
            let cpu = Cpu::with_isa(isa, 2).with_rounding(rounding);
            let mut out = vec![0.0; 3 * rows];
            cpu.quantize(&x, cols, &mut acts);
            cpu.matmul(&cpu.prepare(view), &acts, &mut out);
            out
        };
        let (int8, int16) = (
            run(
                Rounding::Int8,
                Activations::with_precision(Precision::Int16),
            ),
            run(Rounding::Int16, Activations::default()),
        );
        assert!(!same_bits(&int8, &int16));
        let sensitive = run(
            Rounding::Mixed,
            Activations::with_precision(Precision::Int16),
        );
        let others = run(Rounding::Mixed, Activations::default());
        assert!(same_bits(&sensitive, &int16) && same_bits(&others, &int8));
    });
}

/// Channels a hundred times the others: with them apart the others keep their bits, in every type and on every
/// instruction set, whatever the rows beside and the number of threads.
#[test]
fn channels_apart_leave_the_others_their_bits() {
    on_every_isa(|isa| {
        let mut random = Random(17);
        let channels: Arc<[u32]> = Arc::new([3, 40, 41, 511]);
        let precision = Precision::Int8 {
            apart: Arc::clone(&channels),
            fine: Arc::default(),
        };
        for ty in BlockType::RUNNABLE {
            let (rows, cols, count) = (37, 512, 9);
            let data = random.blocks(ty, rows, cols);
            let view = MatrixView {
                ty,
                rows,
                cols,
                data: &data,
            };
            let mut x = random.floats(count * cols);
            for row in x.chunks_exact_mut(cols) {
                channels.iter().for_each(|&c| row[c as usize] *= 100.0);
            }
            let mut plain = x.clone();
            for row in plain.chunks_exact_mut(cols) {
                channels.iter().for_each(|&c| row[c as usize] = 0.0);
            }
            let reference = |x: &[f32]| {
                let mut want = vec![0.0; count * rows];
                reference::matmul(view, x, &mut want);
                want
            };
            let (want, of_apart) = (
                reference(&x),
                reference(&x)
                    .iter()
                    .zip(reference(&plain))
                    .map(|(a, b)| a - b)
                    .collect::<Vec<f32>>(),
            );
            let run = |threads: usize, x: &[f32]| {
                let cpu = Cpu::with_isa(isa, threads).with_rounding(Rounding::Mixed);
                let w = cpu.with_columns(&cpu.prepare(view), &channels);
                let mut acts = Activations::with_precision(precision.clone());
                cpu.quantize(x, cols, &mut acts);
                let mut out = vec![0.0; x.len() / cols * rows];
                cpu.matmul(&w, &acts, &mut out);
                out
            };
            let got = run(2, &x);
            let what = format!("{} on {}", ty.name(), isa.name());
            // What is left of either when the outliers' share is taken away.
            let rest =
                |y: &[f32]| -> Vec<f32> { y.iter().zip(&of_apart).map(|(y, a)| y - a).collect() };
            let error = nmse(&rest(&got), &rest(&want));
            assert!(error < NMSE_MAX_INT8_ACTIVATIONS, "{what}: {error:e}");
            for threads in [1, 3] {
                for (row, x) in x.chunks_exact(cols).enumerate() {
                    let batched = &got[row * rows..(row + 1) * rows];
                    assert!(same_bits(&run(threads, x), batched), "{what}, row {row}");
                }
            }
        }
    });
}

/// The first, two in the middle and the last group with 16 bits, and all: on every instruction set, in every type, and the
/// same whatever the rows beside, the number of threads and the order in which rows were gathered.
#[test]
fn fine_groups_lose_next_to_nothing() {
    on_every_isa(|isa| {
        let mut random = Random(19);
        for ty in BlockType::RUNNABLE {
            let (rows, cols, count) = (37, 512, 15);
            let data = random.blocks(ty, rows, cols);
            let view = MatrixView {
                ty,
                rows,
                cols,
                data: &data,
            };
            let fine: Arc<[u32]> = Arc::new([0, 6, 7, 15]);
            let mut x = random.floats(count * cols);
            for row in x.chunks_exact_mut(cols) {
                for (channel, x) in row.iter_mut().enumerate() {
                    // What the others are rounded to exactly.
                    if !fine.contains(&(channel as u32 / 32)) {
                        *x = if channel % 2 == 0 { 0.5 } else { -0.5 };
                    }
                }
            }
            let mut want = vec![0.0; count * rows];
            reference::matmul(view, &x, &mut want);
            let precision = Precision::Int8 {
                apart: Arc::default(),
                fine,
            };
            let run = |threads: usize, precision: &Precision, x: &[f32], order: &[u32]| {
                let cpu = Cpu::with_isa(isa, threads).with_rounding(Rounding::Mixed);
                let mut acts = Activations::with_precision(precision.clone());
                cpu.quantize(x, cols, &mut acts);
                let mut gathered = Activations::default();
                gathered.gather(&acts, order);
                let mut out = vec![0.0; order.len() * rows];
                cpu.matmul(&cpu.prepare(view), &gathered, &mut out);
                out
            };
            let order: Vec<u32> = (0..count as u32).rev().collect();
            let what = format!("{} on {}", ty.name(), isa.name());
            let got = run(2, &precision, &x, &order);
            for (row, got) in got.chunks_exact(rows).rev().enumerate() {
                let error = nmse(got, &want[row * rows..][..rows]);
                // Equals cancel out, so that the error is relative to less.
                assert!(
                    error < 4.0 * NMSE_MAX_INT16_ACTIVATIONS,
                    "{what}: {error:e}"
                );
                let alone = run(1, &precision, &x[row * cols..][..cols], &[0]);
                assert!(same_bits(&alone, got), "{what}, row {row}");
            }
            let coarse = run(1, &Precision::default(), &x, &order);
            let same = coarse.iter().zip(&got).filter(|(a, b)| a == b).count();
            let is_float = ty.block_bytes() <= 4;
            assert!(
                if is_float {
                    same == got.len()
                } else {
                    same == 0
                },
                "{what}: {same}"
            );
        }
    });
}

#[test]
fn exact_activations_are_the_reference() {
    on_every_isa(|isa| {
        let mut random = Random(2);
        let cpu = Cpu::with_isa(isa, 2).with_rounding(Rounding::Exact);
        for ty in BlockType::RUNNABLE {
            let (rows, cols, count) = (37, 512, 9);
            let data = random.blocks(ty, rows, cols);
            let view = MatrixView {
                ty,
                rows,
                cols,
                data: &data,
            };
            let x = random.floats(count * cols);
            let mut want = vec![0.0; count * rows];
            reference::matmul(view, &x, &mut want);
            let error = nmse(&matmul(&cpu, view, &x), &want);
            assert!(
                error < NMSE_MAX_FLOAT,
                "{} on {}: {error:e}",
                ty.name(),
                isa.name()
            );
        }
    });
}

#[test]
fn a_row_is_the_same_alone_in_any_batch_and_on_any_threads() {
    on_every_isa(|isa| {
        let mut random = Random(3);
        for ty in BlockType::RUNNABLE {
            let (rows, cols, count) = (83, 512, 21);
            let data = random.blocks(ty, rows, cols);
            let view = MatrixView {
                ty,
                rows,
                cols,
                data: &data,
            };
            let x = random.floats(count * cols);
            let batched = matmul(&Cpu::with_isa(isa, 1), view, &x);
            for threads in [1, 2, 3] {
                let cpu = Cpu::with_isa(isa, threads);
                assert!(
                    same_bits(&matmul(&cpu, view, &x), &batched),
                    "{} on {threads} threads",
                    ty.name()
                );
                for (row, x) in x.chunks_exact(cols).enumerate() {
                    let alone = matmul(&cpu, view, x);
                    let same = same_bits(&alone, &batched[row * rows..(row + 1) * rows]);
                    assert!(
                        same,
                        "{} row {row} on {} with {threads} threads",
                        ty.name(),
                        isa.name()
                    );
                }
            }
        }
    });
}

#[test]
fn matmul_add_adds() {
    on_every_isa(|isa| {
        let mut random = Random(4);
        let cpu = Cpu::with_isa(isa, 2);
        let (ty, rows, cols, count) = (BlockType::Q4_1, 35, 64, 5);
        let data = random.blocks(ty, rows, cols);
        let view = MatrixView {
            ty,
            rows,
            cols,
            data: &data,
        };
        let (x, mut residual) = (random.floats(count * cols), random.floats(count * rows));
        let want: Vec<f32> = residual
            .iter()
            .zip(matmul(&cpu, view, &x))
            .map(|(r, y)| r + y)
            .collect();
        cpu.matmul_add(
            &cpu.prepare(view),
            &quantized(&cpu, &x, cols),
            &mut residual,
        );
        assert!(same_bits(&residual, &want), "on {}", isa.name());
    });
}

#[test]
fn matrices_multiplied_together_give_what_each_gives_alone() {
    on_every_isa(|isa| {
        let mut random = Random(6);
        for (threads, count) in [(1, 1), (2, 3), (3, 40)] {
            let cpu = Cpu::with_isa(isa, threads);
            let cols = 512;
            let x = quantized(&cpu, &random.floats(count * cols), cols);
            let shapes = [
                (BlockType::Q4_K, 700),
                (BlockType::F16, 3),
                (BlockType::Q6_K, 65),
            ];
            let data = shapes.map(|(ty, rows)| random.blocks(ty, rows, cols));
            let matrices: [_; 3] = std::array::from_fn(|i| {
                let (ty, rows) = shapes[i];
                let data = &data[i];
                cpu.prepare(MatrixView {
                    ty,
                    rows,
                    cols,
                    data,
                })
            });
            let mut together = shapes.map(|(_, rows)| vec![0.0; count * rows]);
            let mut alone = together.clone();
            let [a, b, c] = &mut together;
            let products = [
                (&matrices[0], &mut a[..]),
                (&matrices[1], b),
                (&matrices[2], c),
            ];
            cpu.matmul_each(products, &x);
            for ((w, together), alone) in matrices.iter().zip(&together).zip(&mut alone) {
                cpu.matmul(w, &x, alone);
                assert!(same_bits(together, alone), "on {}", isa.name());
            }
        }
    });
}

#[test]
fn embedding_from_a_prepared_table_is_dequantisation_exactly() {
    on_every_isa(|isa| {
        let mut random = Random(5);
        let cpu = Cpu::with_isa(isa, 2);
        for ty in BlockType::RUNNABLE {
            let (rows, cols) = (37, 512);
            let data = random.blocks(ty, rows, cols);
            let view = MatrixView {
                ty,
                rows,
                cols,
                data: &data,
            };
            let table = cpu.prepare(view);
            assert_eq!(
                (table.rows(), table.cols(), table.block_type()),
                (rows, cols, ty)
            );
            let ids = [0, 36, 16, 15, 36];
            let mut got = vec![0.0; ids.len() * cols];
            cpu.embed(&table, &ids, 1.0, &mut got);
            let mut want = vec![0.0; cols];
            for (&id, got) in ids.iter().zip(got.chunks_exact(cols)) {
                dequantize(ty, view.row(id as usize), &mut want);
                assert!(same_bits(got, &want), "{} row {id}", ty.name());
            }
            let mut want = vec![0.0; ids.len() * cols];
            reference::embed(view, &ids, 25.3, &mut want);
            cpu.embed(&table, &ids, 25.3, &mut got);
            assert!(same_bits(&got, &want), "{} scaled", ty.name());
        }
    });
}

#[test]
fn norms_are_the_reference() {
    on_every_isa(|isa| {
        let mut random = Random(6);
        let cpu = Cpu::with_isa(isa, 2);
        for (rows, width) in [(1, 1), (3, 7), (2, 576), (70, 640), (5, 100)] {
            let (x, weight) = (random.floats(rows * width), random.floats(width));
            let mut want = vec![0.0; x.len()];
            reference::rms_norm(&x, &weight, 1e-5, &mut want);
            let mut got = vec![0.0; x.len()];
            cpu.norm(&x, &weight, 1e-5, &mut got);
            assert_close(&got, &want, "norm");

            let residual = random.floats(x.len());
            let mut sum = residual.clone();
            cpu.norm_add(&x, &weight, 1e-5, &mut sum);
            let expected: Vec<f32> = residual.iter().zip(&want).map(|(r, y)| r + y).collect();
            assert_close(&sum, &expected, "norm_add");

            let mut heads = x.clone();
            cpu.qk_norm(&mut heads, width, &weight, 1e-5);
            assert!(same_bits(&heads, &got), "qk_norm");
        }
        let zeros = [0.0; 64];
        let mut got = [1.0; 64];
        cpu.norm(&zeros, &[1.0; 64], 1e-6, &mut got);
        assert_eq!(got, zeros);
    });
}

#[test]
fn the_fused_norm_is_norm_then_quantise() {
    on_every_isa(|isa| {
        let mut random = Random(7);
        let cpu = Cpu::with_isa(isa, 2);
        let (rows, width) = (9, 576);
        let (x, weight) = (random.floats(rows * width), random.floats(width));
        let data = random.blocks(BlockType::Q8_0, 20, width);
        let matrix = cpu.prepare(MatrixView {
            ty: BlockType::Q8_0,
            rows: 20,
            cols: width,
            data: &data,
        });
        let mut normed = vec![0.0; x.len()];
        cpu.norm(&x, &weight, 1e-5, &mut normed);
        let (mut a, mut b) = (vec![0.0; rows * 20], vec![0.0; rows * 20]);
        cpu.matmul(&matrix, &quantized(&cpu, &normed, width), &mut a);
        let mut fused = quantized(&cpu, &random.floats(3000), 3000);
        cpu.norm_quantize(&x, &weight, 1e-5, &mut fused);
        cpu.matmul(&matrix, &fused, &mut b);
        assert!(same_bits(&a, &b), "on {}", isa.name());
    });
}

#[test]
fn layer_norm_is_the_reference() {
    on_every_isa(|isa| {
        let mut random = Random(21);
        let cpu = Cpu::with_isa(isa, 2);
        for (rows, width) in [(1, 1), (3, 7), (2, 384), (70, 640), (5, 96)] {
            let x: Vec<f32> = random
                .floats(rows * width)
                .iter()
                .map(|x| x + 1.5)
                .collect();
            let (weight, bias) = (random.floats(width), random.floats(width));
            let norm = LayerNorm {
                weight: &weight,
                bias: &bias,
                eps: 1e-5,
            };
            let mut want = vec![0.0; x.len()];
            reference::layer_norm(&x, &weight, &bias, 1e-5, &mut want);
            let mut got = vec![0.0; x.len()];
            cpu.layer_norm(&x, norm, &mut got);
            assert_close(&got, &want, "layer_norm");
            if !width.is_multiple_of(32) {
                continue;
            }
            let data = random.blocks(BlockType::Q8_0, 20, width);
            let matrix = cpu.prepare(MatrixView {
                ty: BlockType::Q8_0,
                rows: 20,
                cols: width,
                data: &data,
            });
            let (mut a, mut b) = (vec![0.0; rows * 20], vec![0.0; rows * 20]);
            cpu.matmul(&matrix, &quantized(&cpu, &got, width), &mut a);
            let mut fused = Activations::default();
            cpu.layer_norm_quantize(&x, norm, &mut fused);
            cpu.matmul(&matrix, &fused, &mut b);
            assert!(same_bits(&a, &b), "on {}", isa.name());
        }
    });
}

#[test]
fn what_is_done_to_single_elements_is_the_reference() {
    on_every_isa(|isa| {
        let mut random = Random(22);
        let cpu = Cpu::with_isa(isa, 2);
        for (rows, width) in [(1, 1), (3, 37), (40, 640)] {
            let x: Vec<f32> = random
                .floats(rows * width)
                .iter()
                .map(|x| x * 4.0)
                .collect();
            let of = |f: &dyn Fn(f64) -> f64| -> Vec<f32> {
                x.iter().map(|&x| f(f64::from(x)) as f32).collect()
            };
            let mut got = x.clone();
            cpu.softcap(2.5, width, &mut got);
            assert_close(&got, &of(&|x| reference::softcap(2.5, x)), "softcap");

            let mut got = x.clone();
            cpu.scale(0.3, &mut got);
            assert_close(&got, &of(&|x| x * f64::from(0.3f32)), "scale");

            let y = random.floats(x.len());
            let mut got = y.clone();
            cpu.add_scaled(&x, -1.7, &mut got);
            let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| y + x * -1.7).collect();
            assert_close(&got, &want, "add_scaled");

            let bias = random.floats(width);
            let mut got = x.clone();
            cpu.add_bias(&bias, &mut got);
            let want: Vec<f32> = x
                .chunks(width)
                .flat_map(|x| x.iter().zip(&bias).map(|(x, b)| x + b))
                .collect();
            assert!(same_bits(&got, &want), "add_bias");

            // The activations are seen through an identity matrix.
            let identity: Vec<u8> = (0..width * width)
                .flat_map(|i| f32::to_le_bytes(if i % (width + 1) == 0 { 1.0 } else { 0.0 }))
                .collect();
            let identity = cpu.prepare(MatrixView {
                ty: BlockType::F32,
                rows: width,
                cols: width,
                data: &identity,
            });
            for act in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
                let mut acts = Activations::default();
                cpu.activate_quantize(&x, width, act, &mut acts);
                let mut got = vec![0.0; x.len()];
                cpu.matmul(&identity, &acts, &mut got);
                assert_close(&got, &of(&|x| reference::activate(act, x)), "activate");
            }
        }
    });
}

#[test]
fn gathered_activations_are_those_rows() {
    on_every_isa(|isa| {
        let mut random = Random(23);
        for rounding in [Rounding::Int8, Rounding::Int16, Rounding::Exact] {
            let cpu = Cpu::with_isa(isa, 1).with_rounding(rounding);
            let (width, rows) = (96, [4u32, 0, 2, 2]);
            let x = quantized(&cpu, &random.floats(5 * width), width);
            let data = random.blocks(BlockType::Q4_0, 20, width);
            let matrix = cpu.prepare(MatrixView {
                ty: BlockType::Q4_0,
                rows: 20,
                cols: width,
                data: &data,
            });
            let mut all = vec![0.0; 5 * 20];
            cpu.matmul(&matrix, &x, &mut all);
            let mut gathered = quantized(&cpu, &random.floats(640), 64);
            gathered.gather(&x, &rows);
            let mut some = vec![0.0; rows.len() * 20];
            cpu.matmul(&matrix, &gathered, &mut some);
            for (row, some) in rows.iter().zip(some.chunks(20)) {
                assert!(same_bits(some, &all[*row as usize * 20..][..20]));
            }
        }
    });
}

#[test]
fn rope_is_the_reference() {
    on_every_isa(|isa| {
        let mut random = Random(8);
        let cpu = Cpu::with_isa(isa, 2);
        for layout in [RopeLayout::Adjacent, RopeLayout::HalfSplit] {
            for (head_dim, dims, heads) in [(64, 64, 9), (256, 256, 4), (80, 32, 3), (6, 2, 1)] {
                let factors: Vec<f32> = (0..dims / 2).map(|i| 1.0 + i as f32 / 7.0).collect();
                for factors in [None, Some(factors.as_slice())] {
                    let rope = Rope::new(head_dim, dims, 10_000.0, 0.5, layout, factors);
                    let rope = match factors {
                        None => rope,
                        Some(_) => rope.with_magnitude(1.25),
                    };
                    let positions = [0, 1, 1023, 1024, 8191, 100_000, 3_000_000];
                    let mut got = random.floats(positions.len() * heads * head_dim);
                    let mut want = got.clone();
                    cpu.rope(&mut got, heads, &rope, &positions);
                    reference::rope(&mut want, heads, &rope, &positions);
                    assert_close(&got, &want, "rope");
                }
            }
        }
    });
}

#[test]
fn gate_up_act_is_the_reference() {
    on_every_isa(|isa| {
        let mut random = Random(9);
        for act in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            for (gate_ty, up_ty, width, cols) in [
                (BlockType::Q5_0, BlockType::Q4_1, 96, 64),
                (BlockType::F32, BlockType::F16, 40, 30),
            ] {
                let (rows, outs) = (11, 19);
                let (g, u) = (
                    random.blocks(gate_ty, width, cols),
                    random.blocks(up_ty, width, cols),
                );
                let down = random.blocks(BlockType::F32, outs, width);
                let gate = MatrixView {
                    ty: gate_ty,
                    rows: width,
                    cols,
                    data: &g,
                };
                let up = MatrixView {
                    ty: up_ty,
                    rows: width,
                    cols,
                    data: &u,
                };
                let down = MatrixView {
                    ty: BlockType::F32,
                    rows: outs,
                    cols: width,
                    data: &down,
                };
                let x: Vec<f32> = random.floats(rows * cols).iter().map(|v| v * 3.0).collect();
                let cpu = Cpu::with_isa(isa, 2).with_rounding(Rounding::Exact);
                let mut fused = Activations::default();
                let (gate_ready, up_ready) = (cpu.prepare(gate), cpu.prepare(up));
                let act_in = quantized(&cpu, &x, cols);
                cpu.gate_up_act(
                    &gate_ready,
                    &up_ready,
                    act,
                    &act_in,
                    &mut Vec::new(),
                    &mut fused,
                );
                let mut got = vec![0.0; rows * outs];
                cpu.matmul(&cpu.prepare(down), &fused, &mut got);

                let (mut a, mut b) = (vec![0.0; rows * width], vec![0.0; rows * width]);
                reference::matmul(gate, &x, &mut a);
                reference::matmul(up, &x, &mut b);
                let mut gated = vec![0.0; rows * width];
                reference::gated_act(act, &a, &b, &mut gated);
                let mut want = vec![0.0; rows * outs];
                reference::matmul(down, &gated, &mut want);
                let error = nmse(&got, &want);
                assert!(
                    error < NMSE_MAX_FLOAT,
                    "{act:?} on {}: {error:e}",
                    isa.name()
                );
            }
        }
    });
}

#[test]
fn gate_up_act_quantises_for_the_next_matrix() {
    on_every_isa(|isa| {
        let mut random = Random(10);
        let (width, cols, outs, count) = (96, 64, 20, 9);
        let (g, u) = (
            random.blocks(BlockType::Q4_0, width, cols),
            random.blocks(BlockType::Q4_0, width, cols),
        );
        let d = random.blocks(BlockType::Q8_0, outs, width);
        let x = random.floats(count * cols);
        let run = |cpu: &Cpu, x: &[f32]| {
            let prepare = |rows, cols, ty, data| {
                cpu.prepare(MatrixView {
                    ty,
                    rows,
                    cols,
                    data,
                })
            };
            let gate = prepare(width, cols, BlockType::Q4_0, &g);
            let up = prepare(width, cols, BlockType::Q4_0, &u);
            let down = prepare(outs, width, BlockType::Q8_0, &d);
            let mut fused = Activations::default();
            let (mut tmp, x) = (Vec::new(), quantized(cpu, x, cols));
            cpu.gate_up_act(&gate, &up, Activation::Silu, &x, &mut tmp, &mut fused);
            let mut out = vec![0.0; x.rows() * outs];
            cpu.matmul(&down, &fused, &mut out);
            out
        };
        let int8 = run(&Cpu::with_isa(isa, 2), &x);
        let int16 = run(&Cpu::with_isa(isa, 2).with_rounding(Rounding::Int16), &x);
        let exact = run(&Cpu::with_isa(isa, 2).with_rounding(Rounding::Exact), &x);
        assert!(
            nmse(&int16, &exact) < NMSE_MAX_INT16_ACTIVATIONS,
            "{:e}",
            nmse(&int16, &exact)
        );
        assert!(nmse(&int8, &exact) < 2e-3, "{:e}", nmse(&int8, &exact));
        for threads in [1, 3] {
            let cpu = Cpu::with_isa(isa, threads);
            for (row, x) in x.chunks_exact(cols).enumerate() {
                assert!(
                    same_bits(&run(&cpu, x), &int8[row * outs..(row + 1) * outs]),
                    "row {row}"
                );
            }
        }
    });
}

#[test]
fn gating_two_products_is_gate_up_act_to_the_bit() {
    on_every_isa(|isa| {
        let mut random = Random(31);
        // A width that is no whole panel, so that the last lanes are on their own.
        let (width, cols, rows) = (40, 64, 5);
        let [gate, up] = [(); 2].map(|()| random.blocks(BlockType::F16, width, cols));
        let identity: Vec<u8> = (0..width * width)
            .flat_map(|i| f32::to_le_bytes(if i % (width + 1) == 0 { 1.0 } else { 0.0 }))
            .collect();
        let x = random.floats(rows * cols);
        for act in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            let cpu = Cpu::with_isa(isa, 2);
            let prepare = |ty, rows, cols, data| {
                cpu.prepare(MatrixView {
                    ty,
                    rows,
                    cols,
                    data,
                })
            };
            let [gate, up] = [&gate, &up].map(|data| prepare(BlockType::F16, width, cols, data));
            let identity = prepare(BlockType::F32, width, width, &identity);
            let seen = |acts: &Activations| {
                let mut out = vec![0.0; rows * width];
                cpu.matmul(&identity, acts, &mut out);
                out
            };
            let x = quantized(&cpu, &x, cols);
            let (mut fused, mut apart) = (Activations::default(), Activations::default());
            cpu.gate_up_act(&gate, &up, act, &x, &mut Vec::new(), &mut fused);
            let [mut g, mut u] = [(); 2].map(|()| vec![0.0; rows * width]);
            cpu.matmul_each([(&gate, &mut g), (&up, &mut u)], &x);
            cpu.gate_quantize(&g, &u, width, act, &mut apart);
            assert!(
                same_bits(&seen(&fused), &seen(&apart)),
                "{act:?} on {}",
                isa.name()
            );
        }
    });
}

#[test]
fn zeros_and_tiny_rows_quantise_to_something_finite() {
    on_every_isa(|isa| {
        let cpu = Cpu::with_isa(isa, 1);
        let mut random = Random(11);
        let data = random.blocks(BlockType::Q4_1, 16, 64);
        let view = MatrixView {
            ty: BlockType::Q4_1,
            rows: 16,
            cols: 64,
            data: &data,
        };
        assert_eq!(matmul(&cpu, view, &[0.0; 64]), [0.0; 16]);
        assert!(
            matmul(&cpu, view, &[1e-44; 64])
                .iter()
                .all(|v| v.is_finite())
        );
        // Whatever a broken model computes, the operation ends.
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            matmul(&cpu, view, &[bad; 64]);
        }
    });
}

const KV_TYPES: [KvType; 2] = [KvType::F16, KvType::Q8_0];

/// A row of keys or values as the cache keeps it.
fn kept(row: &[f32], head_dim: usize, ty: KvType) -> Vec<f32> {
    let f16 = |x: f32| half::f16::from_f32(x).to_f32();
    let q8_0 = |group: &[f32]| {
        let scale = f16(group.iter().fold(0f32, |max, x| max.max(x.abs())) / 127.0);
        let code = move |x: &f32| (x / scale).round_ties_even().clamp(-127.0, 127.0) * scale;
        group.iter().map(code).collect::<Vec<f32>>()
    };
    match ty {
        KvType::F16 => row.iter().copied().map(f16).collect(),
        KvType::Q8_0 => row
            .chunks(head_dim)
            .flat_map(|head| head.chunks(32).flat_map(q8_0))
            .collect(),
    }
}

/// A layer with scattered blocks: tables, keys and values as they are kept and as the reference wants them, and the layer.
struct Cache {
    tables: Vec<Vec<u32>>,
    keys: Vec<f32>,
    values: Vec<f32>,
    layer: KvLayer,
}

fn cache(
    random: &mut Random,
    cpu: &Cpu,
    shape: &AttentionShape,
    ty: KvType,
    lengths: &[usize],
) -> Cache {
    let width = shape.kv_heads * shape.head_dim;
    let needed: usize = lengths.iter().map(|n| n.div_ceil(BLOCK_TOKENS)).sum();
    let blocks = needed + 3;
    // Blocks are handed out backwards, the sequences' in turn.
    let mut free: Vec<u32> = (0..blocks as u32).collect();
    let mut tables = vec![Vec::new(); lengths.len()];
    while tables
        .iter()
        .zip(lengths)
        .any(|(t, n)| t.len() < n.div_ceil(BLOCK_TOKENS))
    {
        for (table, length) in tables.iter_mut().zip(lengths) {
            if table.len() < length.div_ceil(BLOCK_TOKENS) {
                table.push(free.pop().expect("blocks were counted"));
            }
        }
    }
    let mut layer = KvLayer::new(blocks, shape.kv_heads, shape.head_dim, ty);
    let mut keys = vec![f32::NAN; blocks * BLOCK_TOKENS * width];
    let mut values = keys.clone();
    for (table, &length) in tables.iter().zip(lengths) {
        let slots: Vec<u32> = (0..length)
            .map(|p| table[p / BLOCK_TOKENS] * 16 + (p % BLOCK_TOKENS) as u32)
            .collect();
        let (k, v) = (random.floats(length * width), random.floats(length * width));
        cpu.kv_write(&k, &v, &mut layer, &slots);
        for (i, &slot) in slots.iter().enumerate() {
            let (from, to) = (i * width..(i + 1) * width, slot as usize * width);
            keys[to..to + width].copy_from_slice(&kept(&k[from.clone()], shape.head_dim, ty));
            values[to..to + width].copy_from_slice(&kept(&v[from], shape.head_dim, ty));
        }
    }
    Cache {
        tables,
        keys,
        values,
        layer,
    }
}

#[test]
fn attention_is_the_reference() {
    let shape = |heads, kv_heads, head_dim, window, softcap| AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window,
        softcap,
    };
    let shapes = [
        shape(9, 3, 64, None, None),
        shape(4, 1, 256, Some(20), None),
        shape(4, 4, 16, None, Some(30.0)),
        shape(12, 2, 40, Some(1), Some(2.0)),
        shape(5, 1, 7, Some(33), None),
    ];
    on_every_isa(|isa| {
        let mut random = Random(12);
        for (shape, ty) in fewer(&shapes, 1)
            .iter()
            .flat_map(|shape| KV_TYPES.map(|ty| (shape, ty)))
        {
            let cpu = Cpu::with_isa(isa, 2);
            let cache = cache(&mut random, &cpu, shape, ty, &[1, 16, 175]);
            let tables: Vec<&[u32]> = cache.tables.iter().map(Vec::as_slice).collect();
            let rows: Vec<AttentionRow> = [
                (2, 0),
                (0, 0),
                (2, 74),
                (1, 15),
                (2, 15),
                (2, 16),
                (1, 7),
                (2, 48),
                (2, 174),
                (2, 63),
                (2, 64),
            ]
            .into_iter()
            // And a prompt's run of rows across blocks.
            .chain((40..71).map(|position| (2, position)))
            .map(|(table, position)| AttentionRow { table, position })
            .collect();
            let width = shape.heads * shape.head_dim;
            let q: Vec<f32> = random
                .floats(rows.len() * width)
                .iter()
                .map(|v| v * 3.0)
                .collect();
            let mut want = vec![0.0; q.len()];
            let kv = PagedKv {
                keys: &cache.keys,
                values: &cache.values,
            };
            reference::attention(&q, &kv, &rows, &tables, shape, &mut want);
            let mut got = vec![f32::NAN; q.len()];
            cpu.attention(&q, &cache.layer, &rows, &tables, shape, &mut got);
            let error = nmse(&got, &want);
            assert!(
                error < NMSE_MAX_ATTENTION,
                "{shape:?} {ty:?} on {}: {error:e}",
                isa.name()
            );

            for threads in [1, 3] {
                let cpu = Cpu::with_isa(isa, threads);
                for (i, row) in rows.iter().enumerate() {
                    let (range, mut alone) = (i * width..(i + 1) * width, vec![0.0; width]);
                    cpu.attention(
                        &q[range.clone()],
                        &cache.layer,
                        &[*row],
                        &tables,
                        shape,
                        &mut alone,
                    );
                    assert!(
                        same_bits(&alone, &got[range]),
                        "{shape:?} {ty:?} row {i} on {}",
                        isa.name()
                    );
                }
            }
        }
    });
}

#[test]
fn a_copied_block_serves_as_the_original_does() {
    let shape = AttentionShape {
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        scale: 0.2,
        window: None,
        softcap: None,
    };
    on_every_isa(|isa| {
        for ty in KV_TYPES {
            let mut random = Random(13);
            let cpu = Cpu::with_isa(isa, 1);
            let mut cache = cache(&mut random, &cpu, &shape, ty, &[30]);
            let fork = [cache.tables[0][0], 0];
            cache.layer.copy_block(cache.tables[0][1], 0);
            let q = random.floats(64);
            let row = [AttentionRow {
                table: 0,
                position: 29,
            }];
            let (mut a, mut b) = (vec![0.0; 64], vec![0.0; 64]);
            cpu.attention(&q, &cache.layer, &row, &[&cache.tables[0]], &shape, &mut a);
            cpu.attention(&q, &cache.layer, &row, &[&fork], &shape, &mut b);
            assert!(same_bits(&a, &b), "{ty:?}");
        }
    });
}

#[test]
fn an_exported_block_serves_in_another_cache_as_the_original_does() {
    let shape = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 40,
        scale: 0.2,
        window: None,
        softcap: None,
    };
    on_every_isa(|isa| {
        for ty in KV_TYPES {
            let mut random = Random(14);
            let cpu = Cpu::with_isa(isa, 1);
            let cache = cache(&mut random, &cpu, &shape, ty, &[30]);
            let bytes: Vec<Vec<u8>> = cache.tables[0]
                .iter()
                .map(|&block| {
                    let mut bytes = vec![7];
                    cache.layer.export_block(block, &mut bytes);
                    bytes.split_off(1)
                })
                .collect();
            let block_bytes = KvLayer::block_bytes(shape.kv_heads, shape.head_dim, ty);
            assert!(bytes.iter().all(|bytes| bytes.len() == block_bytes));
            let mut other = KvLayer::new(5, shape.kv_heads, shape.head_dim, ty);
            other.import_block(4, &bytes[0]);
            other.import_block(1, &bytes[1]);
            let q = random.floats(160);
            let row = [AttentionRow {
                table: 0,
                position: 29,
            }];
            let (mut a, mut b) = (vec![0.0; 160], vec![0.0; 160]);
            cpu.attention(&q, &cache.layer, &row, &[&cache.tables[0]], &shape, &mut a);
            cpu.attention(&q, &other, &row, &[&[4, 1]], &shape, &mut b);
            assert!(same_bits(&a, &b), "{ty:?}");
        }
    });
}
