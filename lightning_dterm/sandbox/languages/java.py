"""Java by one persistent compiler process (javax.tools); programs run in a JVM of their own."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zipfile
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import resources

from lightning_dterm.sandbox.languages.backend import Backend, Stage, Tools, which
from lightning_dterm.sandbox.languages.diagnostics import (
    Diagnostic,
    Report,
    ReportStatus,
    Severity,
    Text,
    distinct,
    utf16_offset,
)
from lightning_dterm.sandbox.languages.process import Command
from lightning_dterm.sandbox.languages.service import Service, ServiceLost
from lightning_dterm.sandbox.result import Limits

_MODES = {"parse": 0, "full": 1, "build": 2}
_STATUSES: tuple[ReportStatus, ...] = ("ok", "crash", "timeout", "memory")
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_MAIN = "Main.java"
_WRAPPER = ("import java.util.*;\nclass A {\n", "\n}")
_JVM = (
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-XX:+DisableAttachMechanism",
)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, form: str = "!i") -> int:
        value: int = struct.unpack_from(form, self._data, self._at)[0]
        self._at += struct.calcsize(form)
        return value

    def bytes(self) -> bytes:
        size = self.number()
        if not 0 <= size <= len(self._data) - self._at:
            raise ServiceLost("malformed answer")
        self._at += size
        return self._data[self._at - size : self._at]

    def text(self) -> str:
        return self.bytes().decode("utf-8", "replace")


class JavaCompiler(Backend):
    """javac by way of ``javax.tools``, one JVM for all programs, annotation processors off.

    A program that is a lone method, as in CodeXGLUE, is parsed inside a class.

    Args:
        heap_mb: Heap of the compiler's JVM.
    """

    languages = ("java",)
    package = "default-jdk-headless"
    runs = True

    def __init__(self, heap_mb: int = 256) -> None:
        self.heap_mb = heap_mb

    @cached_property
    def path(self) -> str | None:
        """javac itself, links resolved; a JRE without it will not do."""
        found = which("javac")
        return os.path.realpath(found) if found else None

    @cached_property
    def _home(self) -> str:
        assert self.path is not None
        return os.path.dirname(os.path.dirname(self.path))

    @property
    def _environment(self) -> dict[str, str]:
        """Without /proc the loader cannot tell where java lies, and so not where its libraries are."""
        return {"LC_ALL": "C.UTF-8", "LD_LIBRARY_PATH": os.path.join(self._home, "lib")}

    @cached_property
    def version(self) -> str:
        """``javac 17.0.15``, from the JDK's own release file."""
        try:
            with open(os.path.join(self._home, "release"), encoding="utf-8") as file:
                found = re.search(r'JAVA_VERSION="([^"]+)"', file.read())
        except OSError:
            found = None
        return f"javac {found[1] if found else '(version unknown)'}"

    def rules(self) -> Sequence[tuple[str, str]]:
        """The JDK and its configuration."""
        rules = [(self._home, "x")]
        conf = os.path.join(self._home, "conf")
        folders = {os.path.dirname(os.path.realpath(path)) for path in _below(conf)}
        return [*rules, *((folder, "r") for folder in sorted(folders))]

    def check(self, language: str, source: str, stage: Stage, tools: Tools) -> Report:
        """Parse, or parse and analyse; of a lone method the smaller of its errors bare and inside a class."""
        return self._either(source, stage, tools)

    def _either(self, source: str, mode: str, tools: Tools) -> Report:
        bare = self._ask(source, mode, tools, ("", ""))
        if bare.status != "errors" or re.search(r"\b(class|interface|enum|record)\s+\w", source):
            return bare
        wrapped = self._ask(source, mode, tools, _WRAPPER)
        return wrapped if wrapped.status == "ok" or len(wrapped.errors) <= len(bare.errors) else bare

    def build(self, language: str, source: str, tools: Tools) -> Report:
        """Compile to class files."""
        return self._either(source, "build", tools)

    def command(self, artifact: bytes, stdin: bytes, limits: Limits) -> Command:
        """A JVM with the class that has a ``main``; its heap is half the memory limit, the rest is the JVM's own."""
        bundle = json.loads(artifact)
        java = os.path.join(self._home, "bin", "java")
        heap = f"-Xmx{max(32, limits.memory_mb // 2)}m"
        arguments = (java, heap, "-Xss64m", *_JVM, "-cp", "{work}/program.jar", bundle["main"])
        files = {"program.jar": _archive(bundle["classes"])}
        return Command(
            java, arguments, self._environment, "program", files, stdin, cpu_s=limits.cpu_s, wall_s=limits.wall_s,
            data_mb=limits.memory_mb + 512, file_kb=limits.output_kb, stdout_kb=limits.output_kb,
            stderr_kb=limits.output_kb, descriptors=256,
        )  # fmt: skip

    def _service(self) -> Service:
        java = os.path.join(self._home, "bin", "java")
        source = resources.files("lightning_dterm").joinpath("assets/languages/JavacServer.java").read_bytes()
        command = Command(
            java, (java, f"-Xmx{self.heap_mb}m", *_JVM, "JavacServer.java"), self._environment,
            files={"JavacServer.java": source}, cpu_s=86_400.0, wall_s=1e9, data_mb=self.heap_mb + 768, file_kb=1,
            descriptors=256,
        )  # fmt: skip
        return Service(
            command, self.rules(), canary=(_CANARY, lambda answer: _report("", "", answer, 0).status == "ok")
        )

    def _ask(self, source: str, mode: str, tools: Tools, around: tuple[str, str]) -> Report:
        """One program through the service; one that ends the service twice is to blame for it."""
        service = tools.service("javac", self._service)
        name = self.version + (" (parse)" if mode == "parse" else "")
        message = _message(_MODES[mode], tools.limits.cpu_s, around[0] + source + around[1])
        try:
            answer = service.request(message, tools.limits.wall_s)
            return _report(name, source, answer, len(around[0]))
        except ServiceLost as lost:
            return Report("java", name, "timeout" if lost.timed_out else "crash", reason=f"javac: {lost}")


