"""Giving every input of an ONNX network a fixed shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from tvm_mpq.errors import MpqError


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs a caller must give: old files (IR version 3) list the initializers among the inputs too."""
    weights = {tensor.name for tensor in graph.initializer}
    weights.update(sparse.values.name for sparse in graph.sparse_initializer)
    return [value for value in graph.input if value.name not in weights]


def fix_input_shapes(graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Write ``shapes`` (input name → sizes) into the inputs of ``graph``, in place.

    Raises MpqError for an unknown input, a shape that contradicts the network's own, an input that is no
    tensor, and for inputs that stay without a fixed shape; that message shows the flags to add.
    """
    inputs = real_inputs(graph)
    names = [value.name for value in inputs]
    for name in shapes:
        if name not in names:
            raise MpqError(f"the network has no input {name!r}; its inputs are: {', '.join(names) or 'none'}")
    missing: list[str] = []
    for value in inputs:
        if not value.type.HasField("tensor_type"):
            raise MpqError(f"input {value.name!r} is not a tensor; only tensor inputs can be compiled")
        known = _declared(value)
        if value.name in shapes:
            _write(value, known, [int(size) for size in shapes[value.name]])
        elif known is None or None in known:
            example = [1] if known is None else [size or 1 for size in known]
            missing.append(f"--input-shape {value.name}:{','.join(map(str, example))}")
    if missing:
        which = "an input has" if len(missing) == 1 else f"{len(missing)} inputs have"
        raise MpqError(f"{which} no fixed shape: add {' '.join(missing)} (or other sizes in place of 1)")


def _declared(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """The sizes the network declares, None for an open one; None when not even the rank is known."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    # Exporters write -1 or 0 for open sizes too.
    return [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]


def _write(value: onnx.ValueInfoProto, known: list[int | None] | None, wanted: list[int]) -> None:
    text = ",".join(map(str, wanted))
    if any(size < 1 for size in wanted):
        raise MpqError(f"shape {text} given for input {value.name!r}: every size must be at least 1")
    if known is not None:
        declared = ",".join("?" if size is None else str(size) for size in known)
        if len(known) != len(wanted):
            raise MpqError(
                f"shape {text} given for input {value.name!r} has {len(wanted)} axes; "
                f"the network says {len(known)}: {declared}"
            )
        if any(size is not None and size != want for size, want in zip(known, wanted, strict=True)):
            raise MpqError(
                f"shape {text} given for input {value.name!r} contradicts the network's {declared}"
            )
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for size in wanted:
        shape.dim.add().dim_value = size
    if not wanted:
        value.type.tensor_type.shape.SetInParent()
