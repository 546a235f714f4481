"""What the benchmark compares against, and how it takes turns between contestants."""
