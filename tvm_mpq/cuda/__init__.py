"""From lowered kernels to code for NVIDIA's GPUs: their source, fat binaries, and the library that holds them."""
