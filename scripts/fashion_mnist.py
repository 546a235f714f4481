"""Fashion-MNIST as the Debian package ``dataset-fashion-mnist`` installs it: gzipped IDX files."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tvm_mpq.errors import MpqError

FOLDER = Path("/usr/share/datasets/fashion-mnist")
# An IDX file begins with two zero bytes, the element type (8: unsigned byte) and the number of dimensions.
_UBYTE_MAGIC = bytes([0, 0, 8])


@dataclass(frozen=True)
class Images:
    """Grey images uint8 [samples, 28, 28] and their class uint8 [samples], 0 to 9."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: NDArray[np.intp]) -> Images:
        return Images(self.pixels[indices], self.labels[indices])


def load(folder: Path = FOLDER) -> tuple[Images, Images]:
    """The 60,000 training and the 10,000 test images.

    Raises MpqError when a file is missing or is not what the package holds.
    """
    train, test = (
        Images(
            _read_idx(folder / f"{split}-images-idx3-ubyte.gz", (samples, 28, 28)),
            _read_idx(folder / f"{split}-labels-idx1-ubyte.gz", (samples,)),
        )
        for split, samples in (("train", 60_000), ("t10k", 10_000))
    )
    return train, test


def _read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise MpqError(
            f"{path} is missing: install Fashion-MNIST with 'apt-get install dataset-fashion-mnist'"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise MpqError(f"cannot read {path}: {error}; install dataset-fashion-mnist again") from None
    header = _UBYTE_MAGIC + bytes([len(shape)]) + np.array(shape, ">u4").tobytes()
    if not content.startswith(header) or len(content) != len(header) + int(np.prod(shape)):
        raise MpqError(f"{path} is not IDX of shape {list(shape)}: install dataset-fashion-mnist again")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
