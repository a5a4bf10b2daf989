"""The sandbox's life: batches, threads, forks, killed processes, isolation levels; nothing is left behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from lightning_dterm.sandbox import Job, Level, Limits, Sandbox, SandboxUnavailable, TestOutcome, canary, client
from lightning_dterm.sandbox.levels import level_of
from lightning_dterm.types import CallTest
from tests.sandbox_common import HANG_AT_4, SQUARE, TESTS, alive, assert_healthy, processes, small_sandbox
from tests.test_sandbox_hostile import descendants

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")


@pytest.fixture(scope="module")
def sandbox():
    with small_sandbox() as box:
        yield box


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


def test_accidents_among_many_jobs_cost_none_of_them_its_verdict() -> None:
    program = "import time\ndef f():\n    time.sleep(0.02)\n    return {}\n"
    jobs = [Job(program.format(i), "f", (CallTest((), i if i % 3 else -1),)) for i in range(36)]
    with Sandbox(slots=1) as box:
        results = box.run_many(jobs, lazy=True)
        for place in range(0, 36, 6):  # more judges than a job has attempts, each after some verdicts
            assert results[place].status == "failed"
            assert box._client.pid is not None
            os.kill(box._client.pid, signal.SIGKILL)
        assert [result.status for result in results] == ["passed" if i % 3 else "failed" for i in range(36)]
        assert box._client.restarts >= 4


def test_a_judge_that_cannot_start_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SandboxUnavailable, match="did not start"):
        Sandbox(slots=1).run(SQUARE, "f", TESTS)


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
    fences = frozenset({"seccomp", "landlock", "mount", "pid", "net", "ipc", "user", "uid"})
    good, bad = TestOutcome(True, "passed", True), TestOutcome(False, "failed", True)
    assert canary.surviving(fences, (good,) * 4) == (fences, [])
    assert level_of(canary.surviving(fences, (bad, good, good, good))[0]) == Level.SYSCALLS
    assert level_of(canary.surviving(fences, (good, bad, good, good))[0]) == Level.KERNEL
    assert canary.surviving(fences, (good, good, bad, good))[0] == fences - {"uid"}
    assert level_of(canary.surviving(fences, (good, good, good, bad))[0]) == Level.PROCESS


@pytest.mark.parametrize(
    "bad", [{"min_level": "safe"}, {"slots": 0}, {"allow_missing": ("moat",)}, {"language": "cobol"}]
)
def test_bad_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"min_level|slots|moat|cobol"):
        Sandbox(**bad)  # type: ignore[arg-type]


def test_while_one_thread_waits_others_hand_over_jobs_and_a_fork_gets_verdicts(sandbox: Sandbox) -> None:
    sleepy = "import time\ndef f(x):\n    time.sleep(1.2)\n    return x * x\n"
    assert_healthy(sandbox)
    waiter = threading.Thread(target=sandbox.run, args=(sleepy, "f", TESTS[:1]))
    waiter.start()
    time.sleep(0.3)
    started = time.monotonic()
    later = sandbox.run_many([Job(SQUARE, "f", TESTS)], lazy=True)
    assert time.monotonic() - started < 0.5
    child = os.fork()
    if child == 0:  # the thread, and the lock that it may hold, stayed behind
        verdict = 1
        try:
            verdict = 0 if sandbox.run(SQUARE, "f", TESTS).passed else 2
            sandbox.close()
        finally:
            os._exit(verdict)
    deadline, status = time.monotonic() + 20.0, None
    while status is None and time.monotonic() < deadline:
        ended, code = os.waitpid(child, os.WNOHANG)
        status = code if ended else time.sleep(0.02)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    waiter.join()
    assert status == 0
    assert later[0].passed


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


def test_the_folder_of_a_slot_killed_with_all_its_owners_goes_with_the_next_start(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys, time
        from lightning_dterm.sandbox import Job, Sandbox
        from tests.sandbox_common import SQUARE, TESTS
        box = Sandbox(slots=1, namespaces=False)
        assert box.run(SQUARE, "f", TESTS).passed
        if len(sys.argv) > 1:
            sys.exit()
        program = "open('left', 'w').write('x')\\nimport time\\ntime.sleep(60)"
        box.run_many([Job(program, "f")], lazy=True)
        print(box._client.pid, flush=True)
        time.sleep(60)
    """)
    root = str(Path(client.__file__).parent.parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as trainer:
        assert trainer.stdout is not None
        judge = int(trainer.stdout.readline())
        deadline = time.monotonic() + 20
        while not list(tmp_path.rglob("left")) and time.monotonic() < deadline:
            time.sleep(0.02)
        victims = [trainer.pid, judge, *descendants(judge)]
        assert len(victims) == 4  # trainer, judge, zygote and program
        for signal_ in (signal.SIGSTOP, signal.SIGKILL):  # none of them sees another one die
            for pid in victims:
                os.kill(pid, signal_)
    while any(map(alive, victims)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [path.name for path in tmp_path.rglob("left")] == ["left"]  # nobody was there to remove it
    subprocess.run([*command, "next"], env=environment, check=True, timeout=60)
    while any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(tmp_path.iterdir()) == []


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
