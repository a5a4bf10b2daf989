"""Compilers that only parse: JavaScript by a persistent node, PHP, Go and C# where they are installed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import resources
from typing import ClassVar

from lightning_dterm.sandbox.languages.backend import Backend, Stage, Tools, first_line, gave_up, which
from lightning_dterm.sandbox.languages.diagnostics import (
    Diagnostic,
    Report,
    Severity,
    Text,
    distinct,
    moves_lines,
    parse_text,
)
from lightning_dterm.sandbox.languages.launcher import LENGTH
from lightning_dterm.sandbox.languages.process import Command
from lightning_dterm.sandbox.languages.service import Service, ServiceLost
from lightning_dterm.sandbox.result import Limits

_CANARY = LENGTH.pack(17) + b"const canary = 1;"
_NODE_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "OPENSSL_CONF": "/dev/null"}


class NodeCompiler(Backend):
    """JavaScript by V8: CommonJS first, as a module where the program says it is one. V8 reports one error."""

    languages = ("javascript",)
    package = "nodejs"
    runs = True

    @cached_property
    def path(self) -> str | None:
        """node, links resolved."""
        found = which("node", "nodejs")
        return os.path.realpath(found) if found else None

    @cached_property
    def version(self) -> str:
        """``node 20.20.2``."""
        return f"node {first_line(self.path or '', '--version').lstrip('v')}"

    def rules(self) -> Sequence[tuple[str, str]]:
        """node itself."""
        return [(self.path or "", "x")]

    def check(self, language: str, source: str, stage: Stage, tools: Tools) -> Report:
        """Parse; JavaScript has no further stage."""
        service = tools.service("node", self._service)
        body = source.encode("utf-8", "replace")
        try:
            answer = json.loads(service.request(LENGTH.pack(len(body)) + body, tools.limits.wall_s))
        except ValueError:
            return Report("javascript", self.version, "crash", reason="node: malformed answer")
        except ServiceLost as lost:
            if lost.ended is not None and b"heap out of memory" in lost.ended.stderr:
                return Report("javascript", self.version, "memory", reason="node ran out of memory")
            return Report("javascript", self.version, "timeout" if lost.timed_out else "crash", reason=f"node: {lost}")
        return self._report(source, answer.get("error"))

    def build(self, language: str, source: str, tools: Tools) -> Report:
        """Check; the artifact is the source itself."""
        report = self.check(language, source, "full", tools)
        artifact = source.encode("utf-8", "replace") if report.status == "ok" else None
        return replace(report, artifact=artifact)

    def command(self, artifact: bytes, stdin: bytes, limits: Limits) -> Command:
        """node with a bounded heap; worker threads and inspector have nothing to talk to."""
        node = self.path or ""
        module = re.search(rb"^\s*(import\b[^(.]|export\b)", artifact, re.MULTILINE) is not None
        name = "main.mjs" if module else "main.js"
        return Command(
            node, (node, f"--max-old-space-size={limits.memory_mb}", "--stack-size=3900", "--no-warnings", name),
            _NODE_ENVIRONMENT, "program", {name: artifact}, stdin, cpu_s=limits.cpu_s, wall_s=limits.wall_s,
            data_mb=limits.memory_mb + 512, file_kb=limits.output_kb, stdout_kb=limits.output_kb,
            stderr_kb=limits.output_kb, stack_mb=8, descriptors=256,
        )  # fmt: skip

    def _service(self) -> Service:
        node = self.path or ""
        source = resources.files("lightning_dterm").joinpath("assets/languages/node_server.js").read_bytes()
        arguments = (node, "--max-old-space-size=256", "--no-warnings", "--experimental-vm-modules", "server.js")
        command = Command(
            node, arguments, _NODE_ENVIRONMENT, files={"server.js": source}, cpu_s=86_400.0, wall_s=1e9, data_mb=1024,
            file_kb=1, descriptors=256,
        )  # fmt: skip
        return Service(command, self.rules(), canary=(_CANARY, lambda answer: json.loads(answer)["error"] is None))

    def _report(self, source: str, error: dict[str, object] | None) -> Report:
        if error is None:
            return Report("javascript", self.version, "ok")
        message = f"{error.get('kind')}: {error.get('message')}"[:400]
        line, column, width = error.get("line"), error.get("column"), error.get("width")
        text = Text(source)
        if isinstance(line, int) and isinstance(column, int) and isinstance(width, int):
            start, end = text.from_utf16(line, column), text.from_utf16(line, column + width)
            if start is not None and end is not None:
                found = Diagnostic("error", message, line, start, line, max(end, start + 1))
                return Report("javascript", self.version, "errors", (found,))
        return Report("javascript", self.version, "errors", (Diagnostic("error", message),))


class _OneShot(Backend):
    """A parser that is started for each program."""

    suffix: str = ""
    own_proc: bool = False
    arguments: tuple[str, ...] = ()

    def rules(self) -> Sequence[tuple[str, str]]:
        """The tool and its libraries."""
        path = self.path or ""
        return [
            ("/usr/bin", "x"),
            ("/etc/mono", "r"),
            ("/etc/php", "r"),
            (os.path.dirname(os.path.realpath(path)), "x"),
        ]

    def check(self, language: str, source: str, stage: Stage, tools: Tools) -> Report:
        """Parse."""
        return self.compile(language, source, tools)

    def compile(self, language: str, source: str, tools: Tools, before: str = "", after: str = "") -> Report:
        """Start the tool on the source, with something on the first line before it and something behind it."""
        name = f"main{self.suffix}"
        path, limits = self.path or "", tools.limits
        command = Command(
            path, (path, *self.arguments, name), {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "{work}"},
            "tools", {name: (before + source + after).encode("utf-8", "replace")}, cpu_s=limits.cpu_s,
            wall_s=limits.wall_s, data_mb=limits.memory_mb, file_kb=limits.artifact_kb, stdout_kb=limits.output_kb,
            stderr_kb=limits.output_kb, descriptors=256, own_proc=self.own_proc,
        )  # fmt: skip
        ended = tools.run(command)
        trouble = gave_up(ended, limits)
        words = (ended.stderr + b"\n" + ended.stdout).decode("utf-8", "replace")
        found, moved = self.parse(words, Text(source), name), moves_lines(language, source)
        if trouble is not None:
            said = distinct(found, moved=moved)
            return Report(language, self.version, trouble[0], said, ended.cpu_s, reason=trouble[1])
        if ended.code == 0:
            return Report(language, self.version, "ok", distinct(found, moved=moved), ended.cpu_s)
        if not any(one.severity == "error" for one in found):
            found.append(Diagnostic("error", words.strip()[-400:] or f"{path} exited with {ended.code}"))
        return Report(language, self.version, "errors", distinct(found, moved=moved), ended.cpu_s)

    def parse(self, words: str, text: Text, name: str) -> list[Diagnostic]:
        """Diagnostics from the tool's output."""
        return parse_text(words, text, name)


