"""The one thing both stages share: what a record is, and how a table of records becomes the bytes of a Parquet part.

Imports neither stage. Reading order: `columns`, `records`, `layers`, `check`, `parts`; `errors` is used by all.
"""
