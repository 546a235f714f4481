"""The two matrices of a resampled image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax
from tvm.relax import op

from tvm_mpq.sensitivity.canonical_builder import one_call
from tvm_mpq.sensitivity.evaluation import compiled
from tvm_mpq.transform.operator_body import shape_of

Matrix = npt.NDArray[np.float32]


def resize_matrices(call: relax.Call) -> tuple[Matrix, Matrix]:
    """(R_h [OH, H], R_w [OW, W]) with ``resize2d(x) = R_h · x · R_wᵀ`` for a call in NCHW.

    They are read off the images of unit rows and unit columns: the weights of an output pixel sum to 1 along each axis,
    so that an image constant along the other axis shows one matrix alone.
    """
    _, _, height, width = shape_of(call.args[0])
    rows = np.broadcast_to(np.eye(height, dtype=np.float32)[:, None, :, None], (height, 1, height, width))
    columns = np.broadcast_to(np.eye(width, dtype=np.float32)[:, None, None, :], (width, 1, height, width))
    return _run(call, rows)[:, 0, :, 0].T.copy(), _run(call, columns)[:, 0, 0, :].T.copy()


def _run(call: relax.Call, images: Matrix) -> Matrix:
    x = relax.Var("x", relax.TensorType(images.shape, "float32"))
    a = call.attrs
    same = op.image.resize2d(
        x,
        call.args[1],
        roi=list(a.roi),
        layout=a.layout,
        method=a.method,
        coordinate_transformation_mode=a.coordinate_transformation_mode,
        rounding_method=a.rounding_method,
        cubic_alpha=a.cubic_alpha,
        cubic_exclude=a.cubic_exclude,
        extrapolation_value=a.extrapolation_value,
    )
    return compiled(one_call([x], same), tvm.IRModule())(images)
