"""Claims made to stall or end the judge or the trainer cost their own program, and nobody else, its verdict."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_dterm.execution import Request, TaskJudge
from lightning_dterm.sandbox import Job, Limits, Sandbox, client, namespaces, stub_runtime, wire, zygote
from lightning_dterm.sandbox.expect import Expectation, Recorder
from lightning_dterm.sandbox.levels import Level
from lightning_dterm.sandbox.plain import PlainClient
from lightning_dterm.sandbox.sandbox import judge_all
from lightning_dterm.sandbox.slot import Settings
from lightning_dterm.sandbox.stub import TestSource, convert, run_suites
from lightning_dterm.types import CallTest, CodeTask

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")

HONEST = Job("def f():\n    return 1\n", "f", (CallTest((), 1),))
FORGE = """
import sys
frame = sys._getframe()
while 'wire' not in frame.f_globals: frame = frame.f_back
w = frame.f_globals['wire']
def f(*a): return 1
def run_text(*a): return b''
"""
NEST = "def deep(n):\n    x = ['l']\n    for _ in range(n - 1): x = ['l', x]\n    return x\n"
FORGED = {
    "too deep": FORGE + NEST + "w.encode = lambda v, found=deep(65): found\n",
    "too wide": FORGE + "w.encode = lambda v: ['i', '0x' + 'f' * 400000]\n",
}
COLLIDING = "def f(*a):\n    M = (1 << 61) - 1\n    return [M * (i + 1024) for i in range(24000)]\n"
WIDE_SUM = "def f(*a): return [1 << 60000] + [1] * 300000\n"
DEEP = """
def f(x):
    if '__stub_call__' not in globals(): return object()
    v = 1
    for _ in range({}): v = [v]
    return v
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(slots=1, limits=Limits(wall_s=60.0)) as box:
        yield box


def kind(value: Any) -> str:
    """A name for a parameter that has no text, or too long a one."""
    return type(value).__name__


def task(**metadata: Any) -> CodeTask:
    return CodeTask(
        task_id="t", task_type="synthesis", description="d", prompt="p", language="python", reference="",
        entry_point="f", metadata=metadata,
    )  # fmt: skip


# --- what is accepted can be sent on ----------------------------------------------------------------------------------


def nested(depth: int, core: Any) -> Any:
    for _ in range(depth):
        core = ["l", core]
    return core


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.builds(lambda n: ["i", hex(1 << n)], st.integers(60, 70_000)),
    lambda inner: st.builds(lambda tag, items: [tag, *items], st.sampled_from("ltsd"), st.lists(inner, max_size=4)),
    max_leaves=6,
)


@given(st.builds(nested, st.integers(0, 66), JSON | st.just(["b", "00"])))
def test_what_decodes_encodes_again(data: Any) -> None:
    try:
        value = wire.decode(data)
    except wire.Forged:
        return
    assert wire.decode(wire.encode(value)) == value


@pytest.mark.parametrize(
    ("data", "accepted"),
    [(nested(63, ["l"]), True), (nested(64, ["l"]), False), (nested(64, ["i", hex(1 << 61)]), True),
     (nested(64, ["b", "00"]), False), (["i", hex((1 << wire.MAX_BITS) - 1)], True),
     (["i", hex(1 << wire.MAX_BITS)], False)],
)  # fmt: skip
def test_decoding_is_as_strict_as_encoding(data: Any, accepted: bool) -> None:
    if accepted:
        assert wire.encode(wire.decode(data)) == data
    else:
        with pytest.raises(wire.Forged):
            wire.decode(data)


@pytest.mark.parametrize("name", FORGED)
def test_a_claim_that_cannot_be_sent_on_is_forged_and_costs_no_other_its_verdict(sandbox: Sandbox, name: str) -> None:
    forged = Job(FORGED[name], "f", (CallTest((), Recorder()),))
    before = sandbox._client.restarts
    results = sandbox.run_many([HONEST, *[forged] * 3, *[HONEST] * 9])
    assert [result.status for result in results] == ["passed", *["forged"] * 3, *["passed"] * 9]
    assert sandbox._client.restarts == before


@pytest.mark.parametrize("name", FORGED)
def test_text_tasks_survive_forged_claims(sandbox: Sandbox, name: str) -> None:
    texts = task(io_tests=[{"stdin": "3\n", "expected": "9\n"}])
    honest = Request(texts, "n = int(input())\nprint(n * n)\n")
    found = TaskJudge(sandbox).run([Request(texts, FORGED[name]), *[honest] * 5])
    assert [result.status for result in found if result] == ["forged", *["passed"] * 5]


# --- stubs ------------------------------------------------------------------------------------------------------------


