"""Attacks on compile feedback and compiled programs that once worked: hidden errors, dodged verdicts, wasted time."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator

import pytest

from lightning_dterm.execution import compiler_options
from lightning_dterm.sandbox import Sandbox, SandboxUnavailable
from lightning_dterm.sandbox.__main__ import compilers as doctors_compilers
from lightning_dterm.sandbox.__main__ import main as doctor
from lightning_dterm.sandbox.languages import Compilers, IOTest, ProgramJob, Programs
from lightning_dterm.sandbox.languages.diagnostics import Text, moves_lines
from lightning_dterm.sandbox.languages.gcc import CCompiler
from lightning_dterm.sandbox.languages.java import JavaCompiler
from lightning_dterm.sandbox.languages.launcher import LENGTH
from lightning_dterm.sandbox.languages.output import same_value
from lightning_dterm.sandbox.languages.process import Command, LauncherLost, LauncherUnavailable
from lightning_dterm.sandbox.languages.script import PhpCompiler
from lightning_dterm.sandbox.languages.service import Service, ServiceLost
from lightning_dterm.sandbox.process import children as children_of
from lightning_dterm.sandbox.result import Limits
from lightning_dterm.structure.process import ERRORS, Beyond, ParserProcess
from lightning_dterm.structure.worker import cpu_limit
from lightning_dterm.types import CallTest
from tests.languages_common import children, folders, needs, own_temporary_folder

__all__ = ["own_temporary_folder"]
pytestmark = pytest.mark.usefixtures("own_temporary_folder")


@pytest.fixture(scope="module")
def compilers(own_temporary_folder: None) -> Iterator[Compilers]:
    with Compilers(slots=1) as made:
        yield made


# --- errors that hide -------------------------------------------------------------------------------------------------

BAD = {
    "go": "package main\n{0}\nfunc f() {{ x := := 1 }}\nfunc g() {{ if }}\nfunc h() {{ x := := 1 }}\n",
    "csharp": "{0}\nclass A {{ int F() {{ return x1 + x2; }}\nint G() {{ return x1; }} }}\n",
    "c": "{0}\nint f(void) {{ return 1 }}\nint g(void) {{ return 1 }}\nint h(void) {{ return 1 }}\n",
}
MOVES = [
    ("go", "//line x.go:1"),
    ("go", "//line a:1:1: b.go:1:1"),
    ("go", "/*line main:1:1*/"),
    ("csharp", '#line 1 "x(1,1): warning CS0001: "'),
    ("csharp", '\0#line 1 "x(1,1): warning CS0001: "'),
    ("csharp", '\0# line 900 "x"'),
    ("c", '#line 1 "x.c"'),
    ("c", '\0#line 1 "x.c"'),
    ("c", '# 1 "a:1:1: warning: "'),
]


@pytest.mark.parametrize(("language", "move"), MOVES)
def test_a_program_that_moves_its_lines_has_no_fewer_errors(compilers: Compilers, language: str, move: str) -> None:
    needs(language)
    plain, moved = (compilers.check(language, BAD[language].format(head)) for head in ("", move))
    assert plain is not None
    assert moved is not None
    assert len(plain.errors) >= 3
    assert len(moved.errors) == len(plain.errors), moved
    assert all(one.line is None for one in moved.errors)
    assert moves_lines(language, BAD[language].format(move))


def test_nor_with_clang() -> None:
    backend = CCompiler("clang")
    if backend.path is None:
        pytest.skip("clang is not installed")
    with Compilers(slots=1, backends=[backend]) as made:
        for move in ('#line 1 "a:1:1: warning: "', '#line 1 "a:1:1: note: \\nb"', '#line 1 "x.c"'):
            report = made.check("c", BAD["c"].format(move))
            assert report is not None
            assert report.count(10) == 3, report


def test_php_s_errors_cannot_choose_their_line() -> None:
    source = "<?php\n$x = 1;\n$y = 2;\n"
    words = (
        'PHP Parse error:  syntax error, unexpected string content "\nParse error: x in main.php on line 1\n" in '
        "main.php on line 3\n\nErrors parsing main.php\n"
    )
    (found,) = PhpCompiler().parse(words, Text(source), "main.php")
    assert (found.severity, found.line) == ("error", 3)


@pytest.mark.parametrize(
    ("program", "line"),
    [
        ("no php at all ((((", 1),  # what has no tag is printed, so everything was a good program
        ("$x = 1;\n$y = ;\n", 2),
        ("$x = 1;\necho $x;", None),
        ("public function f($a) { return $a; }", None),
        ("public function f($a) { return $a }", 1),
        ("<?php\n$x = ;", 2),
        ("<html><?php echo 1; ?></html>", None),
        ("namespace A;\nclass B { }", None),
    ],
)
def test_php_without_its_tags(compilers: Compilers, program: str, line: int | None) -> None:
    needs("php")
    report = compilers.check("php", program)
    assert report is not None
    assert report.status == ("ok" if line is None else "errors"), report
    assert [one.line for one in report.errors] == ([] if line is None else [line])
    assert all(0 <= span.start < span.end <= len(program) for one in report.errors if (span := one.span(Text(program))))


@pytest.mark.parametrize(
    ("language", "program"),
    [
        ("c", "#warning out of memory\nint main(void) { return 0; }\n"),
        ("csharp", "#warning Cannot allocate memory\nclass A { }\n"),
    ],
)
def test_a_warning_may_speak_of_memory(compilers: Compilers, language: str, program: str) -> None:
    needs(language)
    report = compilers.check(language, program)
    assert report is not None
    assert report.status == "ok"


# --- verdicts that are dodged: ``infra`` is masked, so no program may cause it ----------------------------------------


@pytest.mark.parametrize(
    "interpreter",
    ['const char i[3] __attribute__((section(".interp"))) = "abc";', 'asm(".section .interp; .fill 5000");'],
)
def test_a_program_that_is_no_executable_is_at_fault(compilers: Compilers, interpreter: str) -> None:
    needs("c")
    program = f"{interpreter}\nint main(void) {{ return 0; }}\n"
    result = Programs(compilers).run(ProgramJob("c", program, (IOTest("", ""),)))
    assert result is not None
    assert result.status == "killed"
    assert not result.per_test[0].passed


def test_no_name_of_a_class_is_beyond_us(compilers: Compilers) -> None:
    needs("java")
    names = ["A" * 250, "É", "Ⅷ𝔸"]
    program = "".join(f"class {name} {{ static int one = 1; }}\n" for name in names)
    program += (
        f"class Solution {{ static int f(int x) {{ return x + {' * '.join(f'{name}.one' for name in names)}; }} }}"
    )
    runner = Programs(compilers, Limits(cpu_s=20.0, wall_s=300.0))
    result = runner.run(ProgramJob("java", program, (CallTest((1,), 2), CallTest((2,), 5)), "f"))
    assert result is not None
    assert [one.status for one in result.per_test] == ["passed", "failed"], result


def test_a_class_that_no_archive_can_hold_is_left_out() -> None:
    from base64 import b64encode
    from io import BytesIO
    from zipfile import ZipFile

    from lightning_dterm.sandbox.languages.java import _archive

    data = b64encode(b"x").decode()
    archive = _archive({"a.B$C": data, "É" * 40_000: data, "D" * 65_529: data, "D" * 65_530: data})
    assert ZipFile(BytesIO(archive)).namelist() == ["a/B$C.class", "D" * 65_529 + ".class"]


SERVER = """
const fs = require('fs');
const read = (n) => { const b = Buffer.alloc(n); for (let at = 0; at < n;) {
  const k = fs.readSync(0, b, at, n - at, null); if (!k) process.exit(0); at += k; } return b; };
