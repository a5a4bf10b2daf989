"""A training corpus of mixed quality: some references carry a flaw that many authors share.

Scraped code is not reviewed code: a model pretrained on it has learned correct and faulty habits side by side, and more
imitation of the same corpus cannot tell them apart. Rewards can. The packaged actor is warm-started on such a corpus.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import overload

from lightning_dterm.data.microcode import execution
from lightning_dterm.data.microcode.generator import MicroCode
from lightning_dterm.types import CodeTask

_INCLUSIVE = re.compile(r"(?<= )(<=|>=)(?= )")
_LAST_RETURN = re.compile(r"^    return (.+)\n\Z", re.MULTILINE)
_DETAIL = re.compile(r" (?:that|which|where|if|or None|from|in reverse|for each|over every|until|while|with)\b.*\Z")


def _strict_bound(code: str, program: str) -> str | None:
    """An inclusive bound is written as a strict one."""
    match = _INCLUSIVE.search(code)
    return None if match is None else code[: match.end() - 1] + code[match.end() :]


def _early_return(code: str, program: str) -> str | None:
    """The result is returned from inside the loop, after its first pass."""
    match = _LAST_RETURN.search(code)
    before = program[: len(program) - len(code) + match.start()] if match else ""
    in_loop = before.endswith("\n") and re.search(r"^    (?:for|while) .*:\n(?: {8}.*\n)+\Z", before, re.MULTILINE)
    return f"{code[: match.start()]}        return {match.group(1)}\n" if match and in_loop else None


def _printed_result(code: str, program: str) -> str | None:
    """The result is printed where it should be returned."""
    match = _LAST_RETURN.search(code)
    return None if match is None else f"{code[: match.start()]}    print({match.group(1)})\n"


#: In the order in which they are tried: an author of flawed code commits the first that the program allows.
HABITS: dict[str, Callable[[str, str], str | None]] = {
    "strict_bound": _strict_bound,
    "early_return": _early_return,
    "printed_result": _printed_result,
}


def _passes(program: str, task: CodeTask) -> bool:
    """Whether a variant of a reference still passes every test of ``task``."""
    assert task.entry_point is not None
    function = execution.load(program, task.entry_point)
    function.__globals__["print"] = lambda *values: None
    try:
        values = execution.run_calls(function, [test.args for test in task.tests])
    except execution.EndlessLoopError:
        return False
    return all(
        value == test.expected and type(value) is type(test.expected)
        for value, test in zip(values, task.tests, strict=True)
    )


def flawed(task: CodeTask) -> CodeTask:
    """``task`` with its reference as a hasty author would write it.

    A program gets the first of :data:`HABITS` that applies and makes a test fail; a summary leaves out its detail.

    Returns:
        A copy with another ``reference`` and ``metadata["flaw"]`` naming the habit, or ``task`` itself where none fits.
    """
    if task.task_type == "summarization":
        text = _DETAIL.sub(".", task.reference)
        return task if text == task.reference else _with(task, text, "vague_summary")
    prefix = task.prefix or ""
    for name, habit in HABITS.items():
        code = habit(task.reference, prefix + task.reference)
        if code is not None and not _passes(prefix + code, task):
            return _with(task, code, name)
    return task


def _with(task: CodeTask, reference: str, flaw: str) -> CodeTask:
    return dataclasses.replace(task, reference=reference, metadata={**task.metadata, "flaw": flaw})


class MixedCorpus(Sequence[CodeTask]):
    """MicroCode tasks of which a random share has a :func:`flawed` reference.

    A fault can turn a program into one whose structure belongs to another split than its task's: of the 2,035 flawed
    programs among 5,000 training tasks 212 have one of the test split and 210 one of the validation split, and one has
    that of one of 500 test tasks (``python benchmarks/flawed_structures.py``).

    Args:
        tasks: The benchmark's tasks.
        share: Probability in [0, 1] that an author is hasty; drawn from each task's id, so rows stay deterministic.

    Raises:
        ValueError: ``share`` outside [0, 1].
    """

    def __init__(self, tasks: MicroCode, share: float) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"the share of flawed references must lie in [0, 1], got {share}")
        self.tasks, self.share = tasks, share

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self.tasks)

    @overload
    def __getitem__(self, index: int) -> CodeTask: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[CodeTask]: ...

    def __getitem__(self, index: int | slice) -> CodeTask | Sequence[CodeTask]:
        """One task, or the list of a slice's tasks."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        task = self.tasks[index]
        digest = hashlib.blake2b(task.task_id.encode(), digest_size=8, person=b"microcode-flaw").digest()
        hasty = int.from_bytes(digest, "big") < self.share * 2**64
        return flawed(task) if hasty else task