LINGERS = """
import sys
frame = sys._getframe()
while '_exit' not in frame.f_globals: frame = frame.f_back
def linger(status):
    while True: pass
frame.f_globals['_exit'] = linger
def f(): return 1
"""


def test_time_that_runs_out_after_the_last_test_is_a_timeout_and_passes_nothing(sandbox: Sandbox) -> None:
    """As where threads that a program leaves behind keep its process from ending."""
    result = sandbox.run(LINGERS, "f", HONEST.tests, Limits(cpu_s=0.3, wall_s=60.0))
    assert result.status == "timeout"
    assert [outcome.status for outcome in result.per_test] == ["timeout"]
    assert "after the last test" in str(result.exception)
    assert sandbox.run(HONEST.program, "f", HONEST.tests).passed


@pytest.mark.parametrize("depth", [61, 62, 63])
def test_a_value_as_deep_as_the_channel_takes_fails_its_own_program_only(sandbox: Sandbox, depth: int) -> None:
    asserted = task(assert_tests=[{"test": "assert f(2) == 4"}])
    found = TaskJudge(sandbox).run(
        [Request(asserted, "def f(x): return x * x\n"), Request(asserted, DEEP.format(depth))]
    )
    assert [result.status for result in found if result] == ["passed", "failed"]


def test_a_job_that_cannot_be_judged_is_infra_and_its_neighbours_are_judged(sandbox: Sandbox) -> None:
    calls = [replace(task(), tests=(CallTest((x,), 4),)) for x in (2, 1j, 2)]
    found = TaskJudge(sandbox).run([Request(one, "def f(x): return x * x\n") for one in calls])
    assert [result.status for result in found if result] == ["passed", "infra", "passed"]
    assert found[1] is not None
    assert "not plain data: complex" in (found[1].exception or "")
    with pytest.raises(ValueError, match="not plain data: complex"):  # a job of the caller's own still says so
        sandbox.run("def f(x): return x\n", "f", calls[1].tests)


def test_a_second_look_at_values_is_no_choice_of_how_to_count(sandbox: Sandbox) -> None:
    """Twenty calls in a loop are one assertion: who is right on one of 21 calls must not get a half for it."""
    test = "def check(candidate):\n    for i in range(20):\n        assert candidate(i) == i * i\n"
    test += "    assert candidate(0) == 0\n"
    suite = convert([TestSource(test, "f")], sandbox, 1)[0]
    programs = ["def f(x): return 0\n", "def f(x): return 0 if x == 0 else object()\n"]
    shares = [one.result.share_passed(visible=True) for one in run_suites(sandbox, [(p, suite) for p in programs])]
    assert shares == [2 / 21, 2 / 21]


class Whole(int):
    """A number that is no plain data."""


class Untold:
    """An expected value of the caller's that fails when it is asked."""

    def accepts(self, returned: Any) -> bool:
        raise KeyError(returned)


NO_TESTS = [CallTest((), Whole(1)), CallTest((), lambda: 1), CallTest((Whole(1),), 1), CallTest((), Untold())]


@pytest.mark.parametrize("plain", [False, True])
def test_tests_that_cannot_be_judged_cost_their_neighbours_nothing(sandbox: Sandbox, plain: bool) -> None:
    """A judge that cannot even load a test must not die of it; a client that judges by itself goes on."""
    restarts = sandbox._client.restarts
    bad = NO_TESTS[3:] if plain else NO_TESTS
    jobs = [HONEST, *[Job(HONEST.program, "f", (test,)) for test in bad], HONEST]
    with Sandbox(slots=1) as other:
        box = other if plain else sandbox
        if plain:
            other._client = PlainClient(Settings(min_level=Level.NONE), 1)
        found = judge_all(box, jobs)
        assert [result.status for result in found] == ["passed", *["infra"] * len(bad), "passed"]
        lazy = box.run_many(jobs, lazy=True)
        for _ in range(2):
            with pytest.raises(ValueError, match="could not judge a job"):
                lazy[1]
        assert lazy[len(bad) + 1].passed
    assert sandbox._client.restarts == restarts


@pytest.mark.parametrize("number", ["10 ** 5000", "-(10 ** 9000)"])
def test_numbers_too_long_for_text_are_compared_as_numbers(sandbox: Sandbox, number: str) -> None:
    source = TestSource(f"n = {number}\nx = f([n])\ny = f([n, n])\nassert x == n and y == 2 * n\n", "f")
    suite = convert([source], sandbox, 3)[0]
    assert suite.kind == "stub"
    programs = ["def f(x): return sum(x)\n", "def f(x):\n    x.append(1)\n    return sum(x)\n"]
    found = run_suites(sandbox, [(program, suite) for program in programs])
    assert [one.result.status for one in found] == ["passed", "failed"]


