"""Programs on their way: sent ahead, taken back, with much to say; and none finds anything of another's."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.sandbox import Job, Limits, Result, Sandbox, wire
from lightning_dterm.sandbox.compare import equal
from lightning_dterm.sandbox.judge import Judged
from lightning_dterm.sandbox.result import TestOutcome
from lightning_dterm.sandbox.steps import Suites, judge_job
from lightning_dterm.types import CallTest
from tests.sandbox_common import SQUARE, TESTS, alive
from tests.test_sandbox_wire import VALUES

QUICK = Job(SQUARE, "f", TESTS)
SLEEPS = Job("import time\ndef f(x):\n    time.sleep(3.0)\n    return x * x\n", "f", TESTS[:1])
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(slots=2, limits=Limits(cpu_s=2.0, wall_s=10.0, memory_mb=256)) as box:
        box.run_many([SLEEPS, QUICK, QUICK])  # both slots are up
        yield box


@needs_linux
def test_a_slow_program_does_not_hold_up_what_was_sent_ahead_behind_it(sandbox: Sandbox) -> None:
    results = sandbox.run_many([SLEEPS, *[QUICK] * 20], lazy=True)
    assert all(result.passed and result.attempts == 1 for result in results[1:])
    assert not results.tickets[0].done
    assert results[0].passed


@needs_linux
def test_one_slot_takes_programs_back_and_runs_them_later() -> None:
    hang = Job("def f(x):\n    while True: pass\n", "f", TESTS, limits=Limits(cpu_s=0.2, wall_s=5.0, restarts=0))
    with Sandbox(slots=1) as box:
        results = box.run_many([hang, QUICK, hang, QUICK, QUICK])
    assert [result.status for result in results] == ["timeout", "passed", "timeout", "passed", "passed"]
    assert [result.attempts for result in results] == [1] * 5


@needs_linux
def test_more_claims_than_a_socket_holds(sandbox: Sandbox) -> None:
    many = tuple(CallTest((x,), x * x) for x in range(5000))
    large = tuple(CallTest((x,), "x" * 100_000) for x in range(35))  # 3.5 MB, all that a program may say is 4
    results = sandbox.run_many([Job(SQUARE, "f", many), Job("def f(x):\n    return 'x' * 100_000\n", "f", large)] * 2)
    assert [(result.status, len(result.per_test)) for result in results] == [("passed", 5000), ("passed", 35)] * 2


@needs_linux
def test_more_arguments_than_a_socket_holds(sandbox: Sandbox) -> None:
    tests = tuple(CallTest((str(place) * 1_000_000,), 1_000_000 + place) for place in range(6))
    program = "def f(text):\n    return len(text) + int(text[0])\n"
    results = sandbox.run_many([Job(program, "f", tests), QUICK, Job("x = (", "f", tests), QUICK])
    assert [result.status for result in results] == ["passed", "passed", "error", "passed"]


@needs_linux
def test_arguments_are_objects_of_their_own_in_every_call(sandbox: Sandbox) -> None:
    shared = [1]
    program = "def f(a, b):\n    a.append(1)\n    return len(a), len(b)\n"
    result = sandbox.run(program, "f", (CallTest((shared, shared), (2, 1)),) * 3)
    assert result.passed


@needs_linux
def test_jobs_may_share_tests_and_differ_in_all_else(sandbox: Sandbox) -> None:
    mixed = tuple(CallTest((x,), x * x, visible=x % 2 == 1) for x in range(6))
    jobs = [Job(SQUARE, "f", mixed), Job("def g(x): return x\n", "g", mixed), Job(SQUARE, "f", mixed[:2]),
            Job(SQUARE, "f", mixed, measure_cost=True)]  # fmt: skip
    right, other, short, measured = sandbox.run_many(jobs)
    assert right.passed
    assert [outcome.visible for outcome in right.per_test] == [False, True] * 3
    assert [outcome.passed for outcome in other.per_test] == [True, True, False, False, False, False]
    assert (len(short.per_test), short.passed) == (2, True)
    assert measured.cost is not None
    assert right.cost is None


_MARKS = """
import fcntl, os
def f(_):
    for fd in range(32):
        for mark in (lambda: os.write(fd, b'secret') if fd in (1, 2) else os.pwrite(fd, b'secret', 0),
                     lambda: os.lseek(fd, 4711, 0), lambda: fcntl.fcntl(fd, 4, os.O_APPEND | os.O_NONBLOCK)):
            try:
                mark()
            except OSError:
                pass
    return 0
"""
_LOOKS = """
import fcntl, os, stat
def f(_):
    found = []
    for fd in range(1024):
        try:
            seen = os.fstat(fd)
        except OSError:
            continue
        kind = stat.S_IFMT(seen.st_mode)
        where = os.lseek(fd, 0, 1) if kind == stat.S_IFREG else 0
        found.append((fd, kind, seen.st_size, where, fcntl.fcntl(fd, fcntl.F_GETFL)))
    return found
