"""Makes tests/vectors/<TYPE>.bin: random blocks and what gguf-py, an independent implementation, reads from them.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install gguf && /tmp/v/bin/python kernels/tests/vectors.py

A file is: u32 bytes of blocks, the blocks, then the f32 values (all little-endian).
"""
import pathlib
import struct

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

# Offsets of the f16 fields of a block; the other bytes may be anything.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.TQ1_0: [52], T.TQ2_0: [64], T.MXFP4: [], T.IQ4_NL: [0], T.IQ4_XS: [0],
    T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0], T.IQ1_S: [0], T.IQ1_M: [],
}
rng = np.random.default_rng(2)
folder = pathlib.Path(__file__).parent / "vectors"
folder.mkdir(exist_ok=True)


def write(name, blocks, values):
    data = blocks.tobytes()
    (folder / f"{name}.bin").write_bytes(struct.pack("<I", len(data)) + data + values.astype("<f4").tobytes())


for ty, halves in HALVES.items():
    length, size = GGML_QUANT_SIZES[ty]
    blocks = rng.integers(0, 256, (max(4, 64 // length), size), dtype=np.uint8)
    for at in halves:
        scale = (rng.standard_normal(len(blocks)) * 0.1).astype("<f2")
        blocks[:, at:at + 2] = scale.view(np.uint8).reshape(-1, 2)
    if ty is T.IQ1_M:  # the f16 scale is in the upper nibbles of four words; keep it finite
        blocks[:, 55] &= 0xBF
    if ty is T.MXFP4:  # every exponent there is
        blocks = rng.integers(0, 256, (256, size), dtype=np.uint8)
        blocks[:, 0] = np.arange(256)
    write(ty.name, blocks, dequantize(blocks, ty).reshape(-1))


def plain_codes(bits, length):
    """Q1_0 and Q2_0, which gguf-py lacks, from their layout: f16 scale, then codes of `bits` bits, lowest bits first."""
    scale = (rng.standard_normal(4) * 0.1).astype("<f2")
    codes = rng.integers(0, 1 << bits, (4, length), dtype=np.uint8)
    packed = np.zeros((4, length * bits // 8), np.uint8)
    for i in range(length):
        packed[:, i * bits // 8] |= codes[:, i] << (i * bits % 8)
    levels = codes.astype(np.float32) * 2 - 1 if bits == 1 else codes.astype(np.float32) - 1
    blocks = np.concatenate([scale.view(np.uint8).reshape(4, 2), packed], axis=1)
    return blocks, (scale.astype(np.float32)[:, None] * levels).reshape(-1)


write("Q1_0", *plain_codes(1, 128))
write("Q2_0", *plain_codes(2, 64))

plain = rng.standard_normal(48).astype(np.float32)
write("F32", plain, plain)
write("F16", plain.astype("<f2"), plain.astype("<f2").astype(np.float32))
top = (plain.view(np.uint32) >> 16).astype("<u2")
write("BF16", top, (top.astype(np.uint32) << 16).view(np.float32))