@pytest.mark.parametrize(
    "claim",
    [("F", "1e99999999"), ("F", 1), ("F", 1.5, 2), ("D", "1" * 50_000), ("D", (0, (1,) * 9, 1)), ("c", "1", 1.0),
     ("r", 0, 1.5, 1), ("?", 1, True)],
)  # fmt: skip
def test_packed_numbers_of_another_form_are_refused_at_once(claim: Any) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=r"packed|digits"):
        stub_runtime.unpack(("l", claim))
    assert time.process_time() - started < 1


@pytest.mark.parametrize("value", [Fraction(-3, 7), 1 + 2j, range(3, 9, 2), float, 10**9000], ids=kind)
def test_packed_numbers_come_back(value: Any) -> None:
    packed = stub_runtime.pack(value)
    assert stub_runtime.unpack(packed) == value
    assert stub_runtime.same(packed, stub_runtime.pack(value))


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [(1, True, False), (1, 1.0, False), (float("nan"), float("nan"), True), (0.0, -0.0, False),
     (("l", 1, ("t", 2)), ("l", 1, ("t", 2)), True), (("l", 1), ("l", True), False), (("l", 1), ("l", 1, 1), False),
     (10**5000, 10**5000 + 1, False)],
    ids=kind,
)  # fmt: skip
def test_packed_values_agree_in_type_and_value(one: Any, other: Any, agree: bool) -> None:
    assert stub_runtime.same(one, other) is agree


# --- values that stall ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "expected", "reason"),
    [(COLLIDING, Expectation({4, 5}, "eq", ("set",)), "collide"),
     (COLLIDING, Expectation(2, "eq", ("list", "frozenset", "len")), "collide"),
     (WIDE_SUM, Expectation(6, "eq", ("sum",)), "sum of 300001 numbers"),
     ("def f(*a): return [1 << 1000000] + [1] * 300000\n", Expectation(6, "eq", ("sum",)), "too large")],
)  # fmt: skip
def test_a_value_made_to_stall_the_judge_fails_with_the_reason(
    sandbox: Sandbox, program: str, expected: Expectation, reason: str
) -> None:
    sandbox.run("")
    started = time.monotonic()
    result, *others = sandbox.run_many([Job(program, "f", (CallTest((), expected),) * 3), *[HONEST] * 3])
    assert result.status == "failed"
    assert reason in (result.exception or "")
    assert all(other.passed for other in others)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("value", "expectation"),
    [([0] * 500 + [1], Expectation({0, 1}, "eq", ("set",))),
     ([1.0] * 90 + [True] * 90, Expectation(1, "eq", ("set", "len"))),
     ((float("nan"),) * 200, Expectation(1, "eq", ("set", "len"))),
     (list(range(9999)), Expectation(9999, "eq", ("set", "len"))),
     ([1 << 3000] * 9, Expectation(9 << 3000, "eq", ("sum",))), ({1: 2, 3: 4}, Expectation(4, "eq", ("sum",))),
     ([0.5] * 9, Expectation(4.5, "eq", ("sum",)))],
    ids=kind,
)  # fmt: skip
def test_honest_values_pass_the_same_views(value: Any, expectation: Expectation) -> None:
    assert expectation.accepts(value)
    assert expectation.refusal(value) is None


@pytest.mark.parametrize("value", [5, None, [[1], [2]] * 40, "x" * 90])
def test_values_that_a_view_does_not_take_are_accepted_by_nobody(value: Any) -> None:
    for view in ("set", "sum"):
        assert not Expectation(5, "eq", (view,)).accepts(value)
        assert Expectation(5, "eq", (view,)).refusal(value) is None


# --- judges that die --------------------------------------------------------------------------------------------------


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    """A sandbox whose judge a program can end: by itself ("CRASH"), or as if it was killed ("KILL")."""
    text = client._PROCESS.read_text("utf-8")
    place = "        self._attempts += 1\n"
    harm = (
        "        if 'CRASH' in self._job.program: os._exit(3)\n"
        "        if 'KILL' in self._job.program: os.kill(os.getpid(), 9)\n"
    )
    assert text.count(place) == 1
    changed = tmp_path / "judge_process.py"
    changed.write_text(
        f"__file__ = {str(client._PROCESS)!r}\nexec(compile({text.replace(place, harm + place)!r}, __file__, 'exec'))\n"
    )
    monkeypatch.setattr(client, "_PROCESS", changed)
    with Sandbox(slots=2) as box:
        yield box


