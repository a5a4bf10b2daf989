"""Compile feedback: known errors at known places in every language, limits, hostile sources, nothing left behind."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lightning_dterm.sandbox.languages import CompileLimits, Compilers, Text, canonical
from lightning_dterm.sandbox.languages.gcc import CCompiler
from tests.languages_common import children, descriptors, folders, needs, own_temporary_folder, work_files

__all__ = ["own_temporary_folder"]

LIMITS = CompileLimits(cpu_s=1.5, wall_s=900.0)


@pytest.fixture(scope="module")
def compilers(own_temporary_folder: None) -> Iterator[Compilers]:
    fds = descriptors()
    with Compilers(slots=1, limits=LIMITS) as found:
        yield found
    assert children() == []
    assert folders() == set()
    assert descriptors() <= fds


GOOD = [
    ("c", '#include <stdio.h>\nint main(void) { puts("hi"); return 0; }\n'),
    ("cpp", '#include <cstdio>\nint main() { std::puts("hi"); }\n'),
    ("java", "public class Hello { public static void main(String[] a) { System.out.println(1); } }\n"),
    ("javascript", "const f = x => x * 2;\nconsole.log(f(2));\n"),
    ("javascript", "import fs from 'fs';\nexport const x = await fs.promises;\n"),
    ("python", "def f(x):\n    return x\n"),
    ("go", "package main\n\nfunc main() {}\n"),
    ("php", "<?php echo 1;\n"),
    ("csharp", "class A { int F() { return 1; } }\n"),
]

# Language, program, and of each error: its line, its column, and what it covers.
BAD = [
    ("c", "int main(void) {\n  int x = ;\n  return y;\n}\n", [(2, 11, ";"), (3, 10, "y")]),
    ("c", 'int main(void) {\n  /* é😀 */ int ü = "a" + ;\n  return 0;\n}\n', [(2, 26, ";")]),
    ("cpp", "struct A { int b; };\nint main() {\n  A a;\n  return a.missing;\n}\n", [(4, 12, "missing")]),
    ("cpp", "template <class T> int f(T t) { return t.size(); }\nint main() { return f(1); }\n", [(1, 40, "t.size")]),
    ("java", "class A {\n  int f() { return g(); }\n  String s = 1;\n}\n", [(2, 20, "g"), (3, 14, "1")]),
    ("java", 'class A {\n  // é😀\n  String s = "😀é" + x;\n}\n', [(3, 21, "x")]),
    ("java", "class A {\n  int f() { return 1 }\n}\n", [(2, 21, " ")]),
    ("javascript", "let a = 1;\nfunction f(x { return x }\n", [(2, 14, "{")]),
    ("javascript", "/* 😀 */ let s = 'é😀'; let y = = 2;\n", [(1, 31, "=")]),
    ("python", "x = 1\ny = = 2\nz = 3\nw = = 4\n", [(2, 5, "="), (4, 5, "=")]),
    ("go", "package main\n\nfunc main() {\n\tx := := 1\n}\n", [(4, 7, ":")]),
    ("go", "package main\n\nfunc main() {\n\t/* é😀 */ x = y z\n}\n", [(4, 17, "z")]),
    ("php", "<?php\n$x = ;\n", [(2, 1, "$x = ;")]),
    ("php", "<?php\nfunction f() {}\nfunction f() {}\n", [(3, 1, "function f() {}")]),
    ("csharp", "class A {\n  int F() { return x; }\n}\n", [(2, 20, "x")]),
    (
        "csharp",
        "class A {\n  /* é😀 */ int F() { return x; }\n  int G() { return y; }\n}\n",
        [(2, 29, "x"), (3, 20, "y")],
    ),
    # Who moves the lines blames none, however well it is meant.
    ("c", '#line 1 "main.c"\n\nint x = ;\n', [(None, None, "")]),
    ("c", "int y;\n%:  2\nint x = ;\n", [(None, None, "")]),
    ("c", "#li\\\nne 1\nint x = ;\n", [(None, None, "")]),
    ("c", "/* a */ # /* b */ line 1\nint x = ;\n", [(None, None, "")]),
    ("c", '// Problem #1: # 1\nchar *s = "#line 1";\nint x = ;\n', [(3, 9, ";")]),
    ("go", "package main\n//line main.go:2\nfunc main() {\n\tx = y z\n}\n", [(None, None, "")]),
    ("csharp", "#line 2\nclass A { int F() { return x; } }\n", [(None, None, "")]),
]


@pytest.mark.parametrize(("language", "program"), GOOD)
def test_good_programs_compile(compilers: Compilers, language: str, program: str) -> None:
    needs(language)
    report = compilers.check(language, program)
    assert report is not None
    assert (report.status, report.errors) == ("ok", ())
    assert report.count(10) == 0


@pytest.mark.parametrize(("language", "program", "errors"), BAD)
def test_errors_are_found_where_they_are(
    compilers: Compilers, language: str, program: str, errors: list[tuple[Any, Any, str]]
) -> None:
    needs(language)
    report = compilers.check(language, program)
    assert report is not None
    assert report.status == "errors"
    text = Text(program)
    found = []
    for one in report.errors:
        span = one.span(text)
        assert (span is None) == (one.line is None)
        covered = program[span.start : span.end] if span else ""
        found.append((one.line, one.column, covered))
    assert [place[:2] for place in found] == [place[:2] for place in errors]
    for (_, _, covered), (_, _, start) in zip(found, errors, strict=True):
        assert covered.startswith(start)
    assert report.count(10) == len(errors)
    assert report.count(1) == 1


@pytest.mark.parametrize(
    ("language", "program"),
    [
        ("c", "int main(void) { int unused; char *p = 5; return missing(); }\n"),
        ("cpp", "#warning careful\nint main() { int x; }\n"),
        (
            "java",
            "class A { Integer f() { return new Integer(5); } }\n",
        ),
    ],
)
def test_warnings_are_no_errors(compilers: Compilers, language: str, program: str) -> None:
    needs(language)
    report = compilers.check(language, program)
    assert report is not None
    assert report.status == "ok"
    assert report.errors == ()
    assert report.count(5) == 0
    assert report.diagnostics, "the compiler was expected to say something"


CLANG = [
    ("c", "int x;\n", []),
    ("c", "int main(void) {\n  int x = ;\n  return y;\n}\n", [(2, 11, ";"), (3, 10, "y")]),
    ("c", 'int main(void) {\n  /* é😀 */ int ü = "a" + ;\n  return 0;\n}\n', [(2, 26, ";")]),
    ("cpp", "struct A { int b; };\nint main() {\n  A a;\n  return a.missing;\n}\n", [(4, 12, "m")]),
    ("cpp", 'static_assert(false, "a\\nmain.cpp:1:1: error: forged");\n', [(1, 1, "static_assert")]),
    ("c", '#line 1 "main.c"\n\nint x = ;\n', [(None, None, "")]),
]


@pytest.mark.parametrize(("language", "program", "errors"), CLANG)
def test_clang(own_temporary_folder: None, language: str, program: str, errors: list[tuple[Any, Any, str]]) -> None:
    if shutil.which("clang") is None or shutil.which("clang++") is None:
        pytest.skip("clang is not installed")
    with Compilers(slots=1, limits=LIMITS, backends=[CCompiler("clang")]) as clang:
        report = clang.check(language, program)
        assert report is not None
        assert report.compiler.startswith("clang ")
        assert report.status == ("errors" if errors else "ok"), report
        text, found = Text(program), []
        for one in report.errors:
            span = one.span(text)
            found.append((one.line, one.column, program[span.start : span.end] if span else ""))
        assert [place[:2] for place in found] == [place[:2] for place in errors]
        assert all(covered[:1] == start[:1] for (_, _, covered), (_, _, start) in zip(found, errors, strict=True))
        built = clang.build("c", "int main(void) { return 0; }\n")
        assert built is not None
        assert built.artifact is not None


def test_an_assembler_cannot_move_lines_either(compilers: Compilers) -> None:
    needs("c")
    program = '__asm__("\\n# 1 \\"main.c\\"\\n bogus_instruction");\nint main(void) { return 0; }\n'
    report = compilers.build("c", program)
    assert report is not None
    assert report.status == "errors"
    assert [one.line for one in report.errors if "bogus" in one.message] == [None]


def test_a_lone_c_sharp_method_is_parsed_inside_a_class(compilers: Compilers) -> None:
    needs("csharp")
    assert compilers.check("csharp", "int F() { return 1; }", "parse").status == "ok"  # type: ignore[union-attr]
    report = compilers.check("csharp", "int F() { return 1 }", "parse")
    assert report is not None
    assert [(one.line, one.column) for one in report.errors] == [(1, 19)]  # as mcs counts


def test_a_flood_of_warnings_is_no_error(compilers: Compilers) -> None:
    needs("c")
    program = "int main(void) {\n" + "char *p%d = 5;\n" * 6000 % tuple(range(6000)) + "return 0; }\n"
    report = compilers.check("c", program)
    assert report is not None
    assert (report.status, report.count(10)) == ("ok", 0)


def test_cascades_are_capped(compilers: Compilers) -> None:
    needs("c")
    report = compilers.check("c", "int main(void) {\n" + "".join(f"x{i} = {i};\n" for i in range(300)) + "}\n")
    assert report is not None
    assert len(report.errors) > 50
    assert [report.count(cap) for cap in (1, 7, 10)] == [1, 7, 10]


def test_a_lone_java_method_is_parsed_inside_a_class(compilers: Compilers) -> None:
    needs("java")
    good = "int f(int x) { return helper.g(x); }"
    assert compilers.check("java", good, "parse").status == "ok"  # type: ignore[union-attr]
    assert compilers.check("java", good, "full").status == "errors"  # type: ignore[union-attr]
    bad = "int f(int x) { return helper.g(x) }"
    report = compilers.check("java", bad, "parse")
    assert report is not None
    assert "(parse)" in report.compiler
    assert [(one.line, one.column) for one in report.errors] == [(1, bad.index(" }") + 1)]


def test_an_error_in_a_header_has_no_place(compilers: Compilers) -> None:
    needs("cpp")
    program = "#include <memory>\nstruct A { A(int); };\nint main() {\n  auto p = std::make_unique<A>();\n}\n"
    report = compilers.check("cpp", program)
    assert report is not None
    assert report.status == "errors"
    assert [one.span(Text(program)) for one in report.errors] == [None]
    assert report.count(10) == 1


GAVE_UP = {"crash", "timeout", "memory"}
HOSTILE = [
    ("c", '#include "/dev/zero"\n', {"errors"}),
    ("c", '#include "/dev/urandom"\n', {"errors"}),
    ("c", '#include "/dev/stdin"\n', {"ok", "errors"}),  # a file tree of its own has none
    ("c", '#include "/etc/passwd"\n', {"errors"}),
    ("c", '#include "/proc/self/environ"\n', {"errors"}),
    ("c", '#include "/proc/1/cmdline"\n', {"errors"}),
    ("c", "#include __FILE__\n", {"errors"}),
    ("c", '#line 1 "/etc/passwd"\nint main(void) { int x = ; }\n', {"errors"}),
    ("c", '# 1 "/etc/passwd" 1 3 4\nint main(void) { int x = ; }\n', {"errors"}),
    ("c", '#pragma GCC plugin("/tmp/evil.so")\nint main(void) { return 0; }\n', {"ok"}),
    ("c", "#pragma GCC poison main\nint main(void) { return 0; }\n", {"errors"}),
    ("c", "#pragma GCC system_header\nint main(void) { int x = ; }\n", {"errors"}),
    ("c", '#pragma GCC diagnostic ignored "-Wall"\n#pragma GCC push_options\nint x = y;\n', {"errors"}),
    # Bombs and floods.
    ("c", "#define A(x) x x x x x x x x x x\n#define B(x) A(A(A(A(A(A(x))))))\nint main(void) { B(B(;)) }\n", GAVE_UP),
    ("c", "int main(void) { return " + "(" * 100_000 + "1" + ")" * 100_000 + "; }", GAVE_UP | {"errors"}),
    ("c", "int main(void) { " + "{" * 100_000 + "}" * 100_000 + " }", {"crash", "timeout", "ok"}),
    ("c", "#error " + "A" * 3_000_000 + "\n", {"errors", "output"}),
    ("c", "\0\0\0\0", {"ok", "errors"}),
    ("cpp", "template <int N> struct F { typename F<N + 1>::t x; using t = int; };\nF<0> f;\n", {"errors"}),
    ("cpp", "template <int N, int M> struct F { static const int v = F<N-1,M>::v + F<N-1,M+1>::v; };\n"
            "template <int M> struct F<0, M> { static const int v = 1; };\nint x = F<800, 0>::v;\n", GAVE_UP),
    ("cpp", "constexpr long f(long n) { long s = 0; for (long i = 0; i < n; i++) s += i; return s; }\n"
            "static_assert(f(10000000000) > 0);\n", {"errors", "timeout"}),
    ("java", "class A { int f = " + "(" * 50_000 + "1" + ")" * 50_000 + "; }", {"ok", "crash", "timeout"}),
    ("java", "class A { int f = " + "1+" * 200_000 + "1; }", {"ok", "crash", "timeout", "memory", "errors"}),
    ("java", "@javax.annotation.processing.SupportedAnnotationTypes(\"*\") class P extends "
             "javax.annotation.processing.AbstractProcessor { static { System.exit(3); } public boolean process("
             "java.util.Set<? extends javax.lang.model.element.TypeElement> s, "
             "javax.annotation.processing.RoundEnvironment r) { System.exit(3); return true; } }", {"ok"}),
    ("javascript", "(" * 200_000 + "1" + ")" * 200_000, {"errors", "crash"}),
    ("javascript", "//# sourceURL=/etc/passwd:77\nlet x = ;", {"errors"}),
    ("javascript", "process.exit(0); require('fs').writeFileSync('/tmp/x', 'y'); while (true);", {"ok"}),
    ("javascript", "import 'file:///etc/passwd';", {"ok"}),
]  # fmt: skip


@pytest.mark.parametrize(("language", "program", "statuses"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_sources_are_stopped_and_leave_nothing(
    compilers: Compilers, language: str, program: str, statuses: set[str]
) -> None:
    needs(language)
    started = time.monotonic()
    report = compilers.check(language, program)
    assert report is not None
    assert report.status in statuses, report
    assert time.monotonic() - started < LIMITS.wall_s
    assert "root:" not in str(report.diagnostics)
    assert work_files() == []
    if report.status not in ("ok", "errors"):
        assert report.count(10) == 10
    good = dict(GOOD)[language] + f"// {time.monotonic_ns()}\n"  # not from the cache
    assert compilers.check(language, good).status == "ok"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("program", "statuses"),
    [
        ('__asm__(".incbin \\"/etc/passwd\\"");\nint main(void) { return 0; }\n', {"errors"}),
        ('__asm__(".include \\"/etc/passwd\\"");\nint main(void) { return 0; }\n', {"errors"}),
        ('__asm__(".incbin \\"/dev/urandom\\"");\nint main(void) { return 0; }\n', {"errors"}),
        ('__asm__(".fill 2000000000");\nint main(void) { return 0; }\n', {"output", "memory", "timeout"}),
        ("char big[2000000000] = {1};\nint main(void) { return 0; }\n", {"output", "memory", "timeout"}),
        ("int missing(void);\nint main(void) { return missing(); }\n", {"errors"}),
    ],
)
def test_hostile_builds(compilers: Compilers, program: str, statuses: set[str]) -> None:
    needs("c")
    report = compilers.build("c", program)
    assert report is not None
    assert report.status in statuses, report
    assert report.artifact is None
    assert "root:" not in str(report.diagnostics)
    assert work_files() == []


def test_batches_keep_their_order_and_compile_equal_programs_once(compilers: Compilers) -> None:
    needs("c")
    compilers.cache.hits = compilers.cache.misses = 0
    mark = f"/* {time.monotonic_ns()} */"
    programs = [("c", mark + "int x = ;", "full"), ("cobol", "x", "full"), ("c", mark + "int x;", "full")]
    programs += programs[:1]
    reports = compilers.check_many(programs)  # type: ignore[arg-type]
    assert [None if one is None else one.status for one in reports] == ["errors", None, "ok", "errors"]
    assert (compilers.cache.hits, compilers.cache.misses) == (0, 2)
    assert compilers.check("c", mark + "int x = ;").cached  # type: ignore[union-attr]


def test_a_missing_compiler_is_named_once(compilers: Compilers, caplog: pytest.LogCaptureFixture) -> None:
    from lightning_dterm.sandbox.languages import compilers as module
    from lightning_dterm.sandbox.languages.script import GoCompiler

    backend = GoCompiler()
    backend.__dict__["path"] = None
    module._warned.discard("go")
    with Compilers(slots=1, backends=[backend]) as few, caplog.at_level("WARNING"):
        assert [few.check("golang", "package main") for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert "golang-go" in caplog.text


def test_names_of_languages() -> None:
    names = {"C++": "cpp", "c#": "csharp", "JS": "javascript", " Java ": "java", "golang": "go", "c": "c"}
    assert {name: canonical(name) for name in names} == names


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="slots"):
        Compilers(slots=0)
    with pytest.raises(ValueError, match="unknown fences"):
        Compilers(allow_missing=("sand",))
    with pytest.raises(ValueError, match=r"CompileLimits\.cpu_s"):
        CompileLimits(cpu_s=0)


def test_a_killed_compiler_is_replaced(compilers: Compilers) -> None:
    needs("javascript")
    assert compilers.check("javascript", f"1 // {time.monotonic_ns()}").status == "ok"  # type: ignore[union-attr]
    victims = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    if b"server.js" in file.read():
                        victims.append(int(name))
            except OSError:
                continue
    mine = [pid for pid in victims if _ancestor(pid, os.getpid())]
    assert mine
    for pid in mine:
        os.kill(pid, 9)
    assert compilers.check("javascript", f"2 // {time.monotonic_ns()}").status == "ok"  # type: ignore[union-attr]


def _ancestor(pid: int, wanted: int) -> bool:
    while pid > 1:
        if pid == wanted:
            return True
        with open(f"/proc/{pid}/stat", "rb") as file:
            pid = int(file.read().rpartition(b")")[2].split()[1])
    return False