"""


@needs_linux
@pytest.mark.parametrize("namespaces", [True, False])
def test_descriptors_are_fresh_and_no_program_has_one_of_another(namespaces: bool) -> None:
    marks = Job(_MARKS, "f", (CallTest((0,), 0),))
    kept: list[Any] = []

    class Keeps:
        def accepts(self, value: Any) -> bool:
            kept.append(value)
            return True

    looks = Job(_LOOKS, "f", (CallTest((0,), Keeps()),))
    with Sandbox(slots=1, namespaces=namespaces) as box:
        results = box.run_many([looks, marks, looks, marks, marks, looks, *[looks] * 10])
    assert all(result.passed for result in results)
    assert len(kept) == 13
    assert [seen for seen in kept if seen != kept[0]] == []
    assert len(kept[0]) == 5  # input, two for output, the channel, the notes
    assert [(size, where) for _, _, size, where, _ in kept[0]] == [(0, 0)] * 5


@needs_linux
def test_several_judges_are_one_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("clients", "sandbox"):
        monkeypatch.setattr(f"lightning_dterm.sandbox.{module}.SLOTS_PER_JUDGE", 2)
    jobs = [Job(f"def f():\n    return {i}\n", "f", (CallTest((), i if i % 3 else -1),)) for i in range(60)]
    nap = Job("import time\ndef f():\n    time.sleep(0.5)\n    return 1\n", "f", (CallTest((), 1),))
    with Sandbox(slots=5) as box:
        box.run_many([nap] * 5)  # every slot is up
        assert sorted(box._client.states) == [0, 1, 2, 3, 4]
        zygotes = [state.pid for state in box.states()]
        judges = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in zygotes}
        assert len(judges) == 3
        results = box.run_many([nap, *jobs], lazy=True)
        os.kill(max(judges), signal.SIGKILL)
        assert [result.passed for result in results] == [True, *[bool(i % 3) for i in range(60)]]
        assert box._client.restarts == 1
    deadline = time.monotonic() + 10
    while any(map(alive, (*judges, *zygotes))) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in (*judges, *zygotes) if alive(pid)] == []


@given(
    st.binary(min_size=16, max_size=16), st.booleans(), st.text(), st.none() | st.text(), st.lists(VALUES, max_size=4)
)
@settings(max_examples=100)
def test_jobs_survive_the_way_to_the_child(
    nonce: bytes, metered: bool, program: str, entry_point: str | None, values: list[Any]
) -> None:
    job = wire.pack_job(nonce, metered, program, entry_point, wire.pack_calls([(value, value) for value in values]))
    assert wire.LENGTH.unpack_from(job)[0] == len(job) - wire.LENGTH.size
    *head, calls = wire.unpack_job(job[wire.LENGTH.size :])
    assert head == [nonce, metered, program, entry_point]
    assert equal(calls, [(value, value) for value in values])
    assert not any(first is second for first, second in calls if isinstance(first, (list, dict, set)))


def test_what_is_no_plain_data_is_not_packed() -> None:
    with pytest.raises(wire.Refused):
        wire.pack_calls([(object(),)])


def test_suites_are_known_by_the_identity_of_their_tests() -> None:
    suites = Suites()
    first, second = tuple(TESTS), (*TESTS[:3], CallTest((5,), 0))
    assert suites.of(first) is suites.of(first)
    assert suites.of(second) is not suites.of(first)
    for place in range(200):
        assert suites.of((CallTest((place,), place),)).source[0].args == (place,)


def test_a_job_goes_on_after_a_hang_as_often_as_it_may_and_keeps_the_order() -> None:
    hidden_first = tuple(CallTest((x,), x, visible=x > 1) for x in range(5))
    asked: list[tuple[int, ...]] = []

    def attempt(job: Job, tests: Any, metered: bool) -> Judged:
        assert not metered
        asked.append(tuple(test.args[0] for test in tests))
        done = [TestOutcome(True, "passed", test.visible) for test in tests]
        at = next((place for place, test in enumerate(tests) if test.args[0] in (3, 0)), None)
        if at is not None:
            done[at:] = [TestOutcome(False, "timeout", test.visible) for test in tests[at:]]
        return Judged(Result("passed" if at is None else "timeout", tuple(done)), hung=at)

    limits = Limits(restarts=2)
    judged = judge_job(Job("", "f", hidden_first, measure_cost=True), limits, attempt)
    assert asked == [(2, 3, 4, 0, 1), (4, 0, 1), (1,)]
    assert [outcome.status for outcome in judged.result.per_test] == [
        "timeout",
        "passed",
        "passed",
        "timeout",
        "passed",
    ]
    assert judged.result.attempts == 3
    assert judged.result.cost is None
