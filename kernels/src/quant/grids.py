"""Makes grids.bin: the code books of the IQ formats, as gguf-py has them.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install gguf && /tmp/v/bin/python kernels/src/quant/grids.py

Little-endian u16, one for each entry of the books in the order of BOOKS below. An entry of 8 elements has an index into
the format's magnitudes at bits 2i, one of 4 elements at bits 4i.
"""
import pathlib

import numpy as np
from gguf import quants

BOOKS = [quants.IQ2_XXS, quants.IQ2_XS, quants.IQ2_S, quants.IQ3_XXS, quants.IQ3_S, quants.IQ1_S]

words = []
for book in BOOKS:
    book.init_grid()
    grid = book.grid.reshape(book.grid_shape)
    bits = 16 // grid.shape[1]
    index = np.searchsorted(np.array(book.grid_map), grid)
    assert (np.array(book.grid_map)[index] == grid).all()
    words.append((index << (bits * np.arange(grid.shape[1]))).sum(axis=1).astype("<u2"))
(pathlib.Path(__file__).parent / "grids.bin").write_bytes(b"".join(w.tobytes() for w in words))
