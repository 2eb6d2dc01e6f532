"""Clustered bootstrap means: against scipy's bootstrap, and what resampling clips alone would get wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from worldr1.evaluation.intervals import clustered_mean


def test_the_interval_is_that_of_scipy() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 6, size=40)
    clusters = np.repeat(np.arange(40), counts)
    values = rng.normal(size=40)[clusters] + rng.normal(scale=0.3, size=len(clusters))
    got = clustered_mean(values.tolist(), clusters.tolist())
    sums = np.bincount(clusters, values)
    theirs = scipy.stats.bootstrap(
        (sums, counts), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True, vectorized=True,
        n_resamples=20_000, method="percentile", random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert got["mean"] == pytest.approx(values.mean(), abs=1e-12)
    assert (got["count"], got["num_prompts"]) == (len(values), 40)
    assert got["low"] == pytest.approx(theirs.low, abs=0.02) and got["high"] == pytest.approx(theirs.high, abs=0.02)


def test_clips_of_one_prompt_are_no_independent_evidence() -> None:
    rng = np.random.default_rng(2)
    means = rng.normal(size=30)
    once = clustered_mean(means.tolist(), list(range(30)))
    twenty = clustered_mean(np.repeat(means, 20).tolist(), np.repeat(np.arange(30), 20).tolist())
    alone = clustered_mean(np.repeat(means, 20).tolist(), list(range(600)))
    width = {name: x["high"] - x["low"] for name, x in (("once", once), ("twenty", twenty), ("alone", alone))}
    assert width["twenty"] == pytest.approx(width["once"], rel=1e-9)  # more of the same says no more
    assert width["alone"] < 0.3 * width["once"]


def test_what_has_no_interval() -> None:
    nan = math.nan
    assert math.isnan(clustered_mean([nan, nan], ["a", "b"])["mean"])
    one = clustered_mean([1.0, 3.0, nan], ["a", "a", "b"])
    assert (one["mean"], one["count"], one["num_prompts"]) == (2.0, 2, 1) and math.isnan(one["low"])
    same = clustered_mean([0.5, 0.5, 0.5], ["a", "b", "c"])
    assert same["low"] == same["high"] == same["mean"] == 0.5


def test_many_clusters_are_drawn_in_pieces(monkeypatch) -> None:
    values, clusters = np.random.default_rng(3).normal(size=50).tolist(), list(range(50))
    whole = clustered_mean(values, clusters)
    monkeypatch.setattr("worldr1.evaluation.intervals._DRAWS_PER_CALL", 50 * 7)
    assert clustered_mean(values, clusters) == whole
