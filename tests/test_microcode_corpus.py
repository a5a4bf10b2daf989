"""The mixed-quality training corpus: each flaw is what it says, makes tests fail, and stays out of evaluation."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from lightning_dterm.data.microcode import MicroCode
from lightning_dterm.data.microcode.corpus import HABITS, MixedCorpus, flawed
from lightning_dterm.data.microcode_module import MicroCodeDataModule
from lightning_dterm.types import CallTest, CodeTask

LOOP = "def f(xs):\n    total = 0\n    for x in xs:\n        total += x\n    return total\n"


def make_task(reference: str, expected: list[object], prefix: str | None = None) -> CodeTask:
    tests = tuple(CallTest(([1, 2, 3],), value, True) for value in expected)
    return CodeTask(
        task_id="t", task_type="completion" if prefix else "synthesis", description="d", prompt="p",
        language="python", reference=reference, prefix=prefix, tests=tests, entry_point="f",
    )  # fmt: skip


def test_each_habit_on_a_program_written_by_hand() -> None:
    assert flawed(make_task(LOOP, [6])).reference == LOOP.replace("    return", "        return")
    comprehension = "def f(xs):\n    return [x for x in xs if x >= 2]\n"
    assert flawed(make_task(comprehension, [[2, 3]])).reference == comprehension.replace(">=", ">")
    plain = "def f(xs):\n    return sum(xs)\n"
    changed = flawed(make_task(plain, [6]))
    assert changed.reference == "def f(xs):\n    print(sum(xs))\n"
    assert changed.metadata["flaw"] == "printed_result"


def test_a_habit_that_no_test_notices_gives_way_to_the_next() -> None:
    # x >= 0 and x > 0 agree on [1, 2, 3]
    program = "def f(xs):\n    return [x for x in xs if x >= 0]\n"
    assert flawed(make_task(program, [[1, 2, 3]])).metadata["flaw"] == "printed_result"


def test_a_completion_is_flawed_in_its_own_part_only() -> None:
    cut = LOOP.index(" total +=")
    task = flawed(make_task(LOOP[cut:], [6], prefix=LOOP[:cut]))
    assert task.prefix == LOOP[:cut]
    assert (task.prefix or "") + task.reference == LOOP.replace("    return", "        return")
    tail = make_task("sum(xs)\n", [6], prefix="def f(xs):\n    return ")
    assert flawed(tail) is tail


def run_alone(task: CodeTask) -> bool:
    """Whether every test passes in an interpreter of its own."""
    program = (task.prefix or "") + task.reference
    lines = [f"assert (v := {task.entry_point}(*{t.args!r})) == {t.expected!r} and type(v) is type({t.expected!r})"
             for t in task.tests]  # fmt: skip
    source = program + "\n" + "\n".join(lines)
    return subprocess.run([sys.executable, "-I", "-S", "-c", source], capture_output=True, timeout=20).returncode == 0


def test_flawed_programs_fail_and_the_others_pass_in_a_plain_interpreter() -> None:
    corpus = MixedCorpus(MicroCode("train", 40, seed=5, task_types=("synthesis", "completion")), 0.5)
    kinds = Counter[bool]()
    for task in corpus:
        flaw = "flaw" in task.metadata
        kinds[flaw] += 1
        assert run_alone(task) is not flaw
    assert min(kinds[True], kinds[False]) >= 8


def test_share_of_flawed_references_and_every_habit_occurs() -> None:
    tasks = MicroCode("train", 1500, seed=2)
    corpus = MixedCorpus(tasks, 0.5)
    flaws = Counter(task.metadata.get("flaw") for task in corpus)
    possible = sum(flawed(task) is not task for task in tasks)
    # binomial with n of about 1,350: 0.5 +- 4 standard deviations
    assert 0.44 < sum(count for flaw, count in flaws.items() if flaw) / possible < 0.56
    assert set(flaws) == {None, "vague_summary", *HABITS}


def test_summaries_lose_their_detail() -> None:
    for task in MicroCode("train", 60, seed=3, task_types=("summarization",)):
        changed = flawed(task)
        if changed is not task:
            assert task.reference.startswith(changed.reference[:-1])
            assert changed.reference not in task.metadata["accepted"]


def test_evaluation_splits_stay_correct_and_rows_do_not_depend_on_access_order() -> None:
    module = MicroCodeDataModule(train_size=30, validation_size=10, test_size=10, flawed_share=1.0)
    module.setup("fit")
    module.setup("test")
    assert any("flaw" in task.metadata for task in module.tasks("train"))
    for split in ("validation", "test"):
        assert not any("flaw" in task.metadata for task in module.tasks(split))
    train = module.tasks("train")
    assert [train[i] for i in reversed(range(30))][::-1] == train[0:30] == list(train)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="flawed_share"):
        MicroCodeDataModule(flawed_share=share)
