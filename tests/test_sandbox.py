"""Honest and hostile programs through the real sandbox: every verdict earned, nothing left behind."""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from lightning_dterm.sandbox import Job, Level, Limits, Sandbox, SandboxUnavailable, TestOutcome, canary, client
from lightning_dterm.sandbox.expect import Expectation
from lightning_dterm.sandbox.levels import level_of
from lightning_dterm.types import CallTest
from tests.sandbox_hostile import SECRET
from tests.test_sandbox_hostile import descendants

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")

SQUARE = "def f(x):\n    return x * x\n"
TESTS = tuple(CallTest((x,), x * x, visible=x < 4) for x in range(2, 6))


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(slots=1, limits=Limits(cpu_s=0.5, wall_s=2.0, memory_mb=256, output_kb=64)) as box:
        yield box


def processes(box: Sandbox) -> tuple[int, int]:
    """Process ids of the judge and of its first zygote (outer process)."""
    judge = box._client.pid
    assert judge is not None
    return judge, next(state.pid for state in box.states())


def assert_healthy(box: Sandbox) -> None:
    result = box.run(SQUARE, "f", TESTS)
    assert result.status == "passed", result


def test_honest_program_passes_with_usage(sandbox: Sandbox) -> None:
    result = sandbox.run(SQUARE, "f", TESTS)
    assert result.status == "passed"
    assert [outcome.passed for outcome in result.per_test] == [True] * 4
    assert [outcome.visible for outcome in result.per_test] == [True, True, False, False]
    assert Level.parse(result.level) == sandbox.level >= Level.KERNEL
    assert result.trust == "values"
    assert result.attempts == 1
    assert all(outcome.cpu_s is not None and outcome.cpu_s < 0.5 for outcome in result.per_test)
    assert 0 < result.cpu_s < 0.5
    assert result.wall_s > 0
    assert 1 << 20 < result.peak_rss < 256 << 20
    assert result.compile_error is None
    assert result.cost is None


def test_each_test_has_its_own_outcome_and_line(sandbox: Sandbox) -> None:
    program = "def f(x):\n    if x == 3:\n        return 10 // (x - 3)\n    return x * x if x < 5 else 0\n"
    result = sandbox.run(program, "f", TESTS)
    assert [(outcome.status, outcome.line) for outcome in result.per_test] == [
        ("passed", None), ("error", 3), ("passed", None), ("failed", None),
    ]  # fmt: skip
    assert result.status == "error"
    assert result.lines == (3,)
    assert result.exception is not None
    assert result.exception.startswith("ZeroDivisionError")


def test_outcomes_keep_the_jobs_order_although_visible_tests_run_first(sandbox: Sandbox) -> None:
    program = "seen = []\ndef f(x):\n    seen.append(x)\n    return list(seen)\n"
    tests = (
        CallTest((1,), [3, 4, 1], visible=False),
        CallTest((2,), [3, 4, 1, 2], visible=False),
        CallTest((3,), [3]),
        CallTest((4,), ["wrong"]),
    )
    result = sandbox.run(program, "f", tests)
    assert [outcome.passed for outcome in result.per_test] == [True, True, True, False]


HANG_AT_4 = "def f(x):\n    while x == 4:\n        pass\n    return x * x\n"


@pytest.mark.parametrize(
    ("program", "line"),
    [(HANG_AT_4, (2, 3)), ("import time\ndef f(x):\n    if x == 4:\n        time.sleep(99)\n    return x * x\n", (4,)),
     ("import re\ndef f(x):\n    if x == 4:\n        re.match('(a+)+$', 'a' * 60 + 'b')\n    return x * x\n", (4,))],
)  # fmt: skip
def test_after_a_hang_the_remaining_tests_run(sandbox: Sandbox, program: str, line: tuple[int, ...]) -> None:
    result = sandbox.run(program, "f", TESTS, Limits(cpu_s=0.5, wall_s=3.0))
    assert [outcome.status for outcome in result.per_test] == ["passed", "passed", "timeout", "passed"]
    assert result.status == "timeout"
    assert result.attempts == 2
    assert result.per_test[2].line in line
    assert set(result.lines) <= set(line)


