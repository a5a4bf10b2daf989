"""Preference pairs from JSON lines or Parquet: two completions of one prompt, and which of them is the better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_dterm.data.jsonl import JsonlDataModule
from lightning_dterm.data.rows import RowError, text_field
from lightning_dterm.types import CodeTask

_FIELDS = ("prompt", "chosen", "rejected", "task_id", "description")


@dataclass(frozen=True, slots=True)
class PreferencePair(CodeTask):
    """A prompt with two completions; as a task its reference is the one preferred.

    Attributes:
        chosen: The completion that was preferred.
        rejected: The other.
    """

    chosen: str = ""
    rejected: str = ""


def pair_from_row(row: Mapping[str, Any], place: str) -> PreferencePair:
    """Build a pair from one row: ``prompt``, ``chosen``, ``rejected``, all text; ``task_id``, ``description`` if known.

    Args:
        row: The row's fields.
        place: File and line, for messages, and the pair's name where it has no ``task_id``.

    Raises:
        RowError: naming the place, the field and the remedy.
    """
    unknown = [str(name) for name in row if name not in _FIELDS]
    if unknown:
        raise RowError(place, unknown[0], f"no field of a pair; leave it out (fields: {', '.join(_FIELDS)})")
    prompt, chosen, rejected = (text_field(row, name, place) for name in ("prompt", "chosen", "rejected"))
    if chosen == rejected:
        raise RowError(place, "rejected", "the same as 'chosen': such a pair teaches nothing; remove it")
    if not prompt:
        raise RowError(place, "prompt", "empty; give it the text that both completions answer")
    given = {name: text_field(row, name, place) for name in ("task_id", "description") if row.get(name) is not None}
    return PreferencePair(
        task_id=given.get("task_id", place),
        task_type="synthesis",
        language="text",
        prompt=prompt,
        description=given.get("description", prompt),
        reference=chosen,
        success_metric="exact_match",
        chosen=chosen,
        rejected=rejected,
    )


class PreferenceDataModule(JsonlDataModule):
    """Pairs for :class:`~lightning_dterm.modules.preference.PreferenceModule`, one a row (:func:`pair_from_row`).

    Takes the arguments of :class:`JsonlDataModule`; ``batch_size`` counts pairs.
    """

    convert = staticmethod(pair_from_row)
