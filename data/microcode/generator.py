"""MicroCode: a procedurally generated benchmark of small Python programs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, overload

from lightning_dterm.data.microcode import descriptions, execution, grammar
from lightning_dterm.data.microcode.faults import faults
from lightning_dterm.data.microcode.inputs import make_inputs
from lightning_dterm.data.microcode.nodes import Program
from lightning_dterm.data.microcode.render_javascript import render_javascript
from lightning_dterm.data.microcode.render_python import render_python
from lightning_dterm.data.microcode.spec import Draw
from lightning_dterm.data.microcode.structure import SPLITS
from lightning_dterm.types import CallTest, CodeTask

VERSION = "1"
TASK_TYPES = ("summarization", "translation", "completion", "repair", "synthesis")
ALL_TASK_TYPES = (*TASK_TYPES, "optimization")
N_VISIBLE = 5
N_HIDDEN = 5
MAX_PROMPT = 350
MAX_REFERENCE = 200
MAX_LINE = 88
MAX_INTEGER = 10**9
_CUT = re.compile(r"\n(?= )|(?<=\S)(?= (?:[-+*/%<>=!]|if |for |else |in |and |or ))|(?<=return)(?= )|(?<=[(\[])(?=\w)")


class _Material:
    """A checked program with its source and tests."""

    __slots__ = ("facts", "program", "source", "tests")

    def __init__(self, program: Program, source: str, tests: tuple[CallTest, ...], facts: grammar.Facts) -> None:
        self.program = program
        self.source = source
        self.tests = tests
        self.facts = facts


def _tests(program: Program, source: str, draw: Draw) -> tuple[CallTest, ...] | None:
    """Visible and hidden tests, or None where either half is passed by a constant function."""
    function = execution.load(source, program.entry.name)
    for _ in range(3):
        inputs = make_inputs(draw, program.domain, program.hints, N_VISIBLE + N_HIDDEN)
        if len(inputs) < N_VISIBLE + N_HIDDEN:
            return None
        values = execution.run_calls(function, inputs)
        if any(value is execution.FAILED for value in values):
            raise AssertionError(f"MicroCode reference raises on its own input; program:\n{source}")
        if any(isinstance(value, int) and abs(value) > MAX_INTEGER for value in values):
            return None
        halves = values[:N_VISIBLE], values[N_VISIBLE:]
        if all(any(value != half[0] for value in half) for half in halves):
            pairs = zip(inputs, values, strict=True)
            return tuple([CallTest(args, value, i < N_VISIBLE) for i, (args, value) in enumerate(pairs)])
    return None


def _fault(material: _Material, draw: Draw) -> tuple[str, str] | None:
    """A fault that makes at least one visible and one hidden test fail, or that does not compile."""
    inputs = [test.args for test in material.tests]
    for kind, faulty in faults(material.source, draw):
        try:
            function = execution.load(faulty, material.program.entry.name)
        except SyntaxError:
            if kind == "syntax_slip":
                return kind, faulty
            continue
        if kind == "syntax_slip":
            continue
        try:
            values = execution.run_calls(function, inputs)
        except execution.EndlessLoopError:
            continue
        wrong = [
            value != test.expected or type(value) is not type(test.expected)
            for value, test in zip(values, material.tests, strict=True)
        ]
        if any(wrong[:N_VISIBLE]) and any(wrong[N_VISIBLE:]):
            return kind, faulty
    return None


class MicroCode(Sequence[CodeTask]):
    """A deterministic, map-style benchmark of small Python programs in six task types.

    Row ``i`` depends on ``(seed, split, i, task_types)`` alone, so that any row can be made in any process in any
    order. Splits are disjoint by program structure (see :func:`structure_key`) whatever their seeds; flawed training
    references (:class:`lightning_dterm.data.microcode.corpus.MixedCorpus`) are not held to that.

    Args:
        split: ``train``, ``validation`` or ``test``.
        size: Number of tasks, at least 1.
        seed: Any integer; other seeds give other tasks of the same structures' split.
        task_types: Types that rows cycle through; ``optimization`` is in only where listed here.

    Raises:
        ValueError: An unknown split or task type, none or a repeated type, or a size below 1.
    """

    def __init__(self, split: str, size: int, seed: int = 0, task_types: Sequence[str] = TASK_TYPES) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown MicroCode split {split!r}; choose one of {', '.join(SPLITS)}")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"MicroCode size must be an integer of at least 1, not {size!r}")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"MicroCode seed must be an integer, not {seed!r}")
        types = (task_types,) if isinstance(task_types, str) else tuple(task_types)
        unknown = [name for name in types if name not in ALL_TASK_TYPES]
        if unknown or not types or len(set(types)) != len(types):
            raise ValueError(
                f"MicroCode task_types must be distinct names out of {', '.join(ALL_TASK_TYPES)}; got {list(types)!r}"
            )
        self.split = split
        self.size = size
        self.seed = seed
        self.task_types: tuple[str, ...] = types

    def __len__(self) -> int:
        """The number of tasks."""
        return self.size

    def __repr__(self) -> str:
        return f"MicroCode(split={self.split!r}, size={self.size}, seed={self.seed}, task_types={self.task_types!r})"

    def __iter__(self) -> Iterator[CodeTask]:
        """All tasks in order."""
        return (self._task(index) for index in range(self.size))

    @overload
    def __getitem__(self, index: int) -> CodeTask: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[CodeTask]: ...

    def __getitem__(self, index: int | slice) -> CodeTask | Sequence[CodeTask]:
        """One task, or the list of a slice's tasks."""
        if isinstance(index, slice):
            return [self._task(i) for i in range(*index.indices(self.size))]
        position = index + self.size if index < 0 else index
        if not 0 <= position < self.size:
            raise IndexError(f"MicroCode index {index} is out of range for size {self.size}")
        return self._task(position)

    def _task(self, index: int) -> CodeTask:
        task_type = self.task_types[index % len(self.task_types)]
        label = f"{VERSION}/{self.seed}/{self.split}/{index}/{task_type}"
        draw = Draw(int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "big"))
        for _ in range(1000):
            material = self._material(draw, task_type == "optimization")
            fields = _MAKERS[task_type](material, draw) if material else None
            if material and fields and len(fields["prompt"]) <= MAX_PROMPT:
                return self._assemble(index, task_type, material, fields, draw)
        raise RuntimeError(f"MicroCode found no program for {label}; this is a defect of the generator")

    def _material(self, draw: Draw, slow: bool) -> _Material | None:
        shape = grammar.draw_shape(draw, self.split, slow)
        program = grammar.build(shape, draw)
        source = render_python(program.functions)
        if len(source) > MAX_REFERENCE or max(map(len, source.split("\n"))) > MAX_LINE:
            return None
        tests = _tests(program, source, draw)
        return _Material(program, source, tests, grammar.facts(shape)) if tests else None

    def _assemble(
        self, index: int, task_type: str, material: _Material, fields: dict[str, Any], draw: Draw
    ) -> CodeTask:
        program = material.program
        metadata = {
            "benchmark": "microcode",
            "version": VERSION,
            "seed": self.seed,
            "split": self.split,
            "index": index,
            "family": program.family,
            "structure": material.facts.key,
            "nodes": material.facts.nodes,
            "program": material.source,
            "lines": material.source.count("\n"),
            **fields.pop("metadata", {}),
        }
        text = descriptions.word(program.text, draw)
        return CodeTask(
            task_id=f"microcode/{self.split}/{self.seed}/{index}/{task_type}",
            task_type=task_type,
            description=descriptions.describe(task_type, text, program.entry.name, draw),
            tests=material.tests,
            entry_point=program.entry.name,
            metadata=metadata,
            **{"language": "python", "reference": material.source, **fields},
        )


