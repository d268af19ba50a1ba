"""Layer tables for tests that need no network."""

from qbw_eval.layer_table import Layer, LayerTable


def table_of(*sizes: tuple[int, int]) -> LayerTable:
    """Return a table of layers with these (weights, macs)."""
    return LayerTable(
        tuple(
            Layer(
                layer_name=f"layer{index}",
                kind="conv2d",
                weights=weights,
                macs=macs,
                in_channels=1,
                out_channels=1,
                kernel="3x3",
                stride="1x1",
            )
            for index, (weights, macs) in enumerate(sizes)
        )
    )
