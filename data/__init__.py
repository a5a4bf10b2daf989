"""Benchmarks as LightningDataModules; every one serves :class:`lightning_dterm.types.CodeTask`."""

from lightning_dterm.data.base import CodeDataModule
from lightning_dterm.data.codexglue import CodeXGLUETranslationDataModule
from lightning_dterm.data.jsonl import JsonlDataModule
from lightning_dterm.data.loader import ResumableDataLoader, ShardedBatchSampler, TaskBatch
from lightning_dterm.data.microcode import MicroCode
from lightning_dterm.data.microcode_module import MicroCodeDataModule
from lightning_dterm.data.preferences import PreferenceDataModule, PreferencePair
from lightning_dterm.data.rows import RowError

__all__ = [
    "CodeDataModule",
    "CodeXGLUETranslationDataModule",
    "JsonlDataModule",
    "MicroCode",
    "MicroCodeDataModule",
    "PreferenceDataModule",
    "PreferencePair",
    "ResumableDataLoader",
    "RowError",
    "ShardedBatchSampler",
    "TaskBatch",
]
