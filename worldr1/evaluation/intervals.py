"""Means of clips with 95 % bootstrap intervals; clips of one prompt are resampled together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
_DRAWS_PER_CALL = 1 << 22


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> dict[str, Any]:
    """The mean of values, and the 2.5 and 97.5 % quantiles of the means of resampled clusters.

    Clusters are drawn with replacement, as many as there are, each with all its values; always the same draws.

    Args:
      values: Of each clip; those that are not finite are left out.
      clusters: Of each clip, its prompt.
    Returns:
      mean, low, high, count (values used), num_prompts (clusters used). mean is NaN without a value, low and high with
      fewer than two clusters.
    Source: Efron and Tibshirani, 1993, An Introduction to the Bootstrap (percentile interval); cluster bootstrap: Field
      and Welsh, 2007, https://doi.org/10.1111/j.1467-9868.2007.00593.x.
    """
    sums: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        if math.isfinite(value):
            sums.setdefault(cluster, []).append(value)
    total = np.array([math.fsum(own) for own in sums.values()])
    count = np.array([len(own) for own in sums.values()])
    num = len(count)
    out = {"mean": math.nan, "low": math.nan, "high": math.nan, "count": int(count.sum()), "num_prompts": num}
    if not num:
        return out
    out["mean"] = math.fsum(total) / out["count"]
    if num > 1:
        rng = np.random.default_rng(0)
        rows = max(1, _DRAWS_PER_CALL // num)
        means = []
        for start in range(0, RESAMPLES, rows):
            drawn = rng.integers(num, size=(min(rows, RESAMPLES - start), num))
            means.append(total[drawn].sum(1) / count[drawn].sum(1))
        out["low"], out["high"] = (float(q) for q in np.quantile(np.concatenate(means), (0.025, 0.975)))
    return out
