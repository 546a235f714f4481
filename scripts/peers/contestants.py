"""One class a runtime: a compiled network that can be timed and asked for its output."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray


class Contestant(Protocol):
    """A network in one runtime at one precision and number of threads."""

    def time(self, calls: int, warmup: int) -> NDArray[np.float64]:
        """Seconds of each of ``calls`` inferences after ``warmup`` untimed ones."""

    def output(self) -> NDArray[np.float32]:
        """The network's first output for the input given at construction."""


def time_calls(run: Callable[[], object], calls: int, warmup: int) -> NDArray[np.float64]:
    """Seconds of each of ``calls`` calls of ``run``, garbage collection held off."""
    for _ in range(warmup):
        run()
    seconds = np.empty(calls)
    enabled = gc.isenabled()
    gc.disable()
    try:
        for index in range(calls):
            start = time.perf_counter()
            run()
            seconds[index] = time.perf_counter() - start
    finally:
        if enabled:
            gc.enable()
    return seconds


class OnnxRuntime:
    """ONNX Runtime's CPU provider, all optimizations, input and output bound once."""

    def __init__(self, model: Path, x: NDArray[np.float32], threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._binding.bind_cpu_input(self._session.get_inputs()[0].name, x)
        self._binding.bind_output(self._session.get_outputs()[0].name)

    def time(self, calls: int, warmup: int) -> NDArray[np.float64]:
        return time_calls(lambda: self._session.run_with_iobinding(self._binding), calls, warmup)

    def output(self) -> NDArray[np.float32]:
        self._session.run_with_iobinding(self._binding)
        return np.array(self._binding.copy_outputs_to_cpu()[0])


class OpenVino:
    """OpenVINO's CPU plugin with the latency hint, one stream, float32 where the model is not quantized."""

    def __init__(self, model: Path, x: NDArray[np.float32], threads: int) -> None:
        import openvino

        compiled = openvino.Core().compile_model(
            str(model),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": "1",
                "INFERENCE_PRECISION_HINT": "f32",
            },
        )
        self._request = compiled.create_infer_request()
        self._request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

    def time(self, calls: int, warmup: int) -> NDArray[np.float64]:
        return time_calls(self._request.infer, calls, warmup)

    def output(self) -> NDArray[np.float32]:
        self._request.infer()
        return np.array(self._request.get_output_tensor(0).data)
