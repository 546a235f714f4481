"""Samples that give activations ordinary ranges: photos where the network is trained, else random input."""

from __future__ import annotations

import io
from pathlib import Path

import networks
import numpy as np

from tvm_mpq.dataset import open_dataset
from tvm_mpq.files import write_beside
from tvm_mpq.tensor_spec import TensorSpec

PHOTOS = networks.SHARED / "data" / "imagenet-calibration"
INPUT = TensorSpec("input", (1, 3, 224, 224), "float32")


def calibration_file(network: str, count: int, cache: Path, seed: int = 0) -> Path:
    """An .npz in the folder ``cache`` with ``input``, float32 [count, 3, 224, 224], for ``network``.

    A network read from a file was trained on photos scaled to (pixel − 127) / 128; it gets the shared
    calibration photos, or random input where they are absent. The others have random weights and get standard
    normal input. All contestants calibrate on this one file.
    """
    if network in networks.FILES and PHOTOS.is_dir():
        photos = open_dataset(PHOTOS, [INPUT], resize=224, mean=127, scale=1 / 128, limit=count)
        name, values = f"photos-{count}.npz", photos.batch(range(len(photos)))[INPUT.name]
    else:
        name = f"normal-{count}-{seed}.npz"
        values = np.random.default_rng(seed).standard_normal((count, *INPUT.shape[1:]), dtype=np.float32)
    content = io.BytesIO()
    np.savez(content, input=values)
    cache.mkdir(parents=True, exist_ok=True)
    write_beside(cache / name, content.getvalue())
    return cache / name
