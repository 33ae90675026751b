//! Speed of the matrix operation: `cargo run --release -p realm-kernels --example matmul_speed [-- FILTER [THREADS]]`.
//!
//! Prints GB/s of weights read and GOP/s (two operations a multiplication) for each instruction set, block type, shape and
//! number of rows whose line contains FILTER, from the fastest of several runs, and the median's time beside it. On a shared
//! machine compare lines of one run.

use realm_kernels::cpu::isas;
use realm_kernels::quant::BlockType;
use realm_kernels::{Activations, Cpu, MatrixView};
use std::time::{Duration, Instant};

/// Rows and columns of the matrices of a 135M model.
const SHAPES: [(usize, usize); 4] = [(576, 576), (1536, 576), (576, 1536), (49152, 576)];
/// Time spent on a line.
const BUDGET: Duration = Duration::from_millis(60);

fn main() {
    let mut args = std::env::args().skip(1);
    let filter = args.next().unwrap_or_default();
    let threads = args.next().and_then(|t| t.parse().ok()).unwrap_or(2);
    for isa in isas() {
        let cpu = Cpu::with_isa(isa, threads);
        for ty in BlockType::RUNNABLE {
            for (rows, cols) in SHAPES {
                for count in [1, 8, 32, 256] {
                    let name = format!(
                        "{:12} {:5} {rows:5}x{cols:<4} x{count:<3}",
                        isa.name(),
                        ty.name()
                    );
                    if name.contains(&filter) && ty.row_bytes(cols).is_some() {
                        measure(&cpu, &name, ty, rows, cols, count);
                    }
                }
            }
        }
    }
}

fn measure(cpu: &Cpu, name: &str, ty: BlockType, rows: usize, cols: usize, count: usize) {
    let data = vec![0x11; rows * ty.row_bytes(cols).expect("the caller looked")];
    let matrix = cpu.prepare(MatrixView {
        ty,
        rows,
        cols,
        data: &data,
    });
    let x: Vec<f32> = (0..count * cols).map(|i| (i as f32).sin()).collect();
    let mut activations = Activations::default();
    cpu.quantize(&x, cols, &mut activations);
    let mut out = vec![0.0; count * rows];
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < BUDGET || times.len() < 3 {
        let run = Instant::now();
        cpu.matmul(&matrix, &activations, &mut out);
        times.push(run.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let (seconds, median) = (times[0], times[times.len() / 2]);
    let operations = 2.0 * (rows * cols * count) as f64;
    println!(
        "{name} {:8.1} µs (median {:8.1}) {:7.2} GB/s {:8.1} GOP/s",
        seconds * 1e6,
        median * 1e6,
        matrix.bytes() as f64 / seconds / 1e9,
        operations / seconds / 1e9
    );
}
