"""Rows -> rows with a bitwidth bin."""

import pandas as pd

DECIMALS = 1


def add_bins(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a column `bitwidth_bin` (bits): `avg_bitwidth` rounded to one decimal, ties to even.

    This is numpy's rounding (scale by ten, round, scale back), as in the seed's code: 4.65 falls in bin 4.6. Python's
    own `round(4.65, 1)` is 4.7, because it looks at the double's exact value, which lies a hair above 4.65.
    """
    return frame.assign(bitwidth_bin=frame["avg_bitwidth"].round(DECIMALS))
