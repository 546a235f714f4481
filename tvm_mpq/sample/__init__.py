"""The embedded sample: a small trained network, labelled images to test it on, and images to calibrate with.

``fashion.onnx`` classifies the grey 28×28 images of Fashion-MNIST: input ``image`` float32 [1, 1, 28, 28],
output ``logits`` float32 [1, 10]. It has plain residual blocks, inverted residual blocks with depthwise
convolutions, ReLU, ReLU6, and batch norm not folded. ``scripts/train_sample.py`` trains it; the file's
metadata says how it did.

Its input is x = (pixel / 255 - MEAN) / STD, with the mean and deviation of the training images.

``fashion.npz`` holds pixels: the 10,000 test images, and 1,000 images of the training set that training left
out. The images are Fashion-MNIST's (Xiao, Rasul and Vollgraf, arXiv 1708.07747; © 2017 Zalando SE, MIT
licence: see ``LICENSE.fashion-mnist`` in this folder).
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tvm_mpq.errors import MpqError
from tvm_mpq.files import write_beside

MEAN = 0.2860
STD = 0.3530

_FOLDER = Path(__file__).parent


def model_path() -> Path:
    """Where the network's ONNX file is."""
    return _FOLDER / "fashion.onnx"


def preprocess(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels uint8 [samples, 28, 28] → the network's input float32 [samples, 1, 28, 28]."""
    scaled = (pixels[:, np.newaxis].astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    return scaled.astype(np.float32)


def test_arrays() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The test images, preprocessed, float32 [10000, 1, 28, 28], and their class int64 [10000], 0 to 9."""
    return _arrays("images", "labels")


def calibration_arrays() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images neither trained on nor in the test, float32 [1000, 1, 28, 28], and their class int64 [1000]."""
    return _arrays("calibration_images", "calibration_labels")


def write_files(folder: str | Path) -> None:
    """Write ``fashion.onnx``, ``calibration.npz`` and ``test.npz`` to ``folder``, made if missing.

    Both .npz hold ``image`` float32 [samples, 1, 28, 28] (preprocessed) and ``labels`` int64 [samples].
    Raises MpqError when the folder is not writable.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MpqError(f"cannot make the folder {folder}: {error.strerror}") from None
    write_beside(folder / "fashion.onnx", model_path().read_bytes())
    for name, (images, labels) in (("calibration", calibration_arrays()), ("test", test_arrays())):
        stream = io.BytesIO()
        np.savez(stream, image=images, labels=labels)
        write_beside(folder / f"{name}.npz", stream.getvalue())


def _arrays(images: str, labels: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with np.load(_FOLDER / "fashion.npz", allow_pickle=False) as archive:
        return preprocess(archive[images]), archive[labels].astype(np.int64)
