"""What the two structural rewards share: parsing in one batch, cached references, the edge cases."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from lightning_dterm.rewards.base import RewardComponent, is_empty
from lightning_dterm.sandbox.languages import canonical
from lightning_dterm.structure import (
    LANGUAGES,
    MEASURES,
    Measure,
    Overlap,
    SyntaxTree,
    TreeParser,
    shared_parser,
)  # fmt: skip
from lightning_dterm.types import CodeTask, RewardResult, Sample, Span

R = TypeVar("R")


class StructuralReward(RewardComponent, Generic[R]):
    """Compares a program's syntax tree with its reference's; subclasses say how.

    ``R`` is what a reference is made into once and compared with many programs.

    Args:
        name: Column name; default: the class's.
        measure: ``f1``, ``precision`` or ``recall``.
        cache_size: References kept, the most recently used.
        parser: Default: the one that all components of the process share.

    Raises:
        ValueError: an unknown measure, or a cache without room.
    """

    def __init__(
        self,
        name: str | None = None,
        measure: Measure = "f1",
        cache_size: int = 1024,
        parser: TreeParser | None = None,
    ) -> None:
        if measure not in MEASURES:
            raise ValueError(f"{type(self).__name__}: measure must be one of {', '.join(MEASURES)}, got {measure!r}.")
        if cache_size < 1:
            raise ValueError(f"{type(self).__name__}: cache_size must be at least 1, got {cache_size}.")
        self.name, self.measure, self.cache_size = name or type(self).name, measure, cache_size
        self._parser = parser
        self._references: OrderedDict[tuple[str, str], R | None] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_references": OrderedDict()}

    @abstractmethod
    def build(self, tree: SyntaxTree) -> R | None:
        """What is kept of a reference; None where there is nothing to compare with."""

    @abstractmethod
    def compare(self, tree: SyntaxTree, reference: R) -> RewardResult:
        """Score one program."""

    def result(self, overlap: Overlap, spans: tuple[Span, ...]) -> RewardResult:
        """The measure asked for, with all three in the details."""
        details = {
            "f1": overlap.f1, "precision": overlap.precision, "recall": overlap.recall,
            "matched": overlap.matched, "reference": overlap.reference, "candidate": overlap.candidate,
        }  # fmt: skip
        return RewardResult(overlap.value(self.measure), spans, details)

    def applies_to(self, task: CodeTask) -> bool:
        """Tasks with a reference in one of the eight languages."""
        return bool(task.reference.strip()) and canonical(task.language) in LANGUAGES

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """Compare every program with its task's reference; new references and programs are parsed in one batch."""
        parser = self._parser or shared_parser()
        wanted = {self._key(sample.task): None for sample in samples}
        known = {key: self._references[key] for key in wanted if key in self._references}
        new = [key for key in wanted if key not in known]
        programs = [
            (sample.program, canonical(sample.task.language)) for sample in samples if not is_empty(sample)
        ]  # equal programs are parsed once
        trees = parser.parse_many([(text, language) for language, text in new] + programs)
        broken = set()
        for key, tree in zip(new, trees, strict=False):
            if tree is None:
                broken.add(key)
            else:
                known[key] = self.build(tree)
        self._remember(known)
        remaining = iter(trees[len(new) :])
        return [
            RewardResult(0.0, details={"status": "empty"})
            if is_empty(sample)
            else self._score(next(remaining), self._key(sample.task), known, broken)
            for sample in samples
        ]

    @staticmethod
    def _key(task: CodeTask) -> tuple[str, str]:
        return canonical(task.language), task.prefix + task.reference

    def _remember(self, known: dict[tuple[str, str], R | None]) -> None:
        for key, reference in known.items():
            self._references[key] = reference
            self._references.move_to_end(key)
        while len(self._references) > self.cache_size:
            self._references.popitem(last=False)

    def _score(
        self,
        tree: SyntaxTree | None,
        key: tuple[str, str],
        known: dict[tuple[str, str], R | None],
        broken: set[tuple[str, str]],
    ) -> RewardResult:
        if key in broken:
            return RewardResult(None, error="the task's reference cannot be parsed within the limits")
        reference = known[key]
        if reference is None:
            return RewardResult(None, details={"status": "nothing to compare with in the reference"})
        if tree is None:
            return RewardResult(0.0, details={"status": "unparseable"})
        return self.compare(tree, reference)
