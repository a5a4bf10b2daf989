"""Percentile bootstrap intervals of anything computed from summed per-sample statistics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
_CELLS = 4_000_000
"""Most drawn row numbers held at a time (32 MB)."""


def resampled_sums(statistics: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Sums over resamples drawn with replacement, each as large as the sample.

    Args:
        statistics: ``[N, k]``, one row per sample, N >= 1.
        resamples: How many.
        seed: Seed of the draws; equal seeds and N draw the same rows.

    Returns:
        ``[resamples, k]``.
    """
    rows = len(statistics)
    generator = np.random.default_rng(seed)
    sums = np.empty((resamples, statistics.shape[1]))
    step = max(1, _CELLS // rows)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(0, rows, size=(count, rows)) + rows * np.arange(count)[:, None]
        # How often each resample drew each row, so that the sums are one matrix product.
        times = np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)
        sums[start : start + count] = times.astype(np.float64) @ statistics
    return sums


def percentile_interval(values: NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """The central interval of bootstrap values; NaN values (an undefined resample) are left out.

    Args:
        values: ``[resamples]``.
        confidence: Probability mass between the two ends, in (0, 1).

    Returns:
        Lower and upper end; both NaN if no value is defined.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(defined, [tail, 100.0 - tail])
    return float(low), float(high)


def bootstrap_interval(
    statistics: NDArray[np.float64],
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of ``function`` of the summed statistics.

    Args:
        statistics: ``[N, k]`` additive statistics, one row per sample.
        function: Maps sums ``[..., k]`` to the figure ``[...]``: a ratio, BLEU, ...
        confidence: Probability mass of the interval.
        resamples: Number of resamples.
        seed: Seed of the draws.

    Returns:
        Lower and upper end, NaN for an empty sample.
    """
    if not len(statistics):
        return float("nan"), float("nan")
    return percentile_interval(function(resampled_sums(statistics, resamples, seed)), confidence)
