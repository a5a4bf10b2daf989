"""Batches in a fixed order: a sharded batch sampler and a data loader that resumes at the exact row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Sampler

from lightning_dterm.types import CodeTask


class TaskBatch:
    """A batch of tasks on its way to the module: sized, iterable and indexable, and opaque to Lightning.

    Lightning's half-precision plugins rebuild every list and dataclass of a batch, which frozen tasks refuse; an object
    of no known collection type passes untouched. ``CodeDataModule`` unwraps it to a plain ``list[CodeTask]`` before the
    module sees it.

    Args:
        tasks: The batch.
        failure: Why it could not be built; whoever reads it gets that raised.
    """

    __slots__ = ("_failure", "_tasks")

    def __init__(self, tasks: Sequence[CodeTask], failure: Exception | None = None) -> None:
        self._tasks, self._failure = list(tasks), failure

    @property
    def tasks(self) -> list[CodeTask]:
        """The batch as a list."""
        if self._failure is not None:
            raise self._failure
        return self._tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[CodeTask]:
        return iter(self.tasks)

    def __getitem__(self, index: int) -> CodeTask:
        return self.tasks[index]

    def __repr__(self) -> str:
        return f"TaskBatch({[task.task_id for task in self.tasks]})"


class ShardedBatchSampler(Sampler[list[int]]):
    """Row numbers of this rank's batches: a pure function of (seed, epoch, position, rank, world size).

    Global batch ``j`` of an epoch is rows ``[j * G, (j + 1) * G)`` of the epoch's order, ``G = batch_size *
    world_size``; rank ``r`` takes every ``world_size``-th of them starting at ``r``. The union over ranks is therefore
    the batch that one process with ``batch_size = G`` would take.

    Args:
        length: Rows in the data set.
        batch_size: Rows per rank and batch.
        rank: This process, in ``[0, world_size)``.
        world_size: Processes that share the data.
        shuffle: Permute the rows anew in every epoch.
        seed: Non-negative seed of the permutations.
        drop_last: True (training): every batch is full, up to ``G - 1`` rows of an epoch's order are left out. False
            (evaluation): every row is used exactly once; all ranks get the same number of batches, the last of which
            may be short or empty on some.
        max_batches: End an epoch after so many batches (``trainer.limit_train_batches``); None: all.

    Raises:
        ValueError: for a size, rank or seed out of range.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        max_batches: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if length < 0 or not 0 <= rank < world_size:
            raise ValueError(f"need length >= 0 and 0 <= rank < world_size, got {length=}, {rank=}, {world_size=}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.length, self.batch_size, self.rank, self.world_size = length, batch_size, rank, world_size
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.max_batches = max_batches
        self.epoch = 0
        self.first_batch = 0

    @property
    def sampler(self) -> ShardedBatchSampler:
        """Itself: Lightning looks for ``set_epoch`` on ``batch_sampler.sampler``, not on the batch sampler."""
        return self

    @property
    def global_batch_size(self) -> int:
        """Rows per batch over all ranks."""
        return self.batch_size * self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def order(self, epoch: int) -> np.ndarray:
        """Row numbers of a whole epoch in the order all ranks together take them, ``[length]`` int64."""
        if not self.shuffle:
            return np.arange(self.length)
        return np.random.default_rng([self.seed, epoch]).permutation(self.length)

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[int]]:
        """This rank's batches of ``epoch`` from batch number ``first`` on."""
        order = self.order(epoch)
        for batch in range(first, len(self)):
            start = batch * self.global_batch_size
            yield order[start + self.rank : start + self.global_batch_size : self.world_size].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return self.batches(self.epoch, self.first_batch)

    def __len__(self) -> int:
        full, rest = divmod(self.length, self.global_batch_size)
        batches = full + (rest > 0 and not self.drop_last)
        return batches if self.max_batches is None else min(batches, self.max_batches)


