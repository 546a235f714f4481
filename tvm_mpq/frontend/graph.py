"""The network while it is normalised: ONNX nodes with known types, in an order that can be executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

# The domain of the canonical nodes; their op_type is the kind.
CANONICAL = "mpq"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorType:
    """A fixed shape and a NumPy dtype name."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(eq=False)
class Node:
    """One operator, ONNX's (``domain`` "" or a vendor's) or canonical (``domain`` :data:`CANONICAL`)."""

    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, onnx.AttributeProto] = field(default_factory=dict)
    domain: str = ""
    captured: tuple[str, ...] = ()
    """Tensors that the bodies of an ``If`` or ``Loop`` read from around it, by name."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Every tensor the node needs, with repetitions."""
        return tuple(name for name in (*self.inputs, *self.captured) if name)

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute's value as a Python int, float, str, list or ONNX object."""
        if name not in self.attributes:
            return default
        value = helper.get_attribute_value(self.attributes[name])
        if isinstance(value, bytes):
            return value.decode()
        return (
            value
            if isinstance(value, int | float | str | onnx.TensorProto | onnx.GraphProto)
            else list(value)
        )

    def is_(self, *op_types: str) -> bool:
        """Whether this is one of ONNX's own operators ``op_types``."""
        return self.domain == "" and self.op_type in op_types

    def is_kind(self, *kinds: str) -> bool:
        """Whether this is a canonical node of one of ``kinds``."""
        return self.domain == CANONICAL and self.op_type in kinds

    def with_attributes(self, **attributes: Any) -> Node:
        """The same node with some attributes set."""
        return Node(
            self.op_type,
            self.name,
            self.inputs,
            self.outputs,
            {**self.attributes, **make_attributes(attributes)},
            self.domain,
            self.captured,
        )


def make_attributes(values: dict[str, Any]) -> dict[str, onnx.AttributeProto]:
    """Python values as ONNX attributes; None and empty lists are left out."""
    return {
        name: helper.make_attribute(name, value)
        for name, value in values.items()
        if value is not None and not (isinstance(value, list | tuple) and not value)
    }


def canonical(kind: str, name: str, inputs: Sequence[str], output: str, **attributes: Any) -> Node:
    """A canonical node of ``kind``."""
    return Node(kind, name, tuple(inputs), (output,), make_attributes(attributes), CANONICAL)


class Graph:
    """Nodes in execution order, constants, and the type of each tensor; the rules change it in place."""

    def __init__(
        self,
        nodes: Iterable[Node],
        constants: dict[str, Array],
        inputs: Sequence[str],
        outputs: Sequence[str],
        types: dict[str, TensorType],
        opsets: dict[str, int],
    ) -> None:
        self.constants = constants
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.types = types
        self.opsets = opsets
        self.nodes: list[Node] = []
        self._producers: dict[str, Node] = {}
        self._uses: Counter[str] = Counter(outputs)
        self._fresh = 0
        for node in nodes:
            self._insert(len(self.nodes), node)

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return self.opsets.get("", 1)

    def holds(self, node: Node) -> bool:
        """Whether ``node`` is still part of the graph."""
        return any(self._producers.get(output) is node for output in node.outputs)

    def producer(self, tensor: str) -> Node | None:
        """The node that makes ``tensor``; None for inputs and constants."""
        return self._producers.get(tensor)

    def made_by(self, tensor: str, *op_types: str) -> Node | None:
        """The node that makes ``tensor`` where it is one of ONNX's own ``op_types``."""
        found = self._producers.get(tensor)
        return found if found is not None and found.is_(*op_types) else None

    def sole_producer(self, tensor: str) -> Node | None:
        """The node that makes ``tensor`` for one reader only, so that the two may become one node."""
        return self._producers.get(tensor) if self._uses[tensor] == 1 else None

    def uses(self, tensor: str) -> int:
        """How many inputs of nodes, and outputs of the graph, read ``tensor``."""
        return self._uses[tensor]

    def is_captured(self, tensor: str) -> bool:
        """Whether the body of an ``If`` or ``Loop`` reads ``tensor`` under this very name."""
        return any(tensor in node.captured for node in self.nodes if node.captured)

    def float_type(self, tensor: str) -> TensorType | None:
        """The type of ``tensor`` if it is a float32 activation, and None otherwise."""
        found = None if tensor in self.constants else self.types.get(tensor)
        return found if found is not None and found.dtype == "float32" else None

    def constant(self, tensor: str) -> Array | None:
        """The value of ``tensor`` if it is a constant."""
        return self.constants.get(tensor)

    def fresh(self, hint: str) -> str:
        """A tensor name nothing else has."""
        while True:
            self._fresh += 1
            name = f"{hint}.{self._fresh}"
            if name not in self.types and name not in self.constants and name not in self._producers:
                return name

    def add_constant(self, hint: str, value: Array) -> str:
        """Store ``value`` under a new name and return the name."""
        name = self.fresh(hint)
        self.constants[name] = value
        return name

    def add_tensor(self, hint: str, shape: Sequence[int], dtype: str = "float32") -> str:
        """A new tensor that a new node is going to make."""
        name = self.fresh(hint)
        self.types[name] = TensorType(tuple(shape), dtype)
        return name

    def replace(self, old: Sequence[Node], new: Sequence[Node]) -> None:
        """Put ``new`` where the last of ``old`` is; it must make every tensor of ``old`` that others read."""
        place = max(self.nodes.index(node) for node in old) + 1
        for node in old:
            self.nodes.remove(node)
            self._uses.subtract(node.reads)
            for output in node.outputs:
                self._producers.pop(output, None)
        place -= len(old)
        for offset, node in enumerate(new):
            self._insert(place + offset, node)

    def prepend(self, nodes: Sequence[Node]) -> None:
        """Put ``nodes`` in front of all others."""
        for place, node in enumerate(nodes):
            self._insert(place, node)

    def append_output(self, node: Node, old: str, new: str) -> None:
        """Put ``node`` at the end and give out its tensor ``new`` where ``old`` was given out before."""
        self._insert(len(self.nodes), node)
        self._uses.subtract(self.outputs)
        self.outputs = tuple(new if name == old else name for name in self.outputs)
        self._uses.update(self.outputs)

    def bypass(self, node: Node, source: str) -> None:
        """Remove ``node``; whoever read its first output reads ``source`` from now on."""
        output = node.outputs[0]
        assert not self.is_captured(output)
        self.replace([node], [])
        for reader in self.nodes:
            if output in reader.inputs:
                self._uses.subtract(reader.reads)
                reader.inputs = tuple(source if name == output else name for name in reader.inputs)
                self._uses.update(reader.reads)
        if output in self.outputs:
            self._uses.subtract(self.outputs)
            self.outputs = tuple(source if name == output else name for name in self.outputs)
            self._uses.update(self.outputs)

    def remove_dead(self) -> None:
        """Remove nodes that no output depends on, and constants nobody reads."""
        needed = set(self.outputs)
        alive: list[Node] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                alive.append(node)
                needed.update(node.reads)
        dead = [node for node in self.nodes if not needed.intersection(node.outputs)]
        for node in dead:
            self.replace([node], [])
        self.constants = {name: value for name, value in self.constants.items() if name in needed}

    def _insert(self, place: int, node: Node) -> None:
        self.nodes.insert(place, node)
        self._uses.update(node.reads)
        for output in node.outputs:
            if output:
                self._producers[output] = node


def numpy_name(element_type: int) -> str:
    """NumPy's name of an ONNX element type, such as ``float32``."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(element_type)).name
