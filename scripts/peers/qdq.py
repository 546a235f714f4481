"""The int8 form of a network that both peers read: static QDQ made by ONNX Runtime's own quantizer."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from tvm_mpq.files import write_beside

# Names the settings below; part of the cache key.
_RECIPE = "qdq-u8s8-per-channel-minmax-1"


class _Reader(CalibrationDataReader):
    def __init__(self, name: str, data: NDArray[np.float32]) -> None:
        self._feeds: Iterator[dict[str, NDArray[np.float32]]] = iter(
            [{name: np.ascontiguousarray(sample[None])} for sample in data]
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:  # type: ignore[override]
        return next(self._feeds, None)


def quantized(model: onnx.ModelProto, data: NDArray[np.float32], cache: Path) -> Path:
    """Path of ``model`` quantized on ``data``: u8 activations, s8 weights a channel, min–max ranges.

    ``data`` is float32 [samples, 3, 224, 224]. The file lives in the folder ``cache`` under a hash of model,
    data, settings and quantizer version, and is made when it is not there.
    """
    content = model.SerializeToString(deterministic=True)
    key = hashlib.sha256(content)
    key.update(data.tobytes())
    key.update(f"{_RECIPE} {onnxruntime.__version__}".encode())
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{model.graph.name or 'network'}-{key.hexdigest()[:32]}.onnx"
    if path.is_file():
        return path
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(content)
        # Without quant_pre_process: the networks come with shapes and folded batch norms, and it changed
        # neither the quantized graph's operators nor its latency.
        quantize_static(
            source,
            target,
            _Reader(model.graph.input[0].name, data),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        write_beside(path, target.read_bytes())
    return path
