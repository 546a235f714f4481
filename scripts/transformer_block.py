"""One layer of BERT-base as an ONNX file, with random weights: what a language model's matrices look like.

    python scripts/transformer_block.py block.onnx --samples samples.npz

Input ``x`` float32 [1, 128, 768], output ``y`` of the same shape: self-attention with 12 heads and a feed-forward
layer of 3072, each with a residual addition and a layer norm behind it (Devlin et al. 2018).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TOKENS, WIDTH, HEADS, INNER = 128, 768, 12, 3072
SAMPLES = 16


class _Block:
    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def linear(self, name: str, x: str, inputs: int, outputs: int) -> str:
        weight = self.random.standard_normal((inputs, outputs)) / math.sqrt(inputs)
        bias = self.random.standard_normal(outputs) * 0.1
        product = self.node("MatMul", name, [x, self.constant(f"{name}.w", weight.astype(np.float32))])
        return self.node("Add", f"{name}.add", [product, self.constant(f"{name}.b", bias.astype(np.float32))])

    def heads(self, name: str, x: str, order: list[int]) -> str:
        shape = self.constant(f"{name}.shape", np.array([1, TOKENS, HEADS, WIDTH // HEADS], np.int64))
        return self.node(
            "Transpose", f"{name}.heads", [self.node("Reshape", f"{name}.split", [x, shape])], perm=order
        )

    def norm(self, name: str, x: str) -> str:
        gamma, beta = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
        constants = [self.constant(f"{name}.gamma", gamma), self.constant(f"{name}.beta", beta)]
        return self.node("LayerNormalization", name, [x, *constants], axis=-1, epsilon=1e-12)

    def gelu(self, name: str, x: str) -> str:
        scaled = self.node(
            "Div", f"{name}.div", [x, self.constant(f"{name}.root", np.array([math.sqrt(2)], np.float32))]
        )
        one = self.constant(f"{name}.one", np.array([1], np.float32))
        gate = self.node("Add", f"{name}.gate", [self.node("Erf", f"{name}.erf", [scaled]), one])
        half = self.constant(f"{name}.half", np.array([0.5], np.float32))
        return self.node("Mul", f"{name}.half_of", [self.node("Mul", f"{name}.mul", [x, gate]), half])


def transformer_block(seed: int = 0) -> onnx.ModelProto:
    """The layer, with weights drawn from ``seed``."""
    b = _Block(seed)
    q, k, v = (
        b.heads(name, b.linear(name, "x", WIDTH, WIDTH), order)
        for name, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
    )
    scale = b.constant("scale", np.array([1 / math.sqrt(WIDTH // HEADS)], np.float32))
    scores = b.node("Mul", "scaled", [b.node("MatMul", "scores", [q, k]), scale])
    mixed = b.node("MatMul", "mixed", [b.node("Softmax", "softmax", [scores], axis=-1), v])
    turned = b.node("Transpose", "turned", [mixed], perm=[0, 2, 1, 3])
    joined = b.node(
        "Reshape", "joined", [turned, b.constant("whole", np.array([1, TOKENS, WIDTH], np.int64))]
    )
    first = b.norm("norm1", b.node("Add", "residual1", ["x", b.linear("output", joined, WIDTH, WIDTH)]))
    inner = b.gelu("gelu", b.linear("inner", first, WIDTH, INNER))
    second = b.node("Add", "residual2", [first, b.linear("outer", inner, INNER, WIDTH)])
    gamma, beta = (
        b.constant(f"norm2.{name}", np.full(WIDTH, value, np.float32))
        for name, value in (("gamma", 1), ("beta", 0))
    )
    b.nodes.append(
        helper.make_node(
            "LayerNormalization", [second, gamma, beta], ["y"], name="norm2", axis=-1, epsilon=1e-12
        )
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, TOKENS, WIDTH]) for name in "xy"]
    graph = helper.make_graph(b.nodes, "transformer_block", values[:1], values[1:], b.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Write one layer of BERT-base with random weights.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--samples", type=Path, help="also write inputs of unit variance for calibration")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    onnx.save(transformer_block(options.seed), options.output)
    if options.samples is not None:
        x = np.random.default_rng(options.seed).standard_normal((SAMPLES, TOKENS, WIDTH)).astype(np.float32)
        np.savez(options.samples, x=x)


if __name__ == "__main__":
    main()