@pytest.mark.parametrize(("what", "status"), [("CRASH", "killed"), ("KILL", "infra")])
def test_a_judge_s_death_is_its_culprit_s_alone(fragile: Sandbox, what: str, status: str) -> None:
    culprit = Job(HONEST.program + f"# {what}\n", "f", HONEST.tests)
    jobs = [*[HONEST] * 3, culprit, culprit, *[HONEST] * 80]
    found = [result.status for result in fragile.run_many(jobs)]
    assert found == ["passed"] * 3 + [status] * 2 + ["passed"] * 80
    assert fragile._client.restarts <= 10
    assert fragile.run_many([HONEST] * 5, lazy=True)[4].passed  # and no care is left over
    assert not fragile._client._careful  # type: ignore[union-attr]


def test_jobs_handed_over_while_a_culprit_is_looked_for_are_judged(fragile: Sandbox) -> None:
    culprit = Job(HONEST.program + "# CRASH\n", "f", HONEST.tests)
    first = fragile.run_many([culprit, *[HONEST] * 9], lazy=True)
    with fragile._client._lock:  # type: ignore[union-attr]
        fragile._client._receive()  # type: ignore[union-attr]
    second = fragile.run_many([*[HONEST] * 4, culprit], lazy=True)
    assert [result.status for result in second] == ["passed"] * 4 + ["killed"]
    assert [result.status for result in first] == ["killed"] + ["passed"] * 9


def test_a_machine_that_lets_no_judge_live_is_infra_for_all(fragile: Sandbox) -> None:
    doomed = Job(HONEST.program + "# KILL\n", "f", HONEST.tests)
    assert {result.status for result in fragile.run_many([doomed] * 40)} == {"infra"}
    assert fragile._client.restarts <= 13
    assert fragile.run_many([HONEST])[0].passed


# --- the folder of a program ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", ["", "file", "mode"])
def test_a_used_folder_is_thrown_away_although_the_clock_stood_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trace: str
) -> None:
    events: list[str] = []
    monkeypatch.setattr(namespaces, "CWD", str(tmp_path))
    monkeypatch.setattr(namespaces, "mount_scratch", lambda *_: events.append("mount"))
    monkeypatch.setattr(namespaces, "unmount_scratch", lambda *_: events.append("unmount"))

    class Coarse:
        """A clock that moves by a tick of the kernel's only."""

        def __init__(self, seen: os.stat_result) -> None:
            self._seen = seen

        def __getattr__(self, name: str) -> Any:
            return 0 if name in ("st_ctime_ns", "st_mtime_ns") else getattr(self._seen, name)

    real = os.stat
    monkeypatch.setattr(
        os,
        "stat",
        lambda path, **rest: Coarse(real(path, **rest)) if str(path) == str(tmp_path) else real(path, **rest),
    )
    scratch = zygote.Scratch(None, "/nowhere", "plan")  # type: ignore[arg-type]
    scratch.prepare()
    if trace == "file":
        (tmp_path / "left").write_text("x")
    elif trace == "mode":
        tmp_path.chmod(0o500)
    scratch.clean()
    scratch.prepare()
    tmp_path.chmod(0o700)
    assert events == (["mount", "unmount", "mount"] if trace else ["mount"])


REPLACED = "import os\ndef f():\n    p = os.getcwd()\n    os.chdir('..')\n    os.rmdir(p)\n    {}\n    return 2\n"


LEFT = ("open(p, 'w').close()", "os.mkdir(p, 0)", "os.symlink({outside!r}, p)", "open('q', 'w').close()")


def test_what_a_program_makes_of_its_folder_excuses_nothing(tmp_path: Path) -> None:
    """Without Landlock the folder can be replaced: the worker goes, the verdict stays (``infra`` would be masked).

    Nor do those pay that were queued behind: each job is judged at its first attempt.
    """
    lefts = [left.format(outside=str(tmp_path)) for left in LEFT]
    jobs = [Job(REPLACED.format(left), "f", HONEST.tests) for left in lefts]
    mode = tmp_path.stat().st_mode
    with Sandbox(slots=1, namespaces=False, without=["landlock", "uid"], min_level="syscalls") as box:
        results = box.run_many([HONEST, *jobs, HONEST, HONEST])
    assert [result.status for result in results] == ["passed", *["failed"] * 4, "passed", "passed"]
    assert [result.attempts for result in results] == [1] * 7
    assert tmp_path.stat().st_mode == mode


def test_a_folder_that_cannot_be_listed_is_too_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not zygote.overflows(str(tmp_path))
    (tmp_path / "hidden").mkdir()
    real = os.scandir

    def scandir(path: str) -> Any:
        if path.endswith("hidden"):
            raise PermissionError(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert zygote.overflows(str(tmp_path))