def test_restarts_are_bounded(sandbox: Sandbox) -> None:
    hang = "def f(x):\n    while x != 3: pass\n    return x * x\n"
    for restarts, statuses in ((0, ["timeout"] * 4), (1, ["timeout", "passed", "timeout", "timeout"])):
        result = sandbox.run(hang, "f", TESTS, Limits(cpu_s=0.2, wall_s=5.0, restarts=restarts))
        assert [outcome.status for outcome in result.per_test] == statuses
        assert result.attempts == restarts + 1
    broken = sandbox.run("while True: pass\n", "f", TESTS, Limits(cpu_s=0.2, wall_s=5.0))
    assert (broken.status, broken.attempts, broken.lines) == ("timeout", 1, (1,))


def test_arguments_are_fresh_for_each_call(sandbox: Sandbox) -> None:
    shared = [1]
    tests = (CallTest((shared,), [1, 0]), CallTest((shared,), [1, 0]))
    assert sandbox.run("def f(xs):\n    xs.append(0)\n    return xs\n", "f", tests).passed
    assert shared == [1]


@pytest.mark.parametrize(
    ("program", "line", "column", "count"),
    [
        ("def f(x)\n    return x\n", 1, 9, 1),
        ("x = 1\ny = (\n", 2, 5, 1),
        ("é = 'ü' 'ö' +\n", 1, 14, 1),
        ("a = 1 +\nb = 2\nc = = 3\n", 1, 8, 2),
        ("\n".join(["a = = 1"] * 9), 1, 5, 5),
    ],
)
def test_compile_errors_have_character_positions(
    sandbox: Sandbox, program: str, line: int, column: int, count: int
) -> None:
    result = sandbox.run(program, None)
    assert result.status == "error"
    assert result.compile_error is not None
    assert (result.compile_error.line, result.compile_error.column) == (line, column)
    assert len(result.compile_errors) == count


def test_compile_only_runs_nothing(sandbox: Sandbox) -> None:
    assert sandbox.run("import os\nos._exit(3)\n", None).status == "passed"
    assert sandbox.run("import os\nos._exit(3)\n", "f").status == "exited"


@pytest.mark.parametrize("program", ["(" * 5000, "-" * 60_000 + "1", "\0", "x = " + "[" * 3000 + "]" * 3000])
def test_text_that_hurts_compilers_is_a_compile_error(sandbox: Sandbox, program: str) -> None:
    result = sandbox.run(program, "f", TESTS)
    assert result.compile_error is not None
    assert not any(outcome.passed for outcome in result.per_test)
    assert_healthy(sandbox)


@pytest.mark.parametrize(
    ("expression", "expected", "passes"),
    [
        ("float('nan')", math.nan, True), ("float('nan')", 1.0, False), ("1.0", math.nan, False),
        ("-0.0", 0.0, True), ("0.1 + 0.2", 0.3, True), ("1.0 + 1e-6", 1.0, False), ("float('inf')", math.inf, True),
        ("True", 1, False), ("1", True, False), ("1", 1.0, False), ("1.0", 1, False), ("None", False, False),
        ("[1, 2]", (1, 2), False), ("(1, [2])", (1, [2]), True), ("{1, 2}", {2, 1}, True), ("{1}", {True}, False),
        ("{'b': 1, 'a': [2.0]}", {"a": [2.0], "b": 1}, True), ("{1: 2}", {True: 2}, False), ("b'\\xff'", b"\xff", True),
        ("2 ** 4000", 2**4000, True), ("2 ** 4000 + 1", 2**4000, False), ("-2 ** 70", -(2**70), True),
        ("'\\ud800é'", "\ud800é", True), ("frozenset({1})", {1}, True), ("{(1, 2): {3}}", {(1, 2): {3}}, True),
        ("__import__('collections').Counter('aab')", {"a": 2, "b": 1}, True), ("''", b"", False),
        ("{frozenset({1}), frozenset({2})}", {frozenset({2}), frozenset({1})}, True),
    ],
)  # fmt: skip
def test_values_are_compared_by_type_and_value(
    sandbox: Sandbox, expression: str, expected: object, passes: bool
) -> None:
    result = sandbox.run(f"def f():\n    return {expression}\n", "f", (CallTest((), expected),))
    assert result.status == ("passed" if passes else "failed"), result