class ResumableDataLoader(DataLoader[CodeTask]):
    """A sized loader of :class:`TaskBatch` whose position survives a checkpoint, with any number of workers.

    Lightning finds ``state_dict``/``load_state_dict``, stores the state beside the fit loop's and loads it before the
    loader is iterated again. Position counts batches *handed out*, so nothing that workers prefetched is lost; the
    length is the whole epoch's, which is why Lightning itself prefetches nothing.

    Args:
        tasks: Map-style data.
        sampler: Order of the rows.
        num_workers: Worker processes that build tasks; 0 builds them in the training process.
    """

    def __init__(self, tasks: Sequence[CodeTask], sampler: ShardedBatchSampler, num_workers: int = 0) -> None:
        # An own generator: otherwise each new iterator draws a seed from torch's global one, and a resumed run,
        # which makes one iterator more than an uninterrupted run, would sample differently ever after.
        super().__init__(
            tasks,  # type: ignore[arg-type]
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=TaskBatch,
            generator=torch.Generator().manual_seed(sampler.seed),
        )
        self._order = sampler
        self._epoch = 0
        self._taken = 0
        self._placed = False
        self._content: str | None = None

    def __iter__(self) -> Iterator[TaskBatch]:  # type: ignore[override]
        # A generator: nothing runs before the first `next`. Training is one stream: where Lightning drops an iterator
        # within an epoch (it does so after a resume at an epoch's end) or stops there (`max_steps`), the next one goes
        # on from that row, whatever Lightning's own epoch counter says. That counter only tells where a new loader
        # starts: Lightning restores no loader state at the end of an epoch. Evaluation starts at its first row.
        self._epoch, self._taken = self._position() if self._order.drop_last else (0, 0)
        self._placed = True
        self._order.set_epoch(self._epoch)
        self._order.first_batch = self._taken
        try:
            batches = super().__iter__()
        finally:
            self._order.first_batch = 0
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                if self._order.world_size == 1:
                    raise
                yield TaskBatch([], error)  # raised where all ranks can be told
                return
            self._taken += 1
            yield batch

    def _position(self) -> tuple[int, int]:
        """Epoch and batch that come next."""
        if not self._placed:
            return self._order.epoch, 0
        return (self._epoch, self._taken) if self._taken < len(self) else (self._epoch + 1, 0)

    def _fingerprint(self) -> dict[str, Any]:
        order = self._order
        if self._content is None:
            self._content = _content_digest(self.dataset, order.length)  # type: ignore[arg-type]
        return {
            "rows": order.length,
            "global_batch_size": order.global_batch_size,
            "seed": order.seed,
            "content": self._content,
        }

    def state_dict(self) -> dict[str, Any]:
        """Position (``epoch``, ``batches`` taken from it) and what it depends on; the same on every rank."""
        epoch, taken = self._position()
        return {"epoch": epoch, "batches": taken, **self._fingerprint()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue after the batch at which ``state_dict`` was taken.

        Raises:
            ValueError: if the data (their number, or the first, middle and last rows), the global batch size or the
                seed differ, for then the position means nothing.
        """
        for key, here in self._fingerprint().items():
            if key == "content" and key not in state_dict:
                rank_zero_warn(
                    "this older checkpoint does not say which training data it was written with: the position is taken "
                    "to be in this run's"
                )
            elif state_dict[key] != here:
                raise ValueError(
                    f"cannot resume the training data: the checkpoint was written with {key}={state_dict[key]}, this "
                    f"run has {key}={here}; restore the setting (rows, content: the same data files and "
                    "limit_train; global batch size: the data's batch_size; seed: data.init_args.seed) or start a new "
                    "run without ckpt_path"
                )
        self._epoch, self._taken = int(state_dict["epoch"]), int(state_dict["batches"])
        self._placed = True


def _content_digest(tasks: Sequence[CodeTask], length: int, few: int = 3) -> str:
    """Digest of the ``few`` first, middle and last of the first ``length`` tasks: enough to tell data sets apart."""
    middle = max(0, length // 2 - few // 2)
    rows = {row for start in (0, middle, max(0, length - few)) for row in range(start, min(start + few, length))}
    digest = hashlib.blake2b(digest_size=8)
    for row in sorted(rows):
        task = tasks[row]
        for part in (task.task_id, task.prompt, task.reference):
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
