"""Rows -> rows with a bitwidth bin."""

import numpy as np
import pandas as pd

from schemas.errors import QBWError

DECIMALS = 1


def add_bins(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a column `bitwidth_bin` (bits): `avg_bitwidth` rounded to one decimal, ties to even.

    This is numpy's rounding (scale by ten, round, scale back), as in the seed's code: 4.65 falls in bin 4.6. Python's
    own `round(4.65, 1)` is 4.7, because it looks at the double's exact value, which lies a hair above 4.65.

    Raises:
        QBWError: an average is infinite, so that there is no bin for it.
    """
    endless = np.isinf(frame["avg_bitwidth"])
    if endless.any():
        record = frame.loc[endless, "record_id"].iloc[0]
        raise QBWError(
            f"column 'avg_bitwidth': expected a finite number of bits in every row, found infinity in "
            f"{int(endless.sum())} of {len(frame)} rows (first: record {record}); evaluate those checkpoints again"
        )
    return frame.assign(bitwidth_bin=frame["avg_bitwidth"].round(DECIMALS))