DUPLICATE_FRAMES = """
import gc
channel = next(o for o in gc.get_objects() if type(o).__name__ == "Channel")
def f(x):
    channel.send(b"T", ["ok", x * x, 0])
    return x * x
"""
FIND_IN_MEMORY = """
import gc, sys
def f(x):
    seen, frame = [], sys._getframe()
    while frame:
        seen += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    for o in gc.get_objects() + seen:
        items = o if type(o) in (list, tuple, set) else list(o.values()) if type(o) is dict else [o]
        if any(type(i) is int and i - 1 == 8675308 for i in items):
            return True
    return False
"""


def test_a_forged_pass_of_values_it_knows_is_still_forged(sandbox: Sandbox) -> None:
    result = sandbox.run(DUPLICATE_FRAMES, "f", TESTS)
    assert result.status == "forged"
    assert {outcome.status for outcome in result.per_test} == {"forged"}


def test_state_does_not_leak_between_programs(sandbox: Sandbox) -> None:
    sandbox.run(
        "import math, os, sys\nmath.pi = 3\nopen('left', 'w').close()\nsys.modules['re'] = None\ndef f(): 0\n", "f"
    )
    program = "import math, os, re\ndef f(): return [math.pi > 3.1, os.listdir('.'), dict(os.environ), __name__]\n"
    result = sandbox.run(program, "f", (CallTest((), [True, [], {}, "program"]),))
    assert result.passed, result


def test_expected_values_are_not_in_the_programs_process(sandbox: Sandbox) -> None:
    found = sandbox.run("HOARD = [8675309]\n" + FIND_IN_MEMORY, "f", (CallTest((1,), True),))
    assert found.passed, "the search itself must work"
    tests = (CallTest((1,), False), CallTest((2,), SECRET), CallTest((3,), [SECRET], visible=False))
    result = sandbox.run(FIND_IN_MEMORY, "f", tests)
    assert [outcome.passed for outcome in result.per_test] == [True, False, False]


def test_hashes_and_random_numbers_repeat() -> None:
    program = "import random\nraise ValueError([hash('a'), random.random(), list({'a', 'b', 'c', 'd'})])\n"
    seen = set()
    for _ in range(2):
        with Sandbox(slots=1) as box:
            seen |= {box.run(program, "f").exception for _ in range(2)}
    assert len(seen) == 1
    assert str(seen.pop()).startswith("ValueError: [")


def test_run_many_keeps_order_over_slots() -> None:
    jobs = [Job(f"def f():\n    return {i}\n", "f", (CallTest((), i if i % 3 else -1),)) for i in range(60)]
    with Sandbox(slots=3) as box:
        results = box.run_many(jobs)
        assert [result.passed for result in results] == [bool(i % 3) for i in range(60)]
        assert box.run_many([]) == []


def test_results_stream_in_order_while_the_caller_works(sandbox: Sandbox) -> None:
    slow = Job("import time\ndef f():\n    time.sleep(1.0)\n    return 1\n", "f", (CallTest((), 1),))
    quick = Job("def f():\n    return 1\n", "f", (CallTest((), 1),))
    started = time.monotonic()
    results = sandbox.run_many([quick, slow, quick], lazy=True)
    assert time.monotonic() - started < 0.5
    assert len(results) == 3
    assert results[0].passed
    time.sleep(max(0.0, 1.5 - (time.monotonic() - started)))  # the caller's own work
    waited = time.monotonic()
    assert [result.passed for result in results] == [True] * 3
    assert [result.passed for result in results[1:]] == [True] * 2
    assert time.monotonic() - waited < 1.0


