"""The task's own success, which rewards are judged by."""

from __future__ import annotations

import math

from lightning_dterm.metrics.exact_match import exact_match
from lightning_dterm.rewards.columns import is_infra
from lightning_dterm.types import Sample


def outcome_of(sample: Sample) -> float:
    """The task's own success on what no reward reads; NaN where unknown.

    ``tests``: share of hidden tests passed; unknown where they ran in the program's own process, since what it claims
    is no success to learn from. ``exact_match``: as :func:`lightning_dterm.metrics.exact_match`.
    """
    task = sample.task
    if task.success_metric == "exact_match":
        return float(exact_match(sample.code, task.reference, task.metadata.get("accepted", ()), task.language))
    if sample.execution is None or is_infra(sample) or sample.execution.claimed(visible=False):
        return math.nan
    share = sample.execution.share_passed(visible=False)
    return math.nan if share is None else share
