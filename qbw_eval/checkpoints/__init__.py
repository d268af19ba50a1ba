"""Reading and writing checkpoints: `safe_load` (bytes -> tensors, runs no code), `native` (our own layout)."""
