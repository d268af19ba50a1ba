"""The additive model: a result is what the largest options give, plus one effect per layer and option.

    result = base + sum over layers of effect[layer, bits of the layer] + noise

Least squares on one column per layer and option but the layer's largest. Where there are too few rows for that, ridge:
effects are then shrunk towards 0 by as much as predicts left-out rows best, and have no honest interval.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t

from qbw_report.selection import configurations

SPARE_ROWS = 5
"""Rows beyond the number of effects that least squares needs to know its own error."""

LEAST_ROWS = 5
"""With fewer, not even ridge is tried."""

_PENALTIES = np.logspace(-3, 3, 25)


@dataclass(frozen=True, kw_only=True)
class Additive:
    """A fitted additive model of `layers` layers and `options` options.

    Attributes:
        options: bits, ascending: (options,).
        against: each layer's largest option that was seen: (layers,).
        base: the result with every layer at it.
        effects: what each option changes: (layers, options); NaN where it was never seen, 0 for `against`.
        low: lower end of the effects' 95% intervals; NaN for ridge.
        high: upper end of them.
        seen: how many rows have this layer at this option: (layers, options).
        rows: how many rows were fitted.
        penalty: of ridge; 0 for least squares.
        left_out: what the model without a row predicts for that row: (rows,).
        left_out_half: half widths of the 95% intervals of these: (rows,).
        fit: what intervals of predictions are made of.
    """

    options: tuple[int, ...]
    against: tuple[int, ...]
    base: float
    effects: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seen: np.ndarray
    rows: int
    penalty: float
    left_out: np.ndarray
    left_out_half: np.ndarray
    fit: "_Fit"

    @property
    def method(self) -> str:
        """How it was fitted, in words."""
        if self.penalty:
            return f"ridge (penalty {self.penalty:.2g}), {self.rows} rows: too few for least squares; no intervals"
        return f"least squares, {self.rows} rows"

    def predict(self, bitwidths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return predictions for configurations (n, layers), and the half widths of their 95% intervals.

        The interval is that of one configuration's measured result, not of the mean of many. NaN where a layer has bits
        that it was never seen at.
        """
        columns = self.fit.columns(bitwidths)
        predicted = self.base + columns @ self.fit.coefficients
        half = self.fit.half_width(columns)
        index = np.searchsorted(self.options, bitwidths)
        unknown = np.isnan(self.effects[np.arange(len(self.against)), np.minimum(index, len(self.options) - 1)])
        unknown |= ~np.isin(bitwidths, self.options)
        strange = unknown.any(axis=1)
        return np.where(strange, np.nan, predicted), np.where(strange, np.nan, half)


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """The linear algebra behind a model.

    Attributes:
        pairs: layer and option of each column.
        center: mean of each column.
        coefficients: one a column.
        inverse: inverse of the centered columns' (penalized) moment matrix.
        error: standard deviation of what is left.
        freedom: its degrees of freedom.
        count: rows.
    """

    pairs: tuple[tuple[int, int], ...]
    center: np.ndarray
    coefficients: np.ndarray
    inverse: np.ndarray
    error: float
    freedom: int
    count: int

    def columns(self, bitwidths: np.ndarray) -> np.ndarray:
        """Return one column of 0 and 1 for each layer and option: (n, columns)."""
        if not self.pairs:
            return np.zeros((len(bitwidths), 0))
        layers, options = np.array(self.pairs).T
        return np.asarray(bitwidths[:, layers] == options, dtype=float)

    def half_width(self, columns: np.ndarray) -> np.ndarray:
        """Return half widths of 95% intervals of single results at these columns: (n,)."""
        away = columns - self.center
        leverage = 1 / self.count + ((away @ self.inverse) * away).sum(axis=1)
        return np.asarray(t.ppf(0.975, self.freedom) * self.error * np.sqrt(1 + leverage))


def fit_additive(bitwidths: np.ndarray, results: np.ndarray, options: Sequence[int]) -> Additive | str:
    """Return the model, or why there is none.

    Args:
        bitwidths: bits of every layer: (rows, layers).
        results: one a row, finite, of any magnitude: (rows,).
        options: the bitwidths there are.
    """
    # Squares of large results overflow, those of tiny ones vanish. A power of two changes no digit of what is fitted.
    unit = _unit_of(results)
    model = _fitted(bitwidths, results / unit, options)
    return model if isinstance(model, str) else _times(model, unit)


def _unit_of(values: np.ndarray) -> float:
    """Return the power of two that brings the largest magnitude of finite values to between 1 and 2; 1/2 for none.

    >>> _unit_of(np.array([0.75, -6.0]))
    4.0
    """
    return math.ldexp(1.0, math.frexp(float(np.abs(values).max(initial=0.0)))[1] - 1)


