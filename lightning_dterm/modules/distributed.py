"""The few collective operations of a run, each the identity in a single process."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def leave_process_group_at_exit() -> None:
    """End the process group before the interpreter goes.

    Gloo's threads may still hold tensors with Python references then, and destroying those aborts the process
    ("terminate called without an active exception") after a run that was in order. Lightning does this for NCCL only.
    """
    if world_size() > 1:
        atexit.unregister(_destroy_process_group)  # once, however many stages are run
        atexit.register(_destroy_process_group)


def _destroy_process_group() -> None:
    if dist.is_initialized():
        # A discarded DDP module must not outlive the group: as its last owner it would be collected later and wait,
        # holding the interpreter's lock, for the end of gloo's thread, which waits for that lock: for ever.
        gc.collect()
        dist.destroy_process_group()


def all_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks; the result is the same on all of them."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def all_gather(item: T) -> list[T]:
    """Every rank's ``item``, in rank order."""
    if world_size() == 1:
        return [item]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, item)
    return gathered


class ProcessFailed(RuntimeError):
    """Another process of the run failed; the message says which and why. That one raises its own error."""


def together(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call ``function`` on every rank; where it fails on one, all stop, so that none waits for ever for the others.

    In a single process this is a plain call; in several it costs one small collective.

    Args:
        function: What may fail on one rank alone. Its own collectives, if any, must come before that.
        *args: Its arguments.
        **kwargs: Its arguments.

    Raises:
        Exception: What ``function`` raised here.
        ProcessFailed: If it raised on another rank only.
    """
    if world_size() == 1:
        return function(*args, **kwargs)
    result: list[T] = []
    failure: Exception | None = None
    try:
        result.append(function(*args, **kwargs))
    except Exception as error:
        failure = error
    reasons = all_gather(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for number, reason in enumerate(reasons):
        if reason is not None:
            raise ProcessFailed(f"process {number} of {len(reasons)} failed: {reason}")
    return result[0]


class Means:
    """Weighted means of named scalars, exact however the samples lie over ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._sums

    def add(self, name: str, total: float | Tensor, weight: float | Tensor = 1.0) -> None:
        """Add a sum and the weight (number of items) it stands for."""
        old_total, old_weight = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (old_total + float(total), old_weight + float(weight))

    def add_masked(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Add all of ``values`` inside ``mask``."""
        inside = mask.bool()
        self.add(name, values.detach().double()[inside].sum(), inside.sum())

    def reduce(self) -> dict[str, float]:
        """The means over all ranks; names of any rank, those without weight left out."""
        return merge_means(all_gather(self._sums))


def merge_means(parts: Iterable[dict[str, tuple[float, float]]]) -> dict[str, float]:
    """Merge per-rank ``{name: (sum, weight)}`` into ``{name: mean}``, names sorted."""
    merged: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, (total, weight) in part.items():
            old_total, old_weight = merged.get(name, (0.0, 0.0))
            merged[name] = (old_total + total, old_weight + weight)
    return {name: total / weight for name, (total, weight) in sorted(merged.items()) if weight > 0}


def global_order(parts: list[list[T]]) -> list[T]:
    """Interleave per-rank lists as the sampler dealt them: row i of rank r is global row i W + r.

    Evaluation deals every row once, so the last ranks may have one row less.
    """
    longest = max((len(part) for part in parts), default=0)
    return [part[i] for i in range(longest) for part in parts if i < len(part)]


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators from one number."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
