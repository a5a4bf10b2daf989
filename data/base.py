"""The base of every benchmark's DataModule: splits of :class:`CodeTask`, in an order that resumes exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from lightning_dterm.data.loader import ResumableDataLoader, ShardedBatchSampler, TaskBatch
from lightning_dterm.modules.config import resolve_seed
from lightning_dterm.modules.distributed import all_gather, together
from lightning_dterm.types import CodeTask


class CodeDataModule(L.LightningDataModule):
    """Serves batches of tasks (``list[CodeTask]``) for training, validation, test and prediction.

    A benchmark overrides :meth:`train_tasks`, :meth:`validation_tasks` and :meth:`test_tasks`, which return map-style
    data. Run the trainer with ``use_distributed_sampler: false``: the module shards by itself. Training batches are
    always full; evaluation visits every row once, and where rows do not divide evenly the last batch of a rank may be
    short or empty (``[]``), so that all ranks run the same number of batches.

    Args:
        batch_size: Training prompts per step over all processes, so that a run is the same on one process or several.
        seed: Seed of the training order and of whatever the benchmark samples; not negative. None follows
            ``seed_everything`` (0 where that was not called); a resumed run then goes on with its checkpoint's.
        num_workers: Loader processes; 0 builds tasks in the training process.
        eval_batch_size: Prompts per process and batch in validation, test and prediction.
        limit_train: Use only the first so many training rows (None: all).
        limit_validation: The same for validation.
        limit_test: The same for test and prediction.

    Raises:
        ValueError: for a size below 1, a negative seed, or (when the loader is made) a training batch that does not
            divide over the processes.
    """

    def __init__(
        self,
        batch_size: int = 16,
        seed: int | None = None,
        num_workers: int = 0,
        eval_batch_size: int = 64,
        limit_train: int | None = None,
        limit_validation: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        super().__init__()
        limits = {"limit_train": limit_train, "limit_validation": limit_validation, "limit_test": limit_test}
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size, **limits}.items():
            if value is not None and value < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1, got {value}")
        self.follows_seed = seed is None
        self.seed, self.num_workers = resolve_seed(seed), num_workers
        if self.seed < 0 or num_workers < 0:
            raise ValueError(f"{type(self).__name__}: seed and num_workers must not be negative")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self._limits = {"train": limit_train, "validation": limit_validation, "test": limit_test}
        self._tasks: dict[str, Sequence[CodeTask]] = {}
        self.stage = ""

    def train_tasks(self) -> Sequence[CodeTask]:
        """The training split, map-style: indexing builds one task."""
        raise NotImplementedError(f"{type(self).__name__} has no training split")

    def validation_tasks(self) -> Sequence[CodeTask]:
        """The validation split; may be empty in ``fit``, which then runs without validation."""
        raise NotImplementedError(f"{type(self).__name__} has no validation split")

    def test_tasks(self) -> Sequence[CodeTask]:
        """The test split, also used for prediction."""
        raise NotImplementedError(f"{type(self).__name__} has no test split")

    def setup(self, stage: str) -> None:
        """Build the splits that ``stage`` (fit, validate, test or predict) needs, once each; all ranks must call."""
        self.stage = stage
        if self.follows_seed and not self._tasks:
            self.seed = all_gather(self.seed)[0]  # a script may have seeded every process differently
        needed = {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, ("test",))
        for split in needed:
            if split not in self._tasks:
                self._tasks[split] = getattr(self, f"{split}_tasks")()

    def tasks(self, split: str) -> Sequence[CodeTask]:
        """A split as built by :meth:`setup` (``train``, ``validation`` or ``test``), before any limit."""
        return self._tasks[split]

    def state_dict(self) -> dict[str, Any]:
        """The seed, for the checkpoint."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run that was given no data seed of its own goes on with its checkpoint's, so that resume is exact."""
        seed = int(state_dict["seed"])
        if self.stage == "fit" and self.follows_seed and seed != self.seed:
            rank_zero_warn(
                f"going on with the checkpoint's data seed {seed} instead of seed_everything's {self.seed}; for "
                "another one start a new run"
            )
            self.seed = seed
            self._tasks["train"] = self.train_tasks()

    def _shard(self) -> tuple[int, int]:
        """(rank, processes) that share the data; under tensor parallelism fewer than the world."""
        if self.trainer is None:
            # Used without a trainer, perhaps in processes that share the work all the same.
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                return torch.distributed.get_rank(), torch.distributed.get_world_size()
            return 0, 1
        kwargs = self.trainer.distributed_sampler_kwargs
        return (int(kwargs["rank"]), int(kwargs["num_replicas"])) if kwargs else (0, 1)

    def _sampler(self, split: str) -> ShardedBatchSampler:
        limit = self._limits[split]
        rows = len(self._tasks[split])
        rank, world_size = self._shard()
        training = split == "train"
        if training and self.batch_size % world_size:
            raise ValueError(
                f"{type(self).__name__}: batch_size {self.batch_size} (prompts per step over all processes) does not "
                f"divide over {world_size} processes; choose a multiple of {world_size}"
            )
        return ShardedBatchSampler(
            rows if limit is None else min(rows, limit),
            self.batch_size // world_size if training else self.eval_batch_size,
            rank,
            world_size,
            shuffle=training,
            seed=self.seed,
            drop_last=training,
            max_batches=self._max_batches() if training else None,
        )

    def _max_batches(self) -> int | None:
        """``trainer.limit_train_batches`` where it is a number: the sampler must know where an epoch ends to resume."""
        limit = self.trainer.limit_train_batches if self.trainer is not None else None
        return limit if isinstance(limit, int) else None

    def _loader(self, split: str) -> DataLoader[CodeTask]:
        sampler = self._sampler(split)
        if len(sampler) == 0:
            raise ValueError(
                f"{type(self).__name__}: the {split} split has {sampler.length} rows, too few for one batch of "
                f"{sampler.global_batch_size} (batch size {sampler.batch_size} x {sampler.world_size} processes); "
                "lower the batch size, raise the limit, or add data"
            )
        return ResumableDataLoader(self._tasks[split], sampler, self.num_workers)

    def train_dataloader(self) -> DataLoader[CodeTask]:
        """Full batches in the seeded order, resumable at the exact row."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[CodeTask] | list[Any]:
        """Every validation row once, in order; no loader at all where ``fit`` has no validation rows."""
        if self.stage == "fit" and not len(self._tasks["validation"]):
            return []
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader[CodeTask]:
        """Every test row once, in order."""
        return self._loader("test")

    def predict_dataloader(self) -> PredictionBatches:
        """Every test row once, in order."""
        return PredictionBatches(self._tasks["test"], self._sampler("test"))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Unwrap :class:`TaskBatch` to the plain list that the module gets; tasks live on no device.

        Raises:
            Exception: What kept this rank's batch from being built.
            ProcessFailed: If another rank's could not be built.
        """
        return together(lambda: batch.tasks) if isinstance(batch, TaskBatch) else batch


class PredictionBatches:
    """A sized iterable of :class:`TaskBatch`: Lightning rebuilds the ``DataLoader`` of prediction, and this is none."""

    def __init__(self, tasks: Sequence[CodeTask], sampler: ShardedBatchSampler) -> None:
        self.tasks, self.order = tasks, sampler

    def __iter__(self) -> Any:
        for rows in self.order:
            try:
                batch = TaskBatch([self.tasks[row] for row in rows])
            except Exception as error:
                batch = TaskBatch([], error)  # raised where all ranks can be told
            yield batch

    def __len__(self) -> int:
        return len(self.order)
