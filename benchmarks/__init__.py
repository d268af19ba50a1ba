"""Figures that an issue names, measured; run with `make bench`."""
