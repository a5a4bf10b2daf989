"""How much of two programs is the same: matches, and the two sizes they are judged against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Measure = Literal["f1", "precision", "recall"]
MEASURES: tuple[str, ...] = get_args(Measure)


@dataclass(frozen=True, slots=True)
class Overlap:
    """A multiset intersection.

    Attributes:
        matched: Items in both, each counted as often as it occurs in both.
        reference: Items of the reference.
        candidate: Items of the candidate.
    """

    matched: int
    reference: int
    candidate: int

    @property
    def recall(self) -> float:
        """Share of the reference found, in [0, 1]; 0 for an empty reference."""
        return self.matched / self.reference if self.reference else 0.0

    @property
    def precision(self) -> float:
        """Share of the candidate that belongs, in [0, 1]; 0 for an empty candidate."""
        return self.matched / self.candidate if self.candidate else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision, in [0, 1]; 0 where nothing is there."""
        total = self.reference + self.candidate
        return 2.0 * self.matched / total if total else 0.0

    def value(self, measure: Measure) -> float:
        """One of the three by name."""
        return float(getattr(self, measure))
