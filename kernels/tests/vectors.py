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
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
rng = np.random.default_rng(2)
folder = pathlib.Path(__file__).parent / "vectors"
folder.mkdir(exist_ok=True)


def write(name, blocks, values):
    data = blocks.tobytes()
    (folder / f"{name}.bin").write_bytes(struct.pack("<I", len(data)) + data + values.astype("<f4").tobytes())


for ty, halves in HALVES.items():
    length, size = GGML_QUANT_SIZES[ty]
    blocks = rng.integers(0, 256, (max(1, 64 // length), size), dtype=np.uint8)
    for at in halves:
        scale = (rng.standard_normal(len(blocks)) * 0.1).astype("<f2")
        blocks[:, at:at + 2] = scale.view(np.uint8).reshape(-1, 2)
    write(ty.name, blocks, dequantize(blocks, ty).reshape(-1))

plain = rng.standard_normal(48).astype(np.float32)
write("F32", plain, plain)
write("F16", plain.astype("<f2"), plain.astype("<f2").astype(np.float32))
top = (plain.view(np.uint32) >> 16).astype("<u2")
write("BF16", top, (top.astype(np.uint32) << 16).view(np.float32))
