"""Kernels for NVIDIA's GPUs: programs and schedules with thread blocks, tensor cores and dp4a."""
