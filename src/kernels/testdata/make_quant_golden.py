#!/usr/bin/env python3
"""Writes quant_golden.txt: random blocks of every quantized type and their values by the `gguf` package.

    python3 -m venv .venv-gguf && .venv-gguf/bin/pip install gguf
    .venv-gguf/bin/python src/kernels/testdata/make_quant_golden.py > src/kernels/testdata/quant_golden.txt

A line: type, the block's bytes in hex, the values as little-endian f32 in hex.
"""
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

# Where the f16 scales lie; everything else may be any bits.
F16_AT = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
          "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}

rng = np.random.default_rng(20)
for name, places in F16_AT.items():
    for _ in range(2):
        block = rng.integers(0, 256, GGML_QUANT_SIZES[T[name]][1], dtype=np.uint8)
        for at in places:
            block[at:at + 2] = np.array([rng.normal()], dtype=np.float16).view(np.uint8)
        values = dequantize(block, T[name]).astype("<f4")
        print(name.lower(), block.tobytes().hex(), values.tobytes().hex())
