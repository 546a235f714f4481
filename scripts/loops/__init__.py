"""Inner loops of kernels, found in their assembly and simulated by llvm-mca."""
