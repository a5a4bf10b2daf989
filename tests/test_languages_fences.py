"""What surrounds compilers and their programs: fences at each level, what can be seen, what a killed trainer leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_dterm.sandbox import Limits, Sandbox
from lightning_dterm.sandbox.languages import CompileLimits, Compilers
from lightning_dterm.sandbox.languages.process import Command, Launcher
from lightning_dterm.sandbox.languages.script import GoCompiler
from tests.languages_common import children, folders, needs, own_temporary_folder
from tests.sandbox_unprivileged import as_nobody

__all__ = ["own_temporary_folder"]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")
ROOT = str(Path(__file__).resolve().parent.parent)


@pytest.mark.parametrize("namespaces", [True, False])
def test_a_launcher_with_and_without_namespaces(own_temporary_folder: None, namespaces: bool) -> None:
    needs("c")
    before = (set(children()), folders())
    launcher = Launcher([("/usr/bin", "x")], namespaces=namespaces)
    launcher.start()
    try:
        assert launcher.granted >= {"seccomp", "landlock"}
        if namespaces and launcher.level != "namespaces":
            pytest.skip(f"no namespaces here: {launcher.reasons}")
        assert launcher.level == ("namespaces" if namespaces else "kernel")
        shell = Command("/bin/sh", ("sh", "-c", "sleep 1000 & sleep 1000"), {"PATH": "/bin"}, "tools", wall_s=1.0)
        assert launcher.run(shell).flags == ("wall",)
        left = Command("/bin/sh", ("sh", "-c", "sleep 1000 & echo x"), {"PATH": "/bin"}, "tools", wall_s=300.0)
        ended = launcher.run(left)
        assert (ended.code, ended.stdout, ended.flags) == (0, b"x\n", ())
        assert [line for line in children() if "sleep" in line] == []
        for status in (7, 0):
            code = f"exit {status}"
            assert launcher.run(Command("/bin/sh", ("sh", "-c", code), wall_s=300.0)).code == status
        assert launcher.run(Command("/bin/sh", ("sh", "-c", "kill -ABRT $$"), wall_s=300.0)).signal == 6
        gone = launcher.run(Command("/no/such/program", ("x",), wall_s=300.0))
        assert "FileNotFoundError" in gone.error
    finally:
        launcher.close()
    assert (set(children()), folders()) == before


@pytest.fixture(scope="module", params=[True, False], ids=["namespaces", "without"])
def launcher(request: pytest.FixtureRequest, own_temporary_folder: None) -> Iterator[Launcher]:
    made = Launcher([("/usr/bin", "x"), ("/usr/include", "r")], namespaces=request.param)
    made.start()
    yield made
    made.close()


def shell(launcher: Launcher, code: str, profile: str = "tools") -> str:
    """What a shell script says; ``tools`` may start processes, so what stops them is not the filter."""
    command = Command("/bin/sh", ("sh", "-c", code), {"PATH": "/usr/bin:/bin"}, profile, wall_s=300.0)  # type: ignore[arg-type]
    ended = launcher.run(command)
    assert not ended.error, ended
    return ended.stdout.decode()


def test_commands_have_a_user_and_a_number_of_processes_of_their_own(launcher: Launcher) -> None:
    if "uid" not in launcher.granted:
        pytest.skip(f"not granted here: {launcher.reasons}")
    assert int(shell(launcher, "id -u")) > 1_900_000_000
    assert int(shell(launcher, "id -g")) > 1_900_000_000
    # RLIMIT_NPROC is not enforced for uid 0: that many sleepers start only for nobody's own user.
    said = shell(launcher, "for i in $(seq 400); do sleep 1000 & done; echo started all")
    assert "started all" not in said
    assert shell(launcher, "echo honest") == "honest\n"
    assert [line for line in children() if "sleep" in line] == []


def test_only_toolchains_exist_where_there_is_a_file_tree(launcher: Launcher) -> None:
    if "mount" not in launcher.granted:
        pytest.skip("metadata is visible without a mount namespace, see docs/sandbox.md")
    paths = f"/etc/passwd /root /home {ROOT} {sys.executable} /var /sys /dev/shm /dev/tty"
    seen = shell(launcher, f"for p in {paths}; do test -e $p && echo $p; done; true")
    assert seen == ""
    assert shell(launcher, "test -e /usr/include && echo yes") == "yes\n"
    # Whoever runs outside cannot be seen either: /proc is this namespace's own, and closed but for what needs it.
    assert shell(launcher, f"test -e /proc/{os.getpid()}/exe && echo visible; cat /proc/self/maps; true") == ""


def test_a_program_learns_nothing_from_has_include(own_temporary_folder: None) -> None:
    needs("c")
    with Compilers(slots=1, limits=CompileLimits(wall_s=900.0)) as compilers:
        for path in ("/etc/passwd", "/no/such/file", ROOT + "/pyproject.toml", "/root", "/sys/kernel"):
            source = f'#if __has_include("{path}")\n#error seen\n#endif\nint x;\n'
            report = compilers.check("c", source)
            assert report is not None
            assert (path, report.status, report.errors) == (path, "ok", ())
        there = compilers.check("c", "#if !__has_include(<stdio.h>)\n#error unseen\n#endif\nint x;\n")
        assert there is not None
        assert there.status == "ok"


TRAINER = """
import os, sys, tempfile, threading
tempfile.tempdir = sys.argv[1]
from lightning_dterm.sandbox.languages import Compilers
compilers = Compilers(slots=1)
assert compilers.check("c", "int x;").status == "ok"
assert len(os.listdir(sys.argv[1])) >= 3, os.listdir(sys.argv[1])
threading.Thread(target=compilers.check, args=("c", "int main(void) { return 0; }"), daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""


def test_nothing_outlives_a_trainer_that_is_killed(own_temporary_folder: None, tmp_path: Path) -> None:
    needs("c")
    before = set(children())
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, str(tmp_path / "trainer.py"), str(tmp_path / "temporary")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ROOT}) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == b"ready\n"
        trainer.kill()
    deadline = time.monotonic() + 120.0
    while time.monotonic() < deadline and os.listdir(tmp_path / "temporary"):
        time.sleep(0.05)
    assert os.listdir(tmp_path / "temporary") == []
    assert set(children()) <= before


