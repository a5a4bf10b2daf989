"""MicroCode as a DataModule: the generated benchmark that needs no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_dterm.data.base import CodeDataModule
from lightning_dterm.data.microcode import MicroCode
from lightning_dterm.data.microcode.corpus import MixedCorpus
from lightning_dterm.types import CodeTask


class MicroCodeDataModule(CodeDataModule):
    """Small generated programs with tests, in five task types; the three splits share no program structure.

    Tasks are generated when they are used, from a seed and their number alone. Runs with different seeds (by default
    ``seed_everything``'s) train on different tasks but are judged on the same ones.

    Args:
        train_size: Training tasks per epoch.
        validation_size: Validation tasks.
        test_size: Test tasks.
        task_types: Task types to draw from; ``optimization`` only when named here.
        evaluation_seed: Chooses the validation and test tasks.
        flawed_share: Share of hasty authors among the *training* references, as in scraped code: for supervised warm
            starts (see :mod:`lightning_dterm.data.microcode.corpus`). Validation and test references stay correct.
        **kwargs: See :class:`CodeDataModule`; ``seed`` also chooses the training tasks.

    Raises:
        ValueError: for a size below 1, no task type, or a share outside [0, 1].
    """

    def __init__(
        self,
        train_size: int = 20_000,
        validation_size: int = 250,
        test_size: int = 500,
        task_types: Sequence[str] = ("summarization", "translation", "completion", "repair", "synthesis"),
        evaluation_seed: int = 0,
        flawed_share: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sizes = {"train": train_size, "validation": validation_size, "test": test_size}
        for split, size in self.sizes.items():
            if size < 1:
                raise ValueError(f"MicroCodeDataModule: {split}_size must be at least 1, got {size}")
        if not task_types:
            raise ValueError("MicroCodeDataModule: task_types is empty; name at least one")
        self.task_types = tuple(task_types)
        self.evaluation_seed = evaluation_seed
        if not 0.0 <= flawed_share <= 1.0:
            raise ValueError(f"MicroCodeDataModule: flawed_share must lie in [0, 1], got {flawed_share}")
        self.flawed_share = flawed_share

    def _generate(self, split: str) -> MicroCode:
        seed = self.seed if split == "train" else self.evaluation_seed
        return MicroCode(split, self.sizes[split], seed=seed, task_types=self.task_types)

    def train_tasks(self) -> Sequence[CodeTask]:
        """``train_size`` tasks of the training structures, flawed references among them where asked for."""
        tasks = self._generate("train")
        return MixedCorpus(tasks, self.flawed_share) if self.flawed_share else tasks

    def validation_tasks(self) -> Sequence[CodeTask]:
        """``validation_size`` tasks of the validation structures."""
        return self._generate("validation")

    def test_tasks(self) -> Sequence[CodeTask]:
        """``test_size`` tasks of the test structures."""
        return self._generate("test")