class GoCompiler(_OneShot):
    """Go by ``gofmt -e``: all syntax errors; types and imports are not looked at."""

    languages, package, suffix = ("go",), "golang-go", ".go"
    canaries: ClassVar[Mapping[str, str]] = {"go": "package main\n\nfunc main() {}\n"}
    arguments: tuple[str, ...] = ("-e", "-l")

    @cached_property
    def path(self) -> str | None:
        """gofmt."""
        return which("gofmt")

    @cached_property
    def version(self) -> str:
        """``gofmt (parse)`` with Go's version where ``go`` tells it."""
        go = which("go")
        found = re.search(r"go(\d[\w.]*)", first_line(go, "version")) if go else None
        return f"gofmt {found[1]} (parse)" if found else "gofmt (parse)"

    def parse(self, words: str, text: Text, name: str) -> list[Diagnostic]:
        """All syntax errors but those at the end of the file that follow from an earlier one, as nearly always."""
        if moves_lines(
            "go", text.source
        ):  # the program names the files: an error is any line but gofmt's list of files
            lines = [line for line in words.splitlines() if line.strip() and line != name]
            found = [Diagnostic("error", line[:400]) for line in lines]
        else:
            found = parse_text(words, text, name)
        return [one for place, one in enumerate(found) if place == 0 or not one.message.endswith("found 'EOF'")]


