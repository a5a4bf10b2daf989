"""C and C++ by gcc or clang; standard headers precompiled where a program starts with them."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

from lightning_dterm.sandbox.languages.backend import Backend, Stage, Tools, first_line, gave_up, which
from lightning_dterm.sandbox.languages.diagnostics import (
    Diagnostic,
    Report,
    Text,
    distinct,
    moves_lines,
    parse_gcc_json,
    parse_text,
)
from lightning_dterm.sandbox.languages.process import Command, Ended
from lightning_dterm.sandbox.result import Limits

_NAMES = {"c": "main.c", "cpp": "main.cpp"}
_BLANK = re.compile(r"(?:\s+|//[^\n\\]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)
_INCLUDE = re.compile(r"[ \t]*#[ \t]*include[ \t]*<([a-z0-9_/+.]+)>[ \t\r]*(?://[^\n\\]*)?(?:\n|$)")
_EVERYTHING = "bits/stdc++.h"
_STANDARD = frozenset(
    re.findall(
        r"\S+",
        """algorithm any array atomic bit bitset cassert cctype cerrno cfenv cfloat charconv chrono cinttypes climits
        clocale cmath complex condition_variable csetjmp csignal cstdarg cstddef cstdint cstdio cstdlib cstring ctime
        cwchar cwctype deque exception execution filesystem forward_list fstream functional future initializer_list
        iomanip ios iosfwd iostream istream iterator limits list locale map memory memory_resource mutex new numeric
        optional ostream queue random ratio regex scoped_allocator set shared_mutex sstream stack stdexcept streambuf
        string string_view system_error thread tuple type_traits typeindex typeinfo unordered_map unordered_set utility
        valarray variant vector assert.h ctype.h limits.h math.h stdint.h stdio.h stdlib.h string.h time.h""",
    )
) | {_EVERYTHING}
_ERROR_LINE = re.compile(r"^.*\berror: .*$", re.MULTILINE)
# A shell starts what gcc's driver starts: a driver says only in words, which a program could make the linker or the
# assembler write just as well, that one of its parts was killed. Codes of parts come back higher by ``_PART``, signals
# by 128 more, so that 1 is the driver's own. The linker is started without ``collect2``, another driver.
# Its name comes by the environment: gcc splits the wrapper at commas, and a shell reads the rest.
_PART = 64
_SHELL = "/bin/sh"
_WRAPPER = (
    '{shell},-c,part=$1; shift; case $part in */collect2) part=$LINKER;; esac; "$part" "$@"; code=$?; '
    f"test $code = 0 || exit $((code + {_PART})),sh"
)
_CLANGS_PART_ENDED = 254  # by whatever signal; clang names it last
_CLANGS_PART = re.compile(rb"unable to execute command: (.*)")
_SEEN_BEFORE_BUILDING = 3
_MAX_HEADER_SETS = 12


def leading_headers(source: str) -> tuple[str, ...]:
    """The standard headers a C++ program includes before anything else, sorted; empty where it starts otherwise.

    Only what precedes any other directive or code counts, so that precompiling them changes nothing: standard headers
    may be included in any order, and their guards make the program's own lines no-ops.
    """
    found: set[str] = set()
    position = 0
    while True:
        blank = _BLANK.match(source, position)
        position = blank.end() if blank else position
        # Comments may hide nothing: the directive must start its line.
        start = source.rfind("\n", 0, position) + 1
        match = _INCLUDE.match(source, start) if not source[start:position].strip() else None
        if match is None or match[1] not in _STANDARD:
            return tuple(sorted(found))
        found.add(match[1])
        position = match.end()


class CCompiler(Backend):
    """gcc and g++, or clang and clang++.

    Args:
        family: ``gcc`` or ``clang``.
        standards: Language standard per language.
        precompile: Precompile the standard headers of C++ programs (gcc only).
        optimize: Optimization of programs that are run.
    """

    languages = ("c", "cpp")
    runs = True
    canaries: ClassVar[Mapping[str, str]] = {
        "c": '#include <stdio.h>\nint main(void) { return puts("") < 0; }\n',
        "cpp": "#include <string>\nint main() { return std::string().size(); }\n",
    }

    def __init__(
        self,
        family: str = "gcc",
        standards: dict[str, str] | None = None,
        precompile: bool = True,
        optimize: str = "-O1",
    ) -> None:
        if family not in ("gcc", "clang"):
            raise ValueError(f"CCompiler: family must be 'gcc' or 'clang', got {family!r}.")
        self.family, self.optimize, self.precompile = family, optimize, precompile and family == "gcc"
        self.package = "build-essential" if family == "gcc" else "clang"
        self.standards = {"c": "gnu17", "cpp": "gnu++17", **(standards or {})}
        self._seen: Counter[tuple[str, ...]] = Counter()
        self._header_sets: dict[tuple[str, ...], str] = {}
        self._lock = threading.Lock()

    @cached_property
    def path(self) -> str | None:
        """The C driver; the C++ driver must be there too."""
        return which("gcc" if self.family == "gcc" else "clang") if self._plus else None

    @cached_property
    def _plus(self) -> str | None:
        return which("g++" if self.family == "gcc" else "clang++")

    @cached_property
    def version(self) -> str:
        """``gcc 12.2.0``."""
        assert self.path is not None
        if self.family == "gcc":
            return f"gcc {first_line(self.path, '-dumpfullversion')}"
        return f"clang {first_line(self.path, '-dumpversion')}"

    @property
    def identity(self) -> str:
        """Compiler, standards and optimization."""
        return f"{super().identity} {self.standards} {self.optimize}"

    @cached_property
    def _format(self) -> tuple[str, ...]:
        if self.family == "clang":
            return ("-fno-color-diagnostics", "-fno-caret-diagnostics", "-fdiagnostics-print-source-range-info")
        major = self.version.split()[-1].split(".")[0]
        # gcc 16 drops the JSON form; its plain text has the same places, only no ranges.
        return (
            ("-fdiagnostics-format=json",)
            if major.isdigit() and 9 <= int(major) < 16
            else ("-fdiagnostics-plain-output",)
        )

    @cached_property
    def _linker(self) -> str:
        return first_line(self.path or "", "-print-prog-name=ld") or "ld"

    @cached_property
    def _shell(self) -> str:
        """The system's shell: what else is on PATH may lie in a user's folder, which no program should read."""
        folder, name = os.path.split(_SHELL if os.access(_SHELL, os.X_OK) else which("sh") or _SHELL)
        shell = os.path.join(os.path.realpath(folder), name)
        if "," in shell:
            raise RuntimeError(f"gcc takes no wrapper with a comma in its path, and sh is {shell}: provide {_SHELL}.")
        return shell

    def rules(self) -> Sequence[tuple[str, str]]:
        """Drivers, headers and libraries of the system; nothing of any user.

        Raises:
            RuntimeError: There is no ``/bin/sh``, and the path of the shell on PATH has a comma.
        """
        paths = ["/usr/bin", "/usr/include", "/usr/libexec", "/usr/local/include", "/usr/x86_64-linux-gnu"]
        tools = [self.path, self._plus, self._shell if self.family == "gcc" else None]
        paths += [os.path.dirname(os.path.realpath(path)) for path in tools if path]
        paths += [os.path.dirname(self._shell)] if self.family == "gcc" else []
        return [(path, "x" if "include" not in path else "r") for path in paths]

    def check(self, language: str, source: str, stage: Stage, tools: Tools) -> Report:
        """Parse and analyse, templates instantiated; no code is generated, so inline assembly is not looked at."""
        ended = self._compile(language, source, tools, ("-fsyntax-only",), ())
        return self._report(language, source, ended, tools, None)

    def build(self, language: str, source: str, tools: Tools) -> Report:
        """Compile, assemble and link."""
        ended = self._compile(language, source, tools, (self.optimize, "-o", "program"), ("program",))
        return self._report(language, source, ended, tools, ended.outputs[0] if ended.outputs else None)

    def command(self, artifact: bytes, stdin: bytes, limits: Limits) -> Command:
        """The program itself."""
        return Command(
            "{work}/program", ("program",), {"LC_ALL": "C.UTF-8"}, "program", {"program": artifact}, stdin,
            cpu_s=limits.cpu_s, wall_s=limits.wall_s, memory_mb=limits.memory_mb, file_kb=limits.output_kb,
            stdout_kb=limits.output_kb, stderr_kb=limits.output_kb, stack_mb=64,
        )  # fmt: skip

    def _compile(
        self, language: str, source: str, tools: Tools, actions: tuple[str, ...], outputs: tuple[str, ...]
    ) -> Ended:
        name = _NAMES[language]
        prefix = self._precompiled(source, tools, actions) if language == "cpp" and self.precompile else ()
        ended = tools.run(self._order(language, [*prefix, *actions, name], {name: source}, outputs, tools))
        if "output" in ended.flags:  # a flood of warnings is no error
            ended = tools.run(self._order(language, [*prefix, *actions, "-w", name], {name: source}, outputs, tools))
        return ended

    def _order(
        self, language: str, arguments: list[str], files: dict[str, str], outputs: tuple[str, ...], tools: Tools
    ) -> Command:
        driver = self.path if language == "c" else self._plus
        assert driver is not None
        limits = tools.limits
        libraries = ["-lm"] if outputs == ("program",) else []
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TMPDIR": ".", "HOME": "/nonexistent"}
        wrapped: tuple[str, ...] = ()
        if self.family == "gcc":
            wrapped = ("-pass-exit-codes", "-wrapper", _WRAPPER.replace("{shell}", self._shell))
            environment["LINKER"] = self._linker
        return Command(
            driver, (driver, f"-std={self.standards[language]}", *self._format, *wrapped, *arguments, *libraries),
            environment, "tools",
            {name: text.encode("utf-8", "replace") for name, text in files.items()}, outputs=outputs,
            cpu_s=limits.cpu_s, wall_s=limits.wall_s, memory_mb=limits.memory_mb, file_kb=limits.artifact_kb,
            stdout_kb=limits.output_kb, stderr_kb=limits.output_kb, stack_mb=64,
            wait_status=_part_of_gcc if self.family == "gcc" else _part_of_clang,
        )  # fmt: skip

    def _report(self, language: str, source: str, ended: Ended, tools: Tools, artifact: bytes | None) -> Report:
        text, name = Text(source), _NAMES[language]
        words = ended.stderr.decode("utf-8", "replace")
        # Assembly may carry line marks of its own, far from any syntax that could be looked for.
        moved = moves_lines(language, source) or "Assembler messages:" in words
        found = parse_gcc_json(words, text, name)
        if found is None or not any(one.severity == "error" for one in found):
            plain = parse_text(words, text, name)
            lines = _ERROR_LINE.findall(words)
            if moved and len(lines) > sum(one.severity == "error" for one in plain):
                plain = [Diagnostic("error", line[:400]) for line in lines]
            found = [*(found or []), *plain]
        trouble = gave_up(ended, tools.limits)
        if trouble is None and ended.code not in (0, 1):
            trouble = ("crash", f"{self.family} exited with {ended.code}")
        if trouble is not None:
            said = distinct(found, moved=moved)
            return Report(language, self.version, trouble[0], said, ended.cpu_s, reason=trouble[1])
        if ended.code == 0:
            return Report(language, self.version, "ok", distinct(found, moved=moved), ended.cpu_s, artifact)
        if not any(one.severity == "error" for one in found):
            found.append(Diagnostic("error", _last_words(words)))
        return Report(language, self.version, "errors", distinct(found, moved=moved), ended.cpu_s)

    # --- precompiled headers ------------------------------------------------------------------------------------------

    def _precompiled(self, source: str, tools: Tools, actions: tuple[str, ...]) -> tuple[str, ...]:
        """``-include`` options for the program's leading standard headers, once they are worth it."""
        headers = leading_headers(source)
        if not headers:
            return ()
        if _EVERYTHING in headers:
            headers = (_EVERYTHING,)
        options = () if actions == ("-fsyntax-only",) else (self.optimize,)
        key = (tools.headers, *options, *headers)
        with self._lock:
            self._seen[key] += 1
            known = self._header_sets.get(key)
            if known is None or (known and not os.path.exists(known + ".gch")):
                wanted = headers == (_EVERYTHING,) or self._seen[key] >= _SEEN_BEFORE_BUILDING
                if not wanted or len(self._header_sets) >= _MAX_HEADER_SETS:
                    return ()
                known = self._header_sets[key] = self._build_headers(headers, tools, options)
        return ("-include", known) if known else ()

    def _build_headers(self, headers: tuple[str, ...], tools: Tools, options: tuple[str, ...]) -> str:
        """Precompile a set of headers into the shared folder; written once, by renaming. Empty where gcc refuses."""
        content = "".join(f"#include <{header}>\n" for header in headers)
        name = hashlib.sha256(f"{self.identity} {options} {content}".encode()).hexdigest()[:24] + ".h"
        path = os.path.join(tools.headers, name)
        if os.path.exists(path + ".gch"):
            return path
        arguments = [*options, "-x", "c++-header", name, "-o", "out.gch"]
        order = self._order("cpp", arguments, {name: content}, ("out.gch",), tools)
        ended = tools.run(replace(order, file_kb=512 << 10, cpu_s=60.0, wall_s=600.0))
        if ended.code != 0 or not ended.outputs or ended.outputs[0] is None:
            return ""
        for target, data in ((path, content.encode()), (path + ".gch", ended.outputs[0])):
            temporary = f"{target}.{os.getpid()}.{threading.get_ident()}"
            with open(temporary, "xb") as file:
                file.write(data)
            os.replace(temporary, target)
        return path


def _part_of_gcc(ended: Ended) -> int:
    """The wait status of the part that failed; a driver that fails by itself lost a part to SIGKILL."""
    if not ended.code:
        return ended.wait_status
    if ended.code < _PART:
        return int(signal.SIGKILL)
    code = ended.code - _PART
    return code - 128 if code > 128 else code << 8


def _part_of_clang(ended: Ended) -> int:
    """The wait status of a linker that was killed; clang itself is one process with its compiler."""
    named = _CLANGS_PART.findall(ended.stderr) if ended.code == _CLANGS_PART_ENDED else []
    ends = {signal.strsignal(one): int(one) for one in (signal.SIGKILL, signal.SIGXCPU, signal.SIGXFSZ)}
    return ends.get(named[-1].decode("utf-8", "replace"), ended.wait_status) if named else ended.wait_status


def _last_words(words: str) -> str:
    lines = [line for line in words.splitlines() if line.strip() and not line.startswith("[")]
    return (lines[-1] if lines else "the compiler failed without a message")[:400]
