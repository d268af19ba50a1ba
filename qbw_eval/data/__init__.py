"""Evaluation and training data: `sources` reads it, `batches` puts it on the device, once."""
