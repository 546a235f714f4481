"""Samples for calibration, selection and evaluation: from an .npz or a folder of images."""

from tvm_mpq.dataset.dataset import Dataset, split
from tvm_mpq.dataset.opening import open_dataset

__all__ = ["Dataset", "open_dataset", "split"]
