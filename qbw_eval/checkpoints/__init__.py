"""Reading and writing checkpoints: `safe_load` and `safetensors_file` (bytes -> tensors), `native` (our own layout)."""