def _times(model: Additive, unit: float) -> Additive | str:
    """Return the model of results in another unit, or why float64 cannot hold it."""
    arrays = {name: getattr(model, name) for name in ("effects", "low", "high", "left_out", "left_out_half")}
    largest = max(abs(model.base), *(np.nanmax(np.abs(values), initial=0.0) for values in arrays.values()))
    if largest > sys.float_info.max / unit:
        return f"effects are larger than float64 holds, {sys.float_info.max:.1e}"
    return replace(
        model,
        base=model.base * unit,
        fit=replace(model.fit, coefficients=model.fit.coefficients * unit, error=model.fit.error * unit),
        **{name: values * unit for name, values in arrays.items()},
    )


def _fitted(bitwidths: np.ndarray, results: np.ndarray, options: Sequence[int]) -> Additive | str:
    """Return the model, or why there is none, of results of ordinary magnitude."""
    rows, layers = bitwidths.shape
    options = tuple(sorted({int(bits) for bits in options} | {int(bits) for bits in np.unique(bitwidths)}))
    if rows < LEAST_ROWS:
        return f"{configurations(rows)} measured, at least {LEAST_ROWS} needed; evaluate about {LEAST_ROWS - rows} more"
    seen = np.stack([(bitwidths == option).sum(axis=0) for option in options], axis=1)  # (layers, options)
    against = bitwidths.max(axis=0)
    pairs = tuple(
        (layer, option)
        for layer in range(layers)
        for place, option in enumerate(options)
        if seen[layer, place] and option != against[layer]
    )
    if not pairs:
        return "every configuration has the same bits"
    layer_of, option_of = np.array(pairs).T
    columns = (bitwidths[:, layer_of] == option_of).astype(float)
    center, mean = columns.mean(axis=0), float(results.mean())
    away, aim = columns - center, results - mean
    enough = rows >= len(pairs) + 1 + SPARE_ROWS and np.linalg.matrix_rank(away) == len(pairs)
    penalty = 0.0 if enough else _best_penalty(away, aim)
    inverse = np.linalg.inv(away.T @ away + penalty * np.eye(len(pairs)))
    hat = 1 / rows + ((away @ inverse) * away).sum(axis=1)
    coefficients = inverse @ (away.T @ aim)
    residuals = aim - away @ coefficients
    kept = np.maximum(1 - hat, 1e-9)
    if penalty:
        freedom, error = rows - 1, math.sqrt(float(np.mean((residuals / kept) ** 2)))
        spread, inverse = np.full(len(pairs), np.nan), np.zeros_like(inverse)
    else:
        freedom = rows - len(pairs) - 1
        error = math.sqrt(float(residuals @ residuals) / freedom)
        spread = t.ppf(0.975, freedom) * error * np.sqrt(np.diag(inverse))
    fit = _Fit(
        pairs=pairs,
        center=center,
        coefficients=coefficients,
        inverse=inverse,
        error=error,
        freedom=freedom,
        count=rows,
    )
    effects = np.where(seen > 0, 0.0, np.nan)
    low, high = effects.copy(), effects.copy()
    place_of = np.searchsorted(options, option_of)
    effects[layer_of, place_of] = coefficients
    low[layer_of, place_of], high[layer_of, place_of] = coefficients - spread, coefficients + spread
    return Additive(
        options=options,
        against=tuple(int(bits) for bits in against),
        base=mean - float(center @ coefficients),
        effects=effects,
        low=low,
        high=high,
        seen=seen,
        rows=rows,
        penalty=penalty,
        left_out=results - residuals / kept,
        left_out_half=t.ppf(0.975, freedom) * error / np.sqrt(kept) if not penalty else np.full(rows, _wide(fit)),
        fit=fit,
    )


def _wide(fit: _Fit) -> float:
    return float(t.ppf(0.975, fit.freedom)) * fit.error


def _best_penalty(away: np.ndarray, aim: np.ndarray) -> float:
    """Return the penalty under which rows that are left out are predicted best, in closed form (Allen's PRESS)."""
    left, sizes, _ = np.linalg.svd(away, full_matrices=False)
    scale = max(float(np.mean(sizes**2)), 1e-12)
    along = left.T @ aim

    def missed(penalty: float) -> float:
        kept = sizes**2 / (sizes**2 + penalty)
        residuals = aim - left @ (kept * along)
        hat = 1 / len(aim) + (left**2 @ kept)
        return float(np.sum((residuals / np.maximum(1 - hat, 1e-9)) ** 2))

    return float(min(_PENALTIES * scale, key=missed))
