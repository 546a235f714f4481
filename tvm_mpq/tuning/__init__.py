"""Autotuning: search the templates' spaces of tiles by measuring, and keep what was measured in logs.

model, plan ─ workloads ─▶ keys ─ tuner ─▶ search ─▶ runner ─▶ worker processes: build, measure
                                     │        └── cost model ranks the space
                                     └─▶ log (one line a measured tile) ─▶ TunedTiles ─▶ compile
"""
