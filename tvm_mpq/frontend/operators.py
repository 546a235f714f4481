"""Reading a canonical module: its operators in execution order, its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import relax

from tvm_mpq.tensor_spec import TensorSpec


@dataclass(frozen=True)
class Operator:
    """A private function that ``main`` calls."""

    name: str
    """The ONNX node's name: what a plan calls it."""
    kind: str
    global_var_name: str


def operators(mod: tvm.IRModule) -> list[Operator]:
    """The operators in the order in which ``main`` calls them."""
    found: list[Operator] = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.Call) and isinstance(call.op, tvm.ir.GlobalVar):
                attributes = mod[call.op].attrs
                if attributes is not None and "mpq.operator" in attributes:
                    name, kind = str(attributes["mpq.operator"]), str(attributes["mpq.kind"])
                    found.append(Operator(name, kind, call.op.name_hint))
    return found


def io_specs(mod: tvm.IRModule) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of ``main`` under their ONNX names (attributes ``mpq.inputs``, ``mpq.outputs``)."""
    main = mod["main"]
    result = main.ret_ty
    results = list(result.fields) if isinstance(result, relax.TupleType) else [result]
    inputs = zip(main.attrs["mpq.inputs"], [parameter.ty for parameter in main.params], strict=True)
    outputs = zip(main.attrs["mpq.outputs"], results, strict=True)
    return [_spec(str(name), ty) for name, ty in inputs], [_spec(str(name), ty) for name, ty in outputs]


def _spec(name: str, ty: relax.TensorType) -> TensorSpec:
    return TensorSpec(name, tuple(int(size) for size in ty.shape.values), str(ty.dtype))