class PhpCompiler(_OneShot):
    """PHP by ``php -l``, which reports one error and no column."""

    languages, package, suffix = ("php",), "php-cli", ".php"
    arguments: tuple[str, ...] = ("-n", "-d", "display_errors=stderr", "-d", "log_errors=0", "-l")
    canaries: ClassVar[Mapping[str, str]] = {"php": "<?php echo 1;\n"}
    _PATTERN = re.compile(r"(Parse|Fatal) error:\s*(.*) in main\.php on line (\d+)", re.DOTALL)  # it quotes the program

    @cached_property
    def path(self) -> str | None:
        """The command-line interpreter, links resolved."""
        found = which("php")
        return os.path.realpath(found) if found else None

    @cached_property
    def version(self) -> str:
        """``php 8.2.7 (parse)``."""
        found = re.search(r"PHP (\S+)", first_line(self.path or "", "-v"))
        return f"php {found[1] if found else ''} (parse)"

    def check(self, language: str, source: str, stage: Stage, tools: Tools) -> Report:
        """Parse; code without PHP's tags, and a lone method, as a program that has them (PHP prints what has none)."""
        if source.lstrip().startswith(("<", "#!")):
            return self.compile(language, source, tools)
        bare = self.compile(language, source, tools, "<?php ")
        if bare.status != "errors" or re.search(r"\b(class|interface|enum|trait)\s+\w", source):
            return bare
        method = self.compile(language, source, tools, "<?php class A { ", "\n}")
        return method if method.status == "ok" else bare

    def parse(self, words: str, text: Text, name: str) -> list[Diagnostic]:
        """``PHP Parse error: message in file on line N``: the whole line is blamed."""
        found = self._PATTERN.search(words)
        return [_whole_line(f"{found[1]} error: {found[2]}", int(found[3]), text)] if found else []


class CSharpCompiler(_OneShot):
    """C# by mono's ``mcs``: ``--parse`` for syntax alone, a whole compilation to a library otherwise."""

    languages, package, suffix = ("csharp",), "mono-mcs", ".cs"
    canaries: ClassVar[Mapping[str, str]] = {"csharp": "class A { int F() { return 1; } }\n"}
    own_proc = True  # mono looks for its stack in /proc/self/maps
    arguments: tuple[str, ...] = ("-target:library", "-out:program.dll", "-nologo")
    _PATTERN = re.compile(r"^(?:.*?\((\d+),(\d+)(?:,\d+,\d+)?\): )?(error|warning) (CS\d+: .*)$", re.MULTILINE)
    _TOTAL = re.compile(r"^Compilation failed: (\d+) error", re.MULTILINE)

    @cached_property
    def path(self) -> str | None:
        """mcs."""
        return which("mcs")

    @cached_property
    def version(self) -> str:
        """``mcs 6.8.0.105``."""
        found = re.search(r"(\d[\d.]*)", first_line(self.path or "", "--version"))
        return f"mcs {found[1] if found else ''}"

    def check(self, language: str, source: str, stage: Stage, tools: Tools) -> Report:
        """Parse (of a lone method the smaller of its errors bare and inside a class), or compile."""
        if stage == "full":
            return super().check(language, source, stage, tools)
        parser = _CSharpParser()
        bare = parser.compile(language, source, tools)
        if bare.status != "errors" or re.search(r"\b(class|struct|interface|enum|record)\s+\w", source):
            return bare
        head = "class A {\n"
        wrapped = parser.compile(language, head + source + "\n}", tools)
        if wrapped.status != "ok" and len(wrapped.errors) > len(bare.errors):
            return bare
        moved = tuple(_moved_up(found, Text(source)) for found in wrapped.diagnostics)
        return Report(language, wrapped.compiler, wrapped.status, moved, wrapped.cpu_s, reason=wrapped.reason)

    def parse(self, words: str, text: Text, name: str) -> list[Diagnostic]:
        """``file(line,column): error CS1002: message``; a file name may imitate that, the total at the end cannot."""
        found = []
        for line, column, kind, message in self._PATTERN.findall(words):
            severity: Severity = "error" if kind == "error" else "warning"
            start = text.from_utf16(int(line), int(column)) if line else None
            if start is None:
                found.append(Diagnostic(severity, message[:400]))
            else:
                found.append(Diagnostic(severity, message[:400], int(line), start, int(line), start + 1))
        totals = self._TOTAL.findall(words)
        if totals and int(totals[-1]) != sum(one.severity == "error" for one in found):
            return [Diagnostic("error", f"error {n + 1} of {totals[-1]}") for n in range(min(int(totals[-1]), 200))]
        return found


class _CSharpParser(CSharpCompiler):
    arguments = ("--parse",)

    @cached_property
    def version(self) -> str:
        return f"{CSharpCompiler().version} (parse)"


def _whole_line(message: str, line: int, text: Text) -> Diagnostic:
    if not 1 <= line <= len(text.starts):
        return Diagnostic("error", message[:400])
    content = text.line(line)
    first = len(content) - len(content.lstrip()) + 1
    return Diagnostic("error", message[:400], line, first, line, max(first + 1, len(content.rstrip()) + 1))


def _moved_up(found: Diagnostic, text: Text) -> Diagnostic:
    """A diagnostic of a wrapped program, one line higher and kept inside the program."""
    if found.line is None or found.column is None:
        return found
    start = text.position(text.offset(max(found.line - 1, 1), found.column))
    return Diagnostic(found.severity, found.message, *start, start[0], start[1] + 1)