for (;;) {
  const body = read(read(4).readUInt32BE(0)), head = Buffer.alloc(4);
  if (String(body) === 'die') process.exit(1);
  head.writeUInt32BE(body.length, 0);
  fs.writeSync(1, Buffer.concat([head, body]));
  if (String(body) === 'last') process.exit(0);
}
"""


def message(text: str) -> bytes:
    return LENGTH.pack(len(text)) + text.encode()


def service(canary: str = "good") -> Service:
    from lightning_dterm.sandbox.languages.script import NodeCompiler

    needs("javascript")
    backend = NodeCompiler()
    command = Command(
        backend.path or "", (backend.path or "", "server.js"), {}, files={"server.js": SERVER.encode()}, cpu_s=1000.0,
        wall_s=1000.0, descriptors=256,
    )  # fmt: skip
    return Service(command, backend.rules(), canary=(message(canary), lambda answer: answer == b"good"))


def test_nobody_pays_for_the_message_before() -> None:
    """Between a loss and its repetition another message could end the fresh process too: two losses, blamed."""
    made = service()
    try:
        assert made.request(message("last"), 60.0) == b"last"
        assert made.request(message("fine"), 60.0) == b"fine"
        assert made.starts == 2
        with pytest.raises(ServiceLost, match="ended"):
            made.request(message("die"), 60.0)
        assert made.starts == 3  # lost on the old process and on a fresh one
        assert made.request(message("fine"), 60.0) == b"fine"
    finally:
        made.close()


@pytest.mark.parametrize("canary", ["die", "bad"])
def test_a_service_that_fails_its_canary_judges_nobody(canary: str) -> None:
    made = service(canary)
    with pytest.raises(LauncherLost, match="good program"):
        made.request(message("fine"), 60.0)
    made.close()


def test_a_broken_jvm_is_no_program_s_fault() -> None:
    needs("java")

    class Broken(JavaCompiler):
        @property
        def _environment(self) -> dict[str, str]:
            return {**super()._environment, "JAVA_TOOL_OPTIONS": "-XX:NoSuchOption=1"}

    with Compilers(slots=1, backends=[Broken()]) as made:
        report = made.check("java", "class A { }")
    assert report is not None
    assert report.status == "infra"
    assert "good program" in report.reason


# --- levels -----------------------------------------------------------------------------------------------------------


def test_services_do_without_namespaces_where_they_are_not_wanted() -> None:
    needs("javascript")
    with Compilers(slots=1, namespaces=False) as made:
        assert made.check("javascript", "1") is not None
        (running,) = made._services.values()
        assert running._launcher is not None
        assert running._launcher.level == "kernel"


@pytest.mark.parametrize("language", ["c", "javascript"])
def test_compilers_keep_to_the_least_level_too(language: str) -> None:
    needs(language)
    box = Sandbox(slots=1, min_level="namespaces", namespaces=False)
    with Compilers(**compiler_options(box)) as made:
        with pytest.raises(LauncherUnavailable, match=r"mount.*min_level='kernel'") as caught:
            made.check(language, "")
        assert isinstance(caught.value, SandboxUnavailable)
    box.close()


def test_the_doctor_speaks_of_compilers(capsys: pytest.CaptureFixture[str]) -> None:
    lines = doctors_compilers()
    assert [line.split()[0] for line in lines[:-1]] == ["c", "cpp", "csharp", "go", "java", "javascript", "php"]
    assert "level namespaces" in lines[-1] or "level kernel" in lines[-1]
    with pytest.raises(SystemExit):
        doctor(["doctor", "--slots", "0"])
    assert "at least 1 is needed" in capsys.readouterr().err


# --- our time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", [False, True])
def test_a_compile_server_ends_at_once(kill: bool) -> None:
    needs("javascript")
    before, kept = set(children()), folders()
    with Compilers(slots=1) as made:
        assert made.check("javascript", "1") is not None
        (running,) = made._services.values()
        assert running._launcher is not None
        assert running._launcher._worker is not None
        if kill:
            for pid in children_of(running._launcher._worker.pid):
                os.kill(pid, 9)
        started = time.monotonic()
        running.close()
        assert time.monotonic() - started < 3.0
    assert set(children()) <= before
    assert folders() <= kept


def test_a_short_text_has_little_time() -> None:
    assert cpu_limit(0, 2.0) == 0.25
    assert cpu_limit(10_000, 2.0) == pytest.approx(0.65)
    assert cpu_limit(1 << 20, 2.0) == 2.0
    assert cpu_limit(10_000, 0.1) == 0.1
    process = ParserProcess()
    process.ask([(ERRORS, "java", b"class A { }")])
    process.close()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.ask([(ERRORS, "java", b"a=>" * 3_000)]) == [Beyond("timeout")]
    process.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_a_flood_of_members_is_refused_at_once() -> None:
    wanted = set(range(4_000))
    started = time.monotonic()
    assert not same_value(("set", list(range(40_000, -1, -1))), wanted, "cpp")
    assert time.monotonic() - started < 2.0