def test_a_compiler_that_fails_on_good_programs_judges_nobody(own_temporary_folder: None) -> None:
    class Broken(GoCompiler):
        path = "/usr/bin/false"
        version = "false"

    with Compilers(slots=1, backends=[Broken()]) as compilers:
        for _ in range(2):
            report = compilers.check("go", "package main\n")
            assert report is not None
            assert report.status == "infra"
            assert "does not compile a good program" in report.reason


HOG = "x = a" + " < b" * 300_000 + "\n"  # more than a second of CPython's compiler


@pytest.mark.parametrize(
    ("program", "status"), [(HOG, "timeout"), ("x = [" + "1," * 3_000_000 + "]\n", "memory"), ("x = 1\n", "ok")]
)
def test_python_programs_that_exhaust_the_compiler(own_temporary_folder: None, program: str, status: str) -> None:
    limits = Limits(cpu_s=0.3 if status == "timeout" else 30.0, wall_s=300.0, memory_mb=256)
    sandbox = Sandbox(slots=1, limits=limits)
    with sandbox, Compilers(slots=1, sandbox=sandbox) as compilers:
        report = compilers.check("python", program)
    assert report is not None
    assert report.status == status
    assert report.count(10) == (0 if status == "ok" else 10)
    assert report.errors == ()


@pytest.mark.parametrize("mode", ["namespaces", "kernel"])
def test_languages_as_an_unprivileged_user(mode: str) -> None:
    needs("c")
    if os.geteuid() != 0:
        pytest.skip("this test run is unprivileged itself")
    done = as_nobody([sys.executable, "-m", "tests.languages_unprivileged", mode])
    if done.returncode == 77:
        pytest.skip(done.stderr[-300:])
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["uid"] == 65534
    assert report["level"] == mode
    assert report["wrong"] == []
    assert report["programs"] >= 25
    assert report["left"] == []