def _archive(classes: Mapping[str, str]) -> bytes:
    """Class files in one archive: the program chooses their names, and could choose some that no file can have.

    Left out is what not even an archive can hold, so that nothing can load it.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in classes.items():
            path = f"{name.replace('.', '/')}.class"
            if len(path.encode("utf-8", "replace")) < 1 << 16:
                archive.writestr(zipfile.ZipInfo(path), b64decode(data))
    return buffer.getvalue()


def _below(folder: str) -> list[str]:
    return [os.path.join(path, name) for path, _, names in os.walk(folder, followlinks=True) for name in names]


def _message(mode: int, cpu_s: float, source: str) -> bytes:
    parts = [name.encode("utf-8", "replace") for name in (_MAIN, source)]
    head = struct.pack("!iii", mode, int(cpu_s * 1000), 1)
    return head + b"".join(struct.pack("!i", len(part)) + part for part in parts)


_CANARY = _message(1, 60.0, "class Canary { int f() { return 1; } }")
"""A fresh compiler must accept a good program; its slow start is not held against the first real one."""


def _report(name: str, source: str, answer: bytes, shift: int) -> Report:
    reader = _Reader(answer)
    status = _STATUSES[reader.number()]
    cpu_s = reader.number("!q") / 1e9
    reason = reader.text()
    text = Text(source)
    found = []
    for _ in range(reader.number()):
        severity, file = _SEVERITIES[reader.number()], reader.text()
        low, high, message = reader.number(), reader.number(), reader.text()
        if low < 0 or not file.endswith(_MAIN):
            found.append(Diagnostic(severity, message))
            continue
        start = min(max(utf16_offset(source, max(low - shift, 0)), 0), max(len(source) - 1, 0))
        end = max(utf16_offset(source, max(high - shift, 0)), min(start + 1, len(source)))
        found.append(Diagnostic(severity, message, *text.position(start), *text.position(end)))
    main = reader.text()
    classes = {reader.text(): b64encode(reader.bytes()).decode("ascii") for _ in range(reader.number())}
    if status == "ok" and any(one.severity == "error" for one in found):
        status = "errors"
    artifact = json.dumps({"main": main, "classes": classes}).encode() if classes and status == "ok" else None
    return Report("java", name, status, distinct(found), cpu_s, artifact, reason=reason)