def _signature(program: Program) -> str:
    return f"{program.entry.name}({', '.join(program.entry.parameters)})"


def _synthesis(material: _Material, draw: Draw) -> dict[str, Any]:
    text = descriptions.word(material.program.text, draw)
    return {"prompt": descriptions.synthesis_prompt(_signature(material.program), text, draw)}


def _completion(material: _Material, draw: Draw) -> dict[str, Any] | None:
    source = material.source
    start = source.index(":\n") + 1
    cuts = [match.end() for match in _CUT.finditer(source) if start <= match.start() < len(source) - 6]
    if not cuts:
        return None
    cut = draw.pick(cuts)
    prefix, rest = source[:cut], source[cut:]
    text = descriptions.word(material.program.text, draw)
    prompt = descriptions.completion_prompt(_signature(material.program), text, prefix, draw)
    return {"prompt": prompt, "prefix": prefix, "reference": rest, "metadata": {"cut": cut}}


def _repair(material: _Material, draw: Draw) -> dict[str, Any] | None:
    found = _fault(material, draw)
    if found is None:
        return None
    kind, faulty = found
    text = descriptions.word(material.program.text, draw)
    prompt = descriptions.repair_prompt(_signature(material.program), text, faulty, draw)
    return {"prompt": prompt, "buggy_code": faulty, "metadata": {"fault": kind}}


def _translation(material: _Material, draw: Draw) -> dict[str, Any]:
    javascript = render_javascript(material.program.functions)
    prompt = descriptions.translation_prompt(javascript, draw)
    return {"prompt": prompt, "source_language": "javascript", "metadata": {"source_code": javascript}}


def _summarization(material: _Material, draw: Draw) -> dict[str, Any]:
    text = material.program.text
    return {
        "prompt": descriptions.summarization_prompt(material.source, draw),
        "reference": descriptions.summary(text),
        "language": "text",
        "source_language": "python",
        "success_metric": "exact_match",
        "metadata": {"accepted": descriptions.accepted_summaries(text)},
    }


def _optimization(material: _Material, draw: Draw) -> dict[str, Any] | None:
    slow = render_python(material.program.slow)
    if max(map(len, slow.split("\n"))) > MAX_LINE:
        return None
    prompt = descriptions.optimization_prompt(slow, draw)
    return {"prompt": prompt, "metadata": {"slow_program": slow, "slow_structure": material.facts.slow_key}}


_MAKERS = {
    "synthesis": _synthesis,
    "completion": _completion,
    "repair": _repair,
    "translation": _translation,
    "summarization": _summarization,
    "optimization": _optimization,
}
