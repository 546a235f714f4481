"""Checks of CUDA code without a GPU: its kernels emulated on this machine, and what the compiler says of them."""
