"""The parser process: what it says is what tree-sitter says, and hostile text or a killed process harms nobody else."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import tree_sitter

from lightning_dterm.rewards.compile import CompileReward, parse_errors
from lightning_dterm.structure import ParseLimits, ParserProcess, shared_parser
from lightning_dterm.structure.process import BROKEN, ERRORS, REFUSED, TREE, Beyond, byte_ranges, language_of
from lightning_dterm.syntax import checker_for, treesitter
from lightning_dterm.types import Sample
from tests.rewards_common import make_task

PROGRAMS = {
    "java": ["class A { int f() { return 1; } }", "class A { int f( { return é; }", "int x = ☃ + ;\nint y"],
    "csharp": ["class A { int X { get; } }", "class A { int X { get } ]", "public int F(int x) { return x }"],
    "c": ["int f(int a) { return a; }", "int f(int a { return a; }", "for (;;"],
    "cpp": ["auto f = [&](int a) -> int { return a; };", "int f() { return 1 +; }", "class { ]"],
    "javascript": ["let a = `x${1}`", "function f( ) ) { }", "const = 3; '"],
}
HOSTILE = [
    ("java", "a=>" * 5_300), ("c", "a=>" * 5_300), ("java", "a<" * 50_000), ("csharp", "a<" * 50_000)
]  # fmt: skip


def outermost(node: tree_sitter.Node) -> list[tuple[int, int]]:
    if node.is_error or node.is_missing:
        return [node.byte_range]
    return [place for child in node.children for place in outermost(child)]


@pytest.mark.parametrize("language", PROGRAMS)
def test_errors_are_those_of_tree_sitter_itself(language: str) -> None:
    process = ParserProcess()
    sources = [text.encode() for text in PROGRAMS[language]]
    errors = process.ask([(ERRORS, language, source) for source in sources])
    broken = process.ask([(BROKEN, language, source) for source in sources])
    process.close()
    assert not process.beyond
    for source, places, flag in zip(sources, errors, broken, strict=True):
        root = tree_sitter.Parser(language_of(language)).parse(source).root_node
        assert isinstance(places, bytes)
        assert byte_ranges(places) == outermost(root)
        assert flag == bytes([root.has_error])
    assert broken[0] == b"\0"
    assert errors[1] != b""


@pytest.fixture
def small() -> ParserProcess:
    return ParserProcess(ParseLimits(cpu_s=0.3, memory=300 << 20))


@pytest.mark.parametrize(("language", "text"), HOSTILE)
@pytest.mark.parametrize("task", [TREE, ERRORS, BROKEN])
def test_hostile_text_is_named_and_its_neighbours_are_answered(
    small: ParserProcess, task: int, language: str, text: str
) -> None:
    fine = (ERRORS, "c", b"int f( {")
    first, bad, last = small.ask([fine, (task, language, text.encode()), fine])
    assert first == last
    assert isinstance(bad, Beyond)
    assert bad.reason in ("timeout", "crash")
    assert small.beyond == {bad.reason: 1}
    small.close()


def test_the_watched_parse_has_the_same_limits(small: ParserProcess) -> None:
    fine = (REFUSED, "c", b"int x = ;")
    first, bad, last = small.ask([fine, (REFUSED, "csharp", b"a<" * 50_000), fine])
    assert isinstance(first, bytes)
    assert byte_ranges(first) == [(8, 9)]
    assert first == last
    assert isinstance(bad, Beyond)
    small.close()


def test_too_long_is_not_tried() -> None:
    process = ParserProcess(ParseLimits(max_bytes=10))
    assert process.ask([(BROKEN, "c", b"int a; int b;"), (BROKEN, "c", b"int a;")]) == [Beyond("length"), b"\0"]
    assert (process.restarts, process.beyond) == (0, {"length": 1})
    process.close()


def test_a_killed_process_is_no_text_s_fault() -> None:
    process = ParserProcess()
    request = (ERRORS, "java", b"class A { int f( }")
    (before,) = process.ask([request])
    assert process._process is not None
    os.kill(process._process.pid, signal.SIGKILL)
    assert process.ask([request, request]) == [before, before]
    replies = process.stream([request] * 3)
    assert next(replies) == before
    os.kill(process._process.pid, signal.SIGKILL)
    assert list(replies) == [before, before]
    assert not process.beyond
    copy = pickle.loads(pickle.dumps(process))
    assert copy._process is None
    assert copy.ask([request]) == [before]
    worker = process._process
    process.close()
    copy.close()
    assert worker.returncode is not None


def test_replies_that_were_given_before_the_process_died_count() -> None:
    """The reader is slow: when it comes to send more, the process has long died of a later text."""
    process = ParserProcess(ParseLimits(cpu_s=0.3))
    language, text = HOSTILE[0]
    fine = (ERRORS, "c", b"int f( {" + b" " * 200)
    replies = process.stream([fine] * 170 + [(ERRORS, language, text.encode())] + [fine] * 200)
    first = next(replies)
    assert process._process is not None
    assert process._process.wait(60) == -signal.SIGPROF
    rest = list(replies)
    process.close()
    assert [(index, reply) for index, reply in enumerate(rest, 1) if reply != first] == [(170, Beyond("timeout"))]


def test_a_stopped_process_meets_the_wall_clock_limit() -> None:
    process = ParserProcess(ParseLimits(wall_s=3))
    request = (BROKEN, "c", b"int a;")
    process.ask([request])
    assert process._process is not None
    os.kill(process._process.pid, signal.SIGSTOP)
    assert process.ask([request, request]) == [Beyond("timeout"), b"\0"]
    process.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_it_ends_with_its_parent_though_a_fork_holds_the_pipes() -> None:
    """The parent is killed while its fork, which has the same descriptors, lives on."""
    program = (
        "import os, time, signal\n"
        "from lightning_dterm.structure import ParserProcess\n"
        "p = ParserProcess(); p.ask([(2, 'c', b'int a;')])\n"
        "child = os.fork()\n"
        "if child == 0: time.sleep(30); os._exit(0)\n"
        "print(p._process.pid, child, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        worker, fork = map(int, started.stdout.readline().split())
        try:
            deadline = time.monotonic() + 15
            while _lives(worker) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not _lives(worker)
            assert _lives(fork)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(fork, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_hostile_programs_are_errors_for_rewards_and_metrics() -> None:
    language, text = HOSTILE[3]
    before = sum(shared_parser().process.beyond.values())
    checker = checker_for(language)
    verdict, fine = checker.check_many([text[:30_000], "class A { }"])
    assert (verdict.kind, verdict.position, verdict.span) == ("error", 30_000, (0, 30_000))
    assert "beyond the parser's limits" in verdict.message
    assert fine.kind == "ok"
    assert not checker.viable(text[:30_000])
    assert not checker.complete(text[:30_000])
    (span,) = parse_errors(text[:30_000], language)
    assert (span.start, span.end) == (0, 30_000)
    reward = CompileReward(lam=0.5, max_errors=4)
    reward.compilers.backends["csharp"].__dict__["path"] = None
    code = text[:30_000]
    sample = Sample(make_task(language="csharp"), code, ((0, len(code)),))
    (result,) = reward.score([sample])
    assert result.details["errors"] == 4
    assert result.details["status"] in ("timeout", "crash")
    assert sum(shared_parser().process.beyond.values()) > before
    reward.close()


@pytest.mark.parametrize("language", PROGRAMS)
def test_a_batch_is_judged_like_its_programs(language: str) -> None:
    checker, programs = checker_for(language), PROGRAMS[language] + PROGRAMS[language][:1]
    treesitter._answers.clear()
    alone = [checker.check(program) for program in programs]
    treesitter._answers.clear()
    assert checker.check_many(programs) == alone
