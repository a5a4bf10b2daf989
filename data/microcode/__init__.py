"""MicroCode: the embedded, procedurally generated benchmark of small Python programs."""

from lightning_dterm.data.microcode.generator import ALL_TASK_TYPES, TASK_TYPES, VERSION, MicroCode
from lightning_dterm.data.microcode.structure import SPLITS, split_of, structure_key

__all__ = ["ALL_TASK_TYPES", "SPLITS", "TASK_TYPES", "VERSION", "MicroCode", "split_of", "structure_key"]
