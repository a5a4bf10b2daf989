"""Honest and hostile programs through the real sandbox: every verdict earned, nothing left behind."""

# ruff: noqa: E501 - programs in a table read better on one line

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lightning_dterm.sandbox import Job, Limits, Sandbox, SandboxUnavailable
from lightning_dterm.types import CallTest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")

SQUARE = "def f(x):\n    return x * x\n"
TESTS = tuple(CallTest((x,), x * x, visible=x < 4) for x in range(2, 6))
SECRET = 8_675_309  # an expected value that no program can compute from its argument


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(slots=1, limits=Limits(cpu_s=0.5, wall_s=2.0, memory_mb=256, output_kb=64)) as box:
        yield box


def zygote_pid(box: Sandbox) -> int:
    process = box._slots[0]._process
    assert process is not None
    return process.pid


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_bytes().rpartition(b")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


def assert_healthy(box: Sandbox) -> None:
    result = box.run(SQUARE, "f", TESTS)
    assert result.status == "passed", result
    assert children_of(zygote_pid(box)) == []
    folder = Path(box._slots[0]._folder)
    assert [path.name for path in folder.rglob("*")] in ([], ["cwd"])


def test_honest_program_passes_with_usage(sandbox: Sandbox) -> None:
    result = sandbox.run(SQUARE, "f", TESTS)
    assert result.status == "passed"
    assert [outcome.passed for outcome in result.per_test] == [True] * 4
    assert [outcome.visible for outcome in result.per_test] == [True, True, False, False]
    assert result.level == "process"
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


def test_a_hang_keeps_earlier_outcomes(sandbox: Sandbox) -> None:
    result = sandbox.run("def f(x):\n    while x == 4: pass\n    return x * x\n", "f", TESTS)
    assert [outcome.status for outcome in result.per_test] == ["passed", "passed", "timeout", "timeout"]
    assert result.status == "timeout"
    assert_healthy(sandbox)


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


WRITE_FRAMES = """
import os, struct
for fd in range(3, 21):
    for kind in (b"A", b"C", b"L", b"T", b"D"):
        for payload in (b'["ok",8675309]', b"null", b"x" * 100):
            try: os.write(fd, struct.pack("!cI16sI", kind, 3, bytes(16), len(payload)) + payload)
            except OSError: pass
def f(x): return 8675309
"""
FORGE_WITH_THE_REAL_NONCE = """
import gc, os, json, struct
channel = next(o for o in gc.get_objects() if type(o).__name__ == "Channel")
def f(x):
    for kind, claim in ((b"T", ["ok", 0]), (b"T", ["ok", 0]), (b"T", ["ok", 0]), (b"T", ["ok", 0]), (b"D", None)):
        channel.send(kind, claim)
    os._exit(0)
"""
DUPLICATE_FRAMES = """
import gc
channel = next(o for o in gc.get_objects() if type(o).__name__ == "Channel")
def f(x):
    channel.send(b"T", ["ok", x * x])
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
# name -> (program, allowed statuses); every test expects SECRET, or what the program must not earn.
HOSTILE: dict[str, tuple[str, set[str]]] = {
    "os_exit_zero": ("import os\ndef f(x): os._exit(0)\n", {"exited"}),
    "os_exit_on_load": ("import os\nprint('passed')\nos._exit(0)\n", {"exited"}),
    "sys_exit": ("import sys\ndef f(x): sys.exit(0)\n", {"exited"}),
    "infinite_loop": ("def f(x):\n    while True: pass\n", {"timeout"}),
    "loop_swallowing_everything": (
        "import signal\nfor s in (24, 27):\n    signal.signal(s, signal.SIG_IGN)\n"
        "def f(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass\n",
        {"timeout"},
    ),
    "sleep_forever": ("import time\ndef f(x): time.sleep(1000)\n", {"timeout"}),
    "hang_in_c": ("def f(x): return sum(range(10 ** 15))\n", {"timeout"}),
    "recursion": ("def f(x): return f(x)\n", {"error"}),
    "c_stack_overflow": (
        "import sys\nsys.setrecursionlimit(10 ** 8)\nclass A:\n    def __repr__(self): return repr([self])\n"
        "def f(x): return repr(A())\n",
        {"killed", "memory", "error", "timeout"},
    ),
    "memory_bomb": ("def f(x): return len(bytearray(1 << 33))\n", {"memory"}),
    "memory_creep": ("def f(x):\n    a = []\n    while True: a.append(bytes(1 << 20))\n", {"memory"}),
    "fork_bomb": (
        "import os\ndef f(x):\n    for _ in range(20):\n        if os.fork() == 0: os.setsid()\n    return 8675309 - 1\n",
        {"error"},
    ),
    "spawn": ("import os\ndef f(x): return os.system('true')\n", {"failed"}),
    "exec": ("import os\ndef f(x): os.execv('/bin/true', ['true'])\n", {"error"}),
    "socket": ("import socket\ndef f(x): socket.socket()\n", {"error"}),
    "output_flood": ("def f(x):\n    while True: print('x' * 1000)\n", {"output"}),
    "file_flood": ("def f(x):\n    with open('big', 'wb') as h:\n        while True: h.write(bytes(1 << 16))\n", {"output"}),
    "many_files": ("def f(x):\n    for i in range(50): open(f'n{i}', 'w').write('x')\n    return x\n", {"failed"}),
    "write_outside": ("def f(x): open('/tmp/lightning-dterm-escape', 'w').write('x')\n", {"error"}),
    "read_etc_passwd": ("def f(x): return open('/etc/passwd').read()\n", {"error"}),
    "read_the_trainer": ("import os\ndef f(x): return open(f'/proc/{os.getppid()}/maps').read()\n", {"error"}),
    "always_true_eq": (
        "class Yes:\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\ndef f(x): return Yes()\n",
        {"failed"},
    ),
    "int_subclass_always_equal": (
        "class Yes(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(x): return Yes(1)\n",
        {"failed"},
    ),
    "str_subclass": ("class S(str):\n    def __eq__(self, o): return True\ndef f(x): return S('x')\n", {"failed"}),
    "prints_passed": ("import sys\ndef f(x):\n    print('passed', flush=True)\n    return 'passed'\n", {"failed"}),
    "writes_every_descriptor": (WRITE_FRAMES, {"forged"}),
    "real_nonce_wrong_values": (FORGE_WITH_THE_REAL_NONCE, {"failed"}),
    "duplicate_frames": (DUPLICATE_FRAMES, {"forged"}),
    "oversized_channel": (
        "import gc\nc = next(o for o in gc.get_objects() if type(o).__name__ == 'Channel')\n"
        "def f(x):\n    while True: c._connection.send(b'A' * 65536)\n",
        {"forged"},
    ),
    "kill_parent": ("import os\ndef f(x): os.kill(os.getppid(), 9)\n", {"error"}),
    "kill_everything": ("import os\ndef f(x): os.kill(-1, 9)\n", {"error"}),
    "kill_parent_group": ("import os\ndef f(x): os.killpg(os.getpgid(os.getppid()), 9)\n", {"error"}),
    "kill_self": ("import os\ndef f(x): os.kill(os.getpid(), 9)\n", {"killed"}),
    "abort": ("import os\ndef f(x): os.abort()\n", {"killed"}),
    "stop_self": ("import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP)\n", {"timeout"}),
    "limits_of_the_parent": (
        "import os, resource\ndef f(x): resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))\n", {"error"},
    ),
    "raise_own_limits": (
        "import resource\ndef f(x):\n    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\n"
        "    return len(bytearray(1 << 30))\n",
        {"error", "memory"},
    ),
    "threads_that_never_end": (
        "import threading, time\ndef f(x):\n    threading.Thread(target=time.sleep, args=(1000,)).start()\n    return x\n",
        {"failed"},
    ),
    "deletes_cwd": ("import os\ndef f(x):\n    os.rmdir(os.getcwd())\n    return x\n", {"failed", "error"}),
    "locks_scratch": (
        "import os\ndef f(x):\n    os.makedirs('a/b')\n    os.symlink('/', 'a/root')\n    os.chmod('a', 0)\n    return x\n",
        {"failed", "error"},
    ),
    "patches_builtins": (
        "import builtins, json, struct\nbuiltins.len = lambda o: 0\nbuiltins.type = lambda o: int\n"
        "json.dumps = lambda *a, **k: '[\"ok\",8675309]'\nstruct.Struct = None\nbuiltins.isinstance = lambda *a: True\n"
        "def f(x): return x\n",
        {"failed", "exited", "forged"},
    ),
    "closes_descriptors": ("import os\ndef f(x):\n    os.closerange(0, 100)\n    return x\n", {"exited", "killed"}),
    "deep_value": ("def f(x):\n    v = []\n    for _ in range(100000): v = [v]\n    return v\n", {"failed", "killed"}),
    "cyclic_list": ("def f(x):\n    v = []\n    v.append(v)\n    return v\n", {"failed"}),
    "huge_int": ("def f(x): return 1 << 30_000_000\n", {"failed"}),
    "huge_string": ("def f(x): return 'x' * 50_000_000\n", {"failed", "memory"}),
    "generator": ("def f(x): yield 8675309\n", {"failed"}),
    "raises_base_exception": (
        "class E(BaseException):\n    def __str__(self): raise self\n    __traceback__ = property(lambda s: 1 / 0)\n"
        "def f(x): raise E\n",
        {"error"},
    ),
    "no_such_function": ("def g(x): return 8675309\n", {"error"}),
    "io_uring_and_ptrace": (
        "import ctypes\nlibc = ctypes.CDLL(None)\ndef f(x): return [libc.syscall(n, 0, 0, 0) for n in (425, 101, 272)]\n",
        {"failed", "error"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program_earns_nothing(sandbox: Sandbox, name: str) -> None:
    program, statuses = HOSTILE[name]
    tests = tuple(CallTest((x,), SECRET if "writes_every" not in name else SECRET + 1, x < 4) for x in range(2, 6))
    before = os.getpid(), zygote_pid(sandbox) if sandbox._slots[0]._process else None
    result = sandbox.run(program, "f", tests)
    assert result.status in statuses, result
    assert not any(outcome.passed for outcome in result.per_test)
    assert len(result.per_test) == 4
    assert_healthy(sandbox)
    assert before[1] in (None, zygote_pid(sandbox)), "the worker did not survive"
    assert not Path("/tmp/lightning-dterm-escape").exists()


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


COUNTED = "def f(n):\n    total = 0\n    for i in range(n):\n        total += i\n    return total\n"


def test_cost_counts_executed_lines_and_ignores_layout(sandbox: Sandbox) -> None:
    tests = (CallTest((3,), 3), CallTest((1000,), 499500, visible=False))
    job = Job(COUNTED, "f", tests, measure_cost=True)
    dense = Job(
        "def f(n):\n    total = 0; i = 0\n    for i in range(n): total += i\n    return total", "f", tests, True
    )
    first, again, other = sandbox.run_many([job, job, dense])
    # def, total = 0, for x4, total += i x3, return: 10 lines over the visible test alone.
    assert first.cost == again.cost == 10
    assert other.cost == 11  # one more statement (i = 0), however the lines are joined


def test_cost_needs_passed_visible_tests_but_no_hidden_ones(sandbox: Sandbox) -> None:
    visible_fails = Job(COUNTED, "f", (CallTest((3,), 4), CallTest((4,), 6, False)), True)
    hidden_fails = Job(COUNTED, "f", (CallTest((3,), 3), CallTest((4,), 7, False)), True)
    assert [result.cost for result in sandbox.run_many([visible_fails, hidden_fails])] == [None, 10]


def test_cost_is_capped_and_lost_when_tracing_is_turned_off(sandbox: Sandbox) -> None:
    slow = "def f(n):\n    while n:\n        n -= 1\n    return 0\n"
    off = "import sys\ndef f(n):\n    sys.settrace(None)\n    return 0\n"
    tests = (CallTest((1_500_000,), 0),)
    assert [r.cost for r in sandbox.run_many([Job(slow, "f", tests, True), Job(off, "f", tests, True)])] == [
        2_000_000,
        None,
    ]


def test_worker_killed_is_replaced_and_the_program_retried(sandbox: Sandbox) -> None:
    assert_healthy(sandbox)
    os.kill(zygote_pid(sandbox), signal.SIGKILL)
    assert_healthy(sandbox)


def test_worker_that_cannot_start_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SandboxUnavailable, match="did not start"):
        Sandbox(slots=1).run(SQUARE, "f", TESTS)


def test_other_platforms_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="Linux only"):
        Sandbox()


def test_pickled_and_forked_sandboxes_start_their_own_workers(sandbox: Sandbox) -> None:
    copy = pickle.loads(pickle.dumps(sandbox))
    assert copy.limits == sandbox.limits
    assert_healthy(sandbox)
    original = zygote_pid(sandbox)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ok = sandbox.run(SQUARE, "f", TESTS).passed and zygote_pid(sandbox) != original
            sandbox.close()
            code = 0 if ok else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert_healthy(sandbox)
    assert zygote_pid(sandbox) == original
    with copy:
        assert copy.run(SQUARE, "f", TESTS).passed


def test_no_worker_outlives_a_killed_trainer() -> None:
    script = textwrap.dedent("""
        import sys, threading, time
        from lightning_dterm.sandbox import Sandbox
        box = Sandbox(slots=1)
        box.run("", None)
        slot = box._slots[0]
        threading.Thread(target=box.run, args=("import time\\ntime.sleep(60)", "f"), daemon=True).start()
        time.sleep(0.3)
        print(slot._process.pid, slot._folder, flush=True)
        time.sleep(60)
    """)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert trainer.stdout is not None
    pid, folder = trainer.stdout.readline().split()
    assert len(children_of(int(pid))) == 1
    trainer.kill()
    trainer.wait()
    deadline = time.monotonic() + 10
    while (Path(f"/proc/{pid}").exists() or Path(folder).exists()) and time.monotonic() < deadline:
        time.sleep(0.02)
    alive = Path(f"/proc/{pid}/stat")
    assert not alive.exists() or b") Z " in alive.read_bytes()  # nobody may be there to reap it in a container
    assert not Path(folder).exists()


@pytest.mark.parametrize("bad", [{"cpu_s": 0}, {"wall_s": -1}, {"memory_mb": 8}, {"output_kb": 0}])
def test_bad_limits_name_the_culprit(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Limits(**bad)  # type: ignore[arg-type]


def test_processes_share_the_cores() -> None:
    sandbox = Sandbox()
    sandbox.share(10**6)
    assert sandbox.slots == 1
    with sandbox:
        assert sandbox.run("def f(x):\n    return x\n", "f", (CallTest((1,), 1),)).passed