def test_several_batches_and_threads_share_a_sandbox(sandbox: Sandbox) -> None:
    def job(value: int) -> Job:
        return Job(f"def f():\n    return {value}\n", "f", (CallTest((), value),))

    batches = [sandbox.run_many([job(10 * i + j) for j in range(5)], lazy=True) for i in range(4)]
    done: list[bool] = []
    threads = [threading.Thread(target=lambda b=batch: done.extend(r.passed for r in b)) for batch in reversed(batches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [True] * 20


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_judge_or_zygote_is_replaced_and_the_program_judged_again(sandbox: Sandbox, which: int) -> None:
    assert_healthy(sandbox)
    sleepy = Job("import time\ndef f(x):\n    time.sleep(0.3)\n    return x\n", "f", (CallTest((1,), 1),))
    results = sandbox.run_many([sleepy] * 3, lazy=True)
    time.sleep(0.4)
    os.kill(processes(sandbox)[which], signal.SIGKILL)
    assert [result.status for result in results] == ["passed"] * 3
    assert_healthy(sandbox)


def test_a_child_killed_from_outside_is_judged_again(sandbox: Sandbox) -> None:
    assert_healthy(sandbox)
    results = sandbox.run_many(
        [Job("import time\ndef f(x):\n    time.sleep(0.7)\n    return x\n", "f", (CallTest((1,), 1),))], lazy=True
    )
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        below = descendants(processes(sandbox)[1])
        if len(below) == (2 if sandbox.level == Level.NAMESPACES else 1):
            os.kill(below[-1], signal.SIGKILL)
            break
        time.sleep(0.02)
    result = results[0]
    assert result.status == "passed"
    assert result.attempts == 2


def test_what_stays_broken_is_infra_and_never_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(slots=1) as box:
        assert_healthy(box)
        results = box.run_many([Job("import time\ntime.sleep(9)\n", "f", (CallTest((), 1),))], lazy=True)
        for _ in range(8):
            time.sleep(0.1)
            pid = box._client.pid
            if pid is not None and results._tickets[0].result is None:
                os.kill(pid, signal.SIGKILL)
                with box._client._lock:
                    box._client._receive()
        assert results[0].status == "infra"
        assert [outcome.status for outcome in results[0].per_test] == ["infra"]
        assert_healthy(box)


def test_a_judge_that_cannot_start_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SandboxUnavailable, match="did not start"):
        Sandbox(slots=1).run(SQUARE, "f", TESTS)


def test_tests_that_are_not_plain_data_are_refused_by_name(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="not plain data: complex"):
        sandbox.run(SQUARE, "f", [CallTest((1j,), 1)])
    assert_healthy(sandbox)


def test_expected_values_may_have_rules_of_their_own(sandbox: Sandbox) -> None:
    class Odd:
        seen: ClassVar[list[object]] = []

        def accepts(self, value: object) -> bool:
            self.seen.append(value)
            return value == 9

    tests = (CallTest((2,), Expectation(4.0)), CallTest((3,), Odd(), visible=False), CallTest((4,), Odd()))
    result = sandbox.run(SQUARE, "f", tests)
    assert [outcome.passed for outcome in result.per_test] == [True, True, False]
    assert result.status == "failed"
    assert sorted(Odd.seen) == [9, 16]


def test_trust_is_stamped(sandbox: Sandbox) -> None:
    job = Job(SQUARE, "f", TESTS, trust="in_process")
    assert sandbox.run_many([job])[0].trust == "in_process"


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_platforms_are_refused_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, platform: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(SandboxUnavailable, match=rf"not on {platform}.*min_level='none'"):
        Sandbox()
    monkeypatch.setattr(client, "_reported", set())
    with Sandbox(min_level="none", slots=1, limits=Limits(cpu_s=2, wall_s=5, restarts=1)) as box:
        assert box.level == Level.NONE
        result = box.run(HANG_AT_4, "f", TESTS, Limits(cpu_s=5, wall_s=1.5))
        assert [outcome.status for outcome in result.per_test] == ["passed", "passed", "timeout", "passed"]
        assert result.level == "none"
        assert box.run("import os\ndef f(x): os._exit(0)\n", "f", TESTS).status == "exited"
        assert box.run("x = (", "f", TESTS).compile_error is not None
        assert box.run(SQUARE, None).passed
        assert box.run("import sys\ndef f(x): return len(sys.stdin.read())\n", "f", TESTS).status == "failed"
        assert not box.run("def f(x): return 0\n", "f", TESTS).per_test[0].passed
    assert "isolation level 'none'" in caplog.text


@pytest.mark.parametrize(
    ("options", "level"),
    [({}, "namespaces"), ({"namespaces": False}, "kernel"), ({"without": ("landlock",)}, "namespaces"),
     ({"namespaces": False, "without": ("landlock",)}, "syscalls"),
     ({"namespaces": False, "without": ("seccomp",)}, "process")],
)  # fmt: skip
def test_levels_are_what_holds(options: dict[str, object], level: str, caplog: pytest.LogCaptureFixture) -> None:
    client._reported.clear()
    with Sandbox(slots=1, min_level="process", **options) as box:  # type: ignore[arg-type]
        if level == "namespaces" and "mount" not in box.states()[0].fences:
            pytest.skip("no namespaces here")
        assert box.level.label == level
        assert box.run(SQUARE, "f", TESTS).level == level
    assert ("isolation level" in caplog.text) == (box.level < Level.KERNEL)


@pytest.mark.parametrize(
    ("without", "missing"), [(("seccomp",), "seccomp missing"), (("landlock",), "landlock missing")]
)
def test_less_than_asked_for_is_refused_with_the_remedy(without: tuple[str, ...], missing: str) -> None:
    box = Sandbox(slots=1, namespaces=False, without=without)
    with pytest.raises(SandboxUnavailable, match=rf"{missing}.*To get it: .*min_level="):
        box.run(SQUARE, "f", TESTS)
    box.close()
    with Sandbox(slots=1, namespaces=False, without=without, allow_missing=without) as lower:
        assert lower.run(SQUARE, "f", TESTS).passed


def test_a_fence_that_does_not_hold_is_not_counted() -> None:
    fences = frozenset({"seccomp", "landlock", "mount", "pid", "net", "ipc", "user"})
    good, bad = TestOutcome(True, "passed", True), TestOutcome(False, "failed", True)
    assert canary.surviving(fences, (good, good, good)) == (fences, [])
    assert level_of(canary.surviving(fences, (bad, good, good))[0]) == Level.SYSCALLS
    assert level_of(canary.surviving(fences, (good, bad, good))[0]) == Level.KERNEL
    assert level_of(canary.surviving(fences, (good, good, bad))[0]) == Level.PROCESS


@pytest.mark.parametrize(
    "bad", [{"min_level": "safe"}, {"slots": 0}, {"allow_missing": ("moat",)}, {"language": "cobol"}]
)
def test_bad_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"min_level|slots|moat|cobol"):
        Sandbox(**bad)  # type: ignore[arg-type]


