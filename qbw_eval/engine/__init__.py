"""Engines turn a batch and configurations into logits; `tally` turns logits into counts."""
