"""Runs on the emulated ARM device: a library's functions on arrays from a file.

    python emulated_arm.py LIBRARY.so ARRAYS.npz OUTPUTS.npz

ARRAYS has, for each function f, arrays "f/0", "f/1", …, the last of which is its output.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import tvm


def main(library: str, arrays: str, outputs: str) -> None:
    ctypes.CDLL("libm.so.6", mode=ctypes.RTLD_GLOBAL)
    module = tvm.runtime.load_module(library)
    given = np.load(arrays)
    results = {}
    for name in sorted({key.partition("/")[0] for key in given.files}):
        count = sum(key.partition("/")[0] == name for key in given.files)
        tensors = [tvm.runtime.tensor(given[f"{name}/{index}"]) for index in range(count)]
        module[name](*tensors)
        results[name] = tensors[-1].numpy()
    np.savez(outputs, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
