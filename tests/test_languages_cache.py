"""The compile cache (written once, never through links), precompiled headers, and the fence's filter."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.sandbox.languages import CompileCache, CompileLimits, Compilers, Diagnostic, Report
from lightning_dterm.sandbox.languages import fence as fences
from lightning_dterm.sandbox.languages.gcc import CCompiler, leading_headers
from lightning_dterm.sandbox.languages.launcher import read_back
from lightning_dterm.sandbox.languages.process import Command, Launcher
from lightning_dterm.sandbox.languages.syscalls import AUDIT_ARCH, NUMBERS
from tests.languages_common import children, folders, needs, own_temporary_folder

__all__ = ["own_temporary_folder"]
REPORT = Report("c", "gcc 1", "errors", (Diagnostic("error", "é", 1, 2, 3, 4),), 0.5, None)
BUILT = Report("c", "gcc 1", "ok", (), 0.5, b"\0\n\xffELF")


def files(cache: CompileCache) -> list[Path]:
    return [path for path in Path(cache.folder).rglob("*") if path.is_file()]


def test_reports_and_artifacts_come_back_in_another_process_s_cache(tmp_path: Path) -> None:
    first = CompileCache(tmp_path)
    first.put("a" * 64, REPORT)
    first.put("b" * 64, BUILT)
    second = CompileCache(tmp_path)
    found, built = second.get("a" * 64), second.get("b" * 64)
    assert found is not None
    assert built is not None
    assert (found.diagnostics, found.status, found.cached) == (REPORT.diagnostics, "errors", True)
    assert built.artifact == BUILT.artifact
    assert second.get("c" * 64) is None
    assert (second.hits, second.misses) == (2, 1)


def test_what_is_written_stays(tmp_path: Path) -> None:
    key = CompileCache.key("x")
    CompileCache(tmp_path).put(key, BUILT)
    CompileCache(tmp_path).put(key, Report("c", "gcc 1", "ok", (), 0.0, b"other"))
    assert CompileCache(tmp_path).get(key).artifact == BUILT.artifact  # type: ignore[union-attr]
    assert len(files(CompileCache(tmp_path))) == 1


def test_torn_and_foreign_files_are_misses(tmp_path: Path) -> None:
    key = CompileCache.key("x")
    CompileCache(tmp_path).put(key, BUILT)
    (path,) = files(CompileCache(tmp_path))
    content = path.read_bytes()
    for broken in (content[:-1], b"", content.replace(b"ELF", b"EVL"), b"x" * 100):
        path.write_bytes(broken)
        assert CompileCache(tmp_path).get(key) is None
        assert not path.exists()
        CompileCache(tmp_path).put(key, BUILT)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(content)
    path.unlink()
    path.symlink_to(elsewhere)
    assert CompileCache(tmp_path).get(key) is None
    path.unlink()
    os.mkfifo(path)
    assert CompileCache(tmp_path).get(key) is None


def test_our_own_failures_and_timeouts_are_not_written(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path)
    cache.put("a" * 64, Report("c", "gcc", "infra"))
    cache.put("b" * 64, Report("c", "gcc", "timeout"))
    assert cache.get("a" * 64) is None
    assert cache.get("b" * 64).status == "timeout"  # type: ignore[union-attr]
    assert files(cache) == []


def test_it_stays_below_its_size(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path, max_mb=1)
    for index in range(30):
        cache.put(CompileCache.key(str(index)), Report("c", "gcc", "ok", (), 0.0, bytes([index]) * 100_000))
    assert sum(path.stat().st_size for path in files(cache)) <= 1 << 20
    assert len(files(cache)) >= 5
    with pytest.raises(ValueError, match="max_mb"):
        CompileCache(tmp_path, max_mb=0)


def test_a_temporary_cache_goes_away() -> None:
    cache = CompileCache()
    cache.put("a" * 64, BUILT)
    assert os.path.isdir(cache.folder)
    cache.close()
    assert not os.path.exists(cache.folder)


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_keys_differ_where_parts_differ(one: list[str], other: list[str]) -> None:
    assert (CompileCache.key(*one) == CompileCache.key(*other)) == (one == other)


def test_outputs_are_never_read_through_links(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_bytes(b"data")
    assert read_back(str(real), 4) == b"data"
    assert read_back(str(real), 3) is None
    (tmp_path / "link").symlink_to(real)
    assert read_back(str(tmp_path / "link"), 10) is None
    os.link(real, tmp_path / "hard")
    assert read_back(str(tmp_path / "hard"), 10) is None
    os.mkfifo(tmp_path / "pipe")
    assert read_back(str(tmp_path / "pipe"), 10) is None
    assert read_back(str(tmp_path), 10) is None
    assert read_back("/dev/zero", 10) is None


# --- precompiled headers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "headers"),
    [
        ("#include <vector>\n#include <map>\nint main() {}", ("map", "vector")),
        ("// a\n/* b\n c */\n  #  include <vector> // x\r\n\n#include<bits/stdc++.h>\n", ("bits/stdc++.h", "vector")),
        ("#define private public\n#include <vector>\n", ()),
        ("#include <vector>\n#define X\n#include <map>\n", ("vector",)),
        ('#include "vector"\n', ()),
        ("#include <../../etc/passwd>\n", ()),
        ("#include <vector> junk\n", ()),
        ("/* x */ #include <vector>\n", ()),
        ("// a \\\n#include <vector>\n", ()),
        ("int x;\n#include <vector>\n", ()),
        ("#include <vector>", ("vector",)),
        ("", ()),
    ],
)
def test_leading_headers(source: str, headers: tuple[str, ...]) -> None:
    assert leading_headers(source) == headers


@settings(max_examples=100)
@given(st.text(alphabet="#include <vector>\n/*\\ x", max_size=80))
def test_leading_headers_end(source: str) -> None:
    assert set(leading_headers(source)) <= {"vector"}


@pytest.fixture(scope="module")
def compilers(own_temporary_folder: None) -> Iterator[Compilers]:
    with Compilers(slots=1, limits=CompileLimits(cpu_s=30.0, wall_s=900.0)) as found:
        yield found
    assert (children(), folders()) == ([], set())


def test_precompiled_headers_change_nothing_but_the_time(compilers: Compilers) -> None:
    needs("cpp")
    good = "#include <bits/stdc++.h>\nint main() { std::vector<int> v{3, 1}; std::sort(v.begin(), v.end()); }\n"
    bad = "#include <bits/stdc++.h>\nint main() {\n  std::vector<int> v;\n  v.push_bak(1);\n}\n"
    compilers.check("cpp", "#include <bits/stdc++.h>\nint x;\n")
    assert any(name.endswith(".gch") for name in os.listdir(compilers.headers))
    with Compilers(slots=1, limits=compilers.limits, backends=[CCompiler(precompile=False)]) as plain:
        for program in (good, bad):
            fast, slow = compilers.check("cpp", program), plain.check("cpp", program)
            assert fast is not None
            assert slow is not None
            assert (fast.status, fast.diagnostics) == (slow.status, slow.diagnostics)
            assert fast.cpu_s < slow.cpu_s
        missing = "#include <vector>\nint main() { std::map<int, int> m; }\n"
        for _ in range(4):  # often enough for its own headers to be precompiled, which must not lend it <map>
            report = compilers.check("cpp", missing + f"// {_}\n")
            assert report is not None
            assert report.status == "errors"


# --- the launcher ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("namespaces", [True, False])
def test_a_launcher_with_and_without_namespaces(own_temporary_folder: None, namespaces: bool) -> None:
    needs("c")
    before = (set(children()), folders())
    launcher = Launcher(CCompiler().rules(), namespaces=namespaces)
    launcher.start()
    try:
        assert launcher.granted >= {"seccomp", "landlock"}
        if not namespaces:
            assert "pidns" not in launcher.granted
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


def test_nothing_outlives_a_trainer_that_is_killed(own_temporary_folder: None, tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(
        "import os, sys, tempfile\ntempfile.tempdir = sys.argv[1]\n"
        "from lightning_dterm.sandbox.languages.process import Command, Launcher\n"
        "launcher = Launcher()\nlauncher.start()\nprint('ready', flush=True)\n"
        "launcher.run(Command('/bin/sleep', ('sleep', '1234'), wall_s=1000.0))\n"
    )
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()}) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == b"ready\n"
        trainer.kill()
    deadline = time.monotonic() + 120.0
    while time.monotonic() < deadline and list(tmp_path.glob("lightning-dterm-*")):
        time.sleep(0.05)
    assert list(tmp_path.glob("lightning-dterm-*")) == []


# --- the filter -----------------------------------------------------------------------------------------------------


def run_filter(code: bytes, number: int, arguments: tuple[int, ...] = (), arch: int | None = None) -> int:
    """Interpret a classic BPF program as the kernel does."""
    machine = AUDIT_ARCH["x86_64"] if arch is None else arch
    data = struct.pack("=IIQ6Q", number, machine, 0, *(arguments + (0,) * (6 - len(arguments))))
    lines = [struct.unpack_from("=HBBI", code, at) for at in range(0, len(code), 8)]
    accumulator = at = 0
    while True:
        operation, yes, no, operand = lines[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("=I", data, operand)[0]
        elif operation == 0x06:
            return int(operand)
        elif operation == 0x05:
            at += operand
        else:
            true = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}
            at += yes if true[operation] else no


ALLOW, DENY = 0x7FFF0000, 0x00050001
SYS = NUMBERS["x86_64"]
THREAD = 0x3D0F00
VERDICTS = [
    ("read", (), ALLOW, ALLOW), ("fork", (), DENY, ALLOW), ("execve", (), DENY, ALLOW), ("kill", (77, 9), ALLOW, DENY),
    ("kill", (78, 9), DENY, DENY), ("kill", (0, 9), DENY, DENY), ("kill", (2**32 - 1, 9), DENY, DENY),
    ("tgkill", (77, 80, 6), ALLOW, ALLOW), ("tgkill", (1, 1, 6), DENY, ALLOW),
    ("clone", (THREAD,), ALLOW, ALLOW), ("clone", (17,), DENY, ALLOW), ("clone", (1 << 28 | 17,), DENY, DENY),
    ("clone", (THREAD | 1 << 30,), DENY, DENY), ("clone3", (), 0x00050026, 0x00050026),
    ("execveat", (900, 0, 0, 0, 0x1000), ALLOW, ALLOW), ("execveat", (900, 0, 0, 0, 0), DENY, DENY),
    ("execveat", (3, 0, 0, 0, 0x1000), DENY, DENY), ("prlimit64", (0, 7, 0, 1), ALLOW, ALLOW),
    ("prlimit64", (0, 7, 1 << 32, 1), DENY, DENY), ("prlimit64", (1, 7, 0, 1), DENY, DENY),
    ("fcntl", (0, 2), ALLOW, ALLOW), ("fcntl", (0, 8), DENY, DENY), ("fcntl", (0, 10), DENY, DENY),
    ("ioctl", (0, 0x5401), ALLOW, ALLOW), ("ioctl", (0, 0x5412), DENY, DENY), ("prctl", (15,), ALLOW, ALLOW),
    ("prctl", (22,), DENY, DENY), ("socketpair", (1, 1, 0), ALLOW, ALLOW), ("socketpair", (2, 1, 0), DENY, DENY),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "program", "tools"), VERDICTS)
def test_verdicts_of_the_filter(name: str, arguments: tuple[int, ...], program: int, tools: int) -> None:
    for profile, verdict in (("program", program), ("tools", tools)):
        code = fences.build_filter("x86_64", profile, 77)
        assert run_filter(code, SYS[name], arguments) == verdict, profile


@pytest.mark.parametrize("profile", ["program", "tools"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_everything_that_is_not_listed_is_refused(profile: str, machine: str) -> None:
    code = fences.build_filter(machine, profile, 77)
    assert len(code) // 8 <= 4096
    listed = set(NUMBERS[machine].values())
    arch = AUDIT_ARCH[machine]
    for number in (*range(1100), 0x40000000, 0x40000000 + 1, 0xFFFFFFFF):
        if number not in listed:
            assert run_filter(code, number, arch=arch) == DENY, number
    assert run_filter(code, 0, arch=0x40000003) == 0x80000000
