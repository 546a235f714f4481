"""Which kernels a lowered network calls, in order: whose each call is, its work and the bytes it moves."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
from tvm import IRModule, relax

from tvm_mpq.cost.work import kernel_work
from tvm_mpq.kernels.cuda.units import WORK
from tvm_mpq.kernels.spec import ATTRIBUTE, KernelSpec
from tvm_mpq.runtime.metadata import KernelCall
from tvm_mpq.transform import attributes as attr


def kernel_calls(lowered: IRModule) -> tuple[KernelCall, ...]:
    """The kernel calls of a module that the pipeline lowered.

    An operator whose Relax body became several kernels owns all of them: what leads up to a result is its own.
    """
    # Reshapes are views at run time, and no calls.
    mod = relax.transform.RewriteDataflowReshape()(lowered)
    owners = {name: tuple(owner) for name, owner in json.loads(attr.text(mod["main"], attr.OWNERS)).items()}
    main = mod["main"]
    weights = set(main.params[len(attr.names(main, attr.INPUTS)) :])
    calls: list[KernelCall] = []
    waiting: list[_Call] = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
                waiting.append(_Call.of(mod, value, weights))
            if binding.var.name in owners:
                role, operator, reader = owners[binding.var.name]
                calls += [call.owned(role, operator, reader) for call in waiting]
                waiting = []
    if waiting:
        raise AssertionError(f"{waiting[0].kernel} belongs to no operator")
    return tuple(calls)


@dataclass(frozen=True)
class _Call:
    kernel: str
    step: str
    macs: int
    steps: float
    constant_bytes: int
    input_bytes: int
    output_bytes: int
    tile: str

    @classmethod
    def of(cls, mod: IRModule, call: relax.Call, weights: set[relax.Var]) -> _Call:
        variable, arguments = call.args[0], call.args[1]
        attributes = mod[variable].attrs
        step, macs, steps = "", 0, 0.0
        if attributes is not None and ATTRIBUTE in attributes:
            work = kernel_work(KernelSpec.from_json(str(attributes[ATTRIBUTE])))
            step, macs, steps = work.name, work.macs, work.steps
        elif attributes is not None and WORK in attributes:
            step, macs, steps = json.loads(str(attributes[WORK]))
        constants = [a for a in arguments if not isinstance(a, relax.Var) or a in weights]
        inputs = {a for a in arguments if isinstance(a, relax.Var)} - weights
        return cls(
            variable.name_hint,
            step,
            macs,
            steps,
            sum(_bytes(a.ty) for a in constants),
            sum(_bytes(a.ty) for a in inputs),
            _bytes(call.ty_args[0]),
            attr.text(mod[variable], attr.TILE),
        )

    def owned(self, role: str, operator: str, reader: str) -> KernelCall:
        return KernelCall(
            self.kernel,
            role,
            operator,
            reader,
            self.step,
            self.macs,
            self.steps,
            self.constant_bytes,
            self.input_bytes,
            self.output_bytes,
            self.tile,
        )


def _bytes(ty: relax.TensorType | relax.TupleType) -> int:
    if isinstance(ty, relax.TupleType):
        return sum(_bytes(field) for field in ty.fields)
    return math.prod(int(extent) for extent in ty.shape) * np.dtype(str(ty.dtype)).itemsize
