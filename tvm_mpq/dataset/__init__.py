"""Samples for calibration, selection and evaluation: from an .npz or a folder of images."""

from tvm_mpq.dataset.dataset import Dataset, split
from tvm_mpq.dataset.opening import open_dataset
from tvm_mpq.dataset.preprocess import Preprocess

__all__ = ["Dataset", "Preprocess", "open_dataset", "split"]
