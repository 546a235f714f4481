"""The loss of ``tvm_mpq.ctc`` as a Relax expression, position after position in logarithms."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.relax import op

from tvm_mpq.transform.operator_body import shape_of

_NEVER = -1e30
"""The logarithm of no probability: sums of it stay finite, as gradients need."""


def connectionist_loss(builder: relax.BlockBuilder, logs: relax.Var, labels: relax.Var) -> relax.Expr:
    """−log P(labels) [n] of the logarithms of probabilities [n, positions, classes] and of labels int64 [n, length]."""
    emit = builder.emit
    n, positions, classes = shape_of(logs)
    length = shape_of(labels)[1]
    states = 2 * length + 1
    present = emit(op.greater_equal(labels, relax.const(0, "int64")))
    label = emit(op.maximum(labels, relax.const(0, "int64")))
    chosen = emit(
        op.equal(emit(op.expand_dims(label, 1)), relax.const(np.arange(classes).reshape(1, classes, 1)))
    )
    of_labels = emit(op.matmul(logs, emit(op.astype(chosen, "float32"))))
    blank = emit(op.strided_slice(logs, [2], [0], [1]))
    emitted = _alternated(builder, emit(op.concat([blank, of_labels], 2)), length)

    never = relax.const(np.full((n, 1), _NEVER, np.float32))
    skips = [never, never]
    if length > 1:
        later, earlier = (emit(op.strided_slice(label, [1], [at], [at + length - 1])) for at in (1, 0))
        same = emit(op.astype(emit(op.equal(later, earlier)), "float32"))
        skips.append(emit(op.multiply(same, relax.const(_NEVER, "float32"))))
    skipped = _alternated(builder, emit(op.concat(skips, 1)), length)
    free = relax.const(np.zeros((n, 2, states), np.float32))
    moves = emit(op.concat([free, emit(op.expand_dims(skipped, 1))], 1))

    start = np.full((1, states), _NEVER, np.float32)
    start[0, :2] = 0.0
    alpha = emit(op.add(_position(builder, emitted, 0), relax.const(start)))
    before = relax.const(np.full((n, 2), _NEVER, np.float32))
    # Rows: the state itself, the one before it, the one before that.
    sources = relax.const(np.concatenate([np.arange(states) + shift for shift in (2, 1, 0)]))
    for position in range(1, positions):
        padded = emit(op.concat([before, alpha], 1))
        arriving = emit(op.reshape(emit(op.take(padded, sources, 1, "clip")), (n, 3, states)))
        arrived = _log_sum(builder, emit(op.add(arriving, moves)))
        alpha = emit(op.add(arrived, _position(builder, emitted, position)))

    count = emit(op.sum(emit(op.astype(present, "float32")), [1], True))
    twice = emit(op.multiply(count, relax.const(2.0, "float32")))
    behind = emit(op.subtract(twice, relax.const(np.arange(states, dtype=np.float32)[None])))
    # The path ends at the last label or the blank behind it.
    ends = emit(
        op.logical_and(
            emit(op.greater_equal(behind, relax.const(0.0, "float32"))),
            emit(op.less_equal(behind, relax.const(1.0, "float32"))),
        )
    )
    final = emit(op.where(ends, alpha, relax.const(_NEVER, "float32")))
    return op.negative(_log_sum(builder, final))


def _alternated(builder: relax.BlockBuilder, values: relax.Var, length: int) -> relax.Var:
    """[…, blank and labels] → […, states]: blank, label, blank, label, …, blank."""
    order = np.zeros(2 * length + 1, np.int64)
    order[1::2] = np.arange(length) + 1
    axis = len(shape_of(values)) - 1
    return builder.emit(op.take(values, relax.const(order), axis, "clip"))


def _position(builder: relax.BlockBuilder, emitted: relax.Var, position: int) -> relax.Var:
    """[n, states] of one position."""
    n, _, states = shape_of(emitted)
    part = builder.emit(op.strided_slice(emitted, [1], [position], [position + 1]))
    return builder.emit(op.reshape(part, (n, states)))


def _log_sum(builder: relax.BlockBuilder, x: relax.Var) -> relax.Var:
    """log Σ exp x over axis 1: the largest less its own log softmax, neither of which can overflow."""
    largest = builder.emit(op.max(x, [1]))
    share = builder.emit(op.max(builder.emit(op.nn.log_softmax(x, 1)), [1]))
    return builder.emit(op.subtract(largest, share))
