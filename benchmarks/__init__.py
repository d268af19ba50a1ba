"""The figures that an issue names, measured; run with `make bench`, explained in docs/performance.md."""
