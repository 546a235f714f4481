"""Which sums of 8-bit tensors a convolution can finish itself, so that its own result is never stored."""

from __future__ import annotations

from tvm import IRModule, relax

from tvm_mpq.transform import attributes as attr


def fused_additions(mod: IRModule) -> dict[relax.Var, relax.Var]:
    """The variable of an ``add`` → that of the convolution that may make it, of an annotated module.

    Both compute in 8 bits and nothing but the sum reads the convolution. Of two such convolutions it is the later one:
    when it runs, the other tensor is there.
    """
    calls = attr.calls(mod)
    producers = {variable: (index, function) for index, (variable, function, _) in enumerate(calls)}
    readers: dict[relax.Var, int] = {}
    for variable in (*(a for _, _, call in calls for a in call.args), *attr.results(mod)):
        readers[variable] = readers.get(variable, 0) + 1
    found = {}
    for variable, function, call in calls:
        if attr.text(function, attr.KIND) != "add" or not _stores_codes(function):
            continue
        able = [
            argument
            for argument in call.args
            if argument in producers and readers[argument] == 1 and _convolves(producers[argument][1])
        ]
        if able:
            found[variable] = max(able, key=lambda argument: producers[argument][0])
    return found


def _convolves(function: relax.Function) -> bool:
    return attr.text(function, attr.KIND) == "conv2d" and _stores_codes(function)


def _stores_codes(function: relax.Function) -> bool:
    computes = attr.executed(function).integer_activations
    return computes and attr.text(function, attr.STORED) == "uint8"
