"""All rules in the order in which they run; between two groups the graph is always a complete network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm_mpq.frontend.graph import Graph, Node
from tvm_mpq.frontend.rules.activation import convert_activation, fuse_activation
from tvm_mpq.frontend.rules.affine import convert_batch_norm, fold_behind, fold_in_front
from tvm_mpq.frontend.rules.arithmetic import convert_arithmetic, convert_power
from tvm_mpq.frontend.rules.convolution import convert_convolution, lower_convolution
from tvm_mpq.frontend.rules.dense import convert_batch_matmul, convert_gemm, convert_matmul
from tvm_mpq.frontend.rules.floats import promote
from tvm_mpq.frontend.rules.identities import remove_identity
from tvm_mpq.frontend.rules.layout import (
    convert_add,
    convert_concat,
    convert_reshape,
    convert_slice,
    convert_split,
    convert_transpose,
    simplify_reshape,
)
from tvm_mpq.frontend.rules.normalization import absorb_affine, convert_layer_norm, match_layer_norm
from tvm_mpq.frontend.rules.padding import fold_padding
from tvm_mpq.frontend.rules.pointwise import convert_pointwise, merge_pointwise, name_sigmoid
from tvm_mpq.frontend.rules.pooling import convert_global_pool, convert_mean, convert_pool
from tvm_mpq.frontend.rules.resize import convert_resize, convert_resize_of_planes
from tvm_mpq.frontend.rules.softmax import convert_softmax, match_softmax
from tvm_mpq.frontend.rules.transposed import convert_transposed

Rule = Callable[[Graph, Node], bool]

GROUPS: tuple[tuple[Rule, ...], ...] = (
    (remove_identity, convert_power, convert_resize),
    (convert_layer_norm, match_layer_norm, match_softmax),
    (absorb_affine,),
    (convert_convolution, convert_gemm, convert_matmul, convert_batch_matmul),
    (convert_pool, convert_global_pool, convert_mean),
    (convert_reshape, convert_transpose, convert_concat, convert_slice, convert_split),
    (convert_add, convert_softmax, convert_resize_of_planes),
    (convert_activation,),
    (fold_padding,),
    # Behind before in front: the operator that made a tensor has its channels, whatever padding follows.
    (fold_behind,),
    (fold_in_front,),
    (convert_batch_norm,),
    (convert_transposed, convert_pointwise),
    (convert_arithmetic,),
    (fuse_activation,),
    (merge_pointwise,),
    (lower_convolution, name_sigmoid),
    (simplify_reshape,),
)


def normalize(graph: Graph) -> None:
    """Bring ``graph`` into canonical form, in place; raises MpqError for a batch norm in training mode."""
    promote(graph)
    for rules in GROUPS:
        apply_rules(graph, rules)
        graph.remove_dead()


def apply_rules(graph: Graph, rules: Sequence[Rule]) -> None:
    """Apply ``rules`` to every node until none changes anything."""
    changed = True
    while changed:
        changed = False
        for node in list(graph.nodes):
            if any(graph.holds(node) and rule(graph, node) for rule in rules):
                changed = True