def test_pickled_and_forked_sandboxes_start_their_own_judges(sandbox: Sandbox) -> None:
    copy = pickle.loads(pickle.dumps(sandbox))
    assert copy.limits == sandbox.limits
    assert_healthy(sandbox)
    original = processes(sandbox)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ok = sandbox.run(SQUARE, "f", TESTS).passed and processes(sandbox)[0] != original[0]
            sandbox.close()
            code = 0 if ok else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert_healthy(sandbox)
    assert processes(sandbox) == original
    with copy:
        assert copy.run(SQUARE, "f", TESTS).passed


@pytest.mark.parametrize("namespaces", [True, False])
def test_no_process_or_folder_outlives_a_killed_trainer(namespaces: bool, tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys, threading, time
        from lightning_dterm.sandbox import Job, Sandbox
        box = Sandbox(slots=1, namespaces={namespaces})
        box.run("", None)
        box.run_many([Job("import time\\ntime.sleep(60)", "f")], lazy=True)
        time.sleep(0.5)
        print(box._client.pid, flush=True)
        time.sleep(60)
    """)
    root = str(Path(client.__file__).parent.parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "TMPDIR": str(tmp_path)}
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert trainer.stdout is not None
    judge = int(trainer.stdout.readline())
    below = [judge, *descendants(judge)]
    assert len(below) >= 3
    trainer.kill()
    trainer.wait()
    deadline = time.monotonic() + 10
    while (any(map(alive, below)) or any(tmp_path.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in below if alive(pid)] == []
    assert list(tmp_path.iterdir()) == []


def alive(pid: int) -> bool:
    """Whether a process runs; nobody may be there to reap it in a container."""
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize("bad", [{"cpu_s": 0}, {"wall_s": -1}, {"memory_mb": 8}, {"output_kb": 0}, {"restarts": -1}])
def test_bad_limits_name_the_culprit(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Limits(**bad)  # type: ignore[arg-type]


def test_processes_share_the_cores() -> None:
    sandbox = Sandbox()
    sandbox.share(10**6)
    assert sandbox.slots == 1
    with sandbox:
        assert sandbox.run("def f(x):\n    return x\n", "f", (CallTest((1,), 1),)).passed
