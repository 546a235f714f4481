"""A lowered network as the calls of a program for the emulated PC."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tvm
from emulated_pc import run_emulated
from emulated_program import Buffer, Program
from tvm import relax

from tvm_mpq.transform import attributes as attr


def emulated_runner(lowered: tvm.IRModule, target: str) -> Callable[..., list[np.ndarray]]:
    """A lowered module as a function of arrays, in the order of the network's inputs; each call boots a PC."""

    def call(*arrays: np.ndarray) -> list[np.ndarray]:
        program = Program()
        names = attr.names(lowered["main"], attr.INPUTS)
        outputs = lay_out(program, lowered, dict(zip(names, arrays, strict=True)))
        return run_emulated(program, outputs, target)

    return call


def lay_out(program: Program, lowered: tvm.IRModule, feeds: Mapping[str, np.ndarray]) -> list[Buffer]:
    """Append the calls that compute the network; returns where its outputs will be."""
    main = lowered["main"]
    names = attr.names(main, attr.INPUTS)
    values = {p: program.constant(feeds[name]) for name, p in zip(names, main.params, strict=True)}

    def value(argument: tvm.ir.RelaxExpr) -> Buffer:
        return values[argument] if argument in values else program.constant(argument.value.numpy())

    (block,) = main.body.blocks
    result = main.body.body
    for binding in block.bindings:
        call = binding.value
        if isinstance(call, relax.Tuple):
            assert result.same_as(binding.var), "a tuple is not the network's result"
            return [values[field] for field in call.fields]
        if isinstance(call, relax.Var):
            values[binding.var] = values[call]
            continue
        assert call.op.name == "relax.call_tir", call
        function, arguments = call.args[:2]
        inputs = [value(argument) for argument in arguments.fields]
        values[binding.var] = program.call(function.name_hint, lowered[function], *inputs)
    return [values[result]]
