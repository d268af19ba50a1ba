"""Fake quantization: `numerics` (functions on tensors), `layers` (modules calling them), `bitwidths` (networks)."""
