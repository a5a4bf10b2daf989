"""Programs that call a function: the candidate with a generated driver, its input, and what its output claims.

The driver gets the arguments on standard input, never an expected value. What it prints are claims: a candidate may
print whatever it likes, but only a right value passes, and the parent is the only one to know it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from lightning_dterm.sandbox.languages.output import Malformed, decode, encode
from lightning_dterm.types import CallTest

_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*(?:(?:\.|::)[A-Za-z_$][A-Za-z0-9_$]*)*\Z")
CALLABLE = frozenset({"c", "cpp", "java", "javascript"})
DRIVER_CLASS = "DtermDriver"


def asset(name: str) -> str:
    """The text of one of this package's drivers or servers."""
    return resources.files("lightning_dterm").joinpath(f"assets/languages/{name}").read_text(encoding="utf-8")


def program_with_driver(language: str, program: str, entry_point: str, tests: Sequence[CallTest]) -> str:
    """The candidate followed by its driver; for Java the candidate alone, since its driver is a class of its own.

    Raises:
        ValueError: not an identifier, a language without a driver, or arguments that cannot be passed.
    """
    if language not in CALLABLE:
        raise ValueError(f"Functions in {language!r} cannot be called; known: {', '.join(sorted(CALLABLE))}.")
    if not _IDENTIFIER.match(entry_point):
        raise ValueError(f"The entry point must be a name, got {entry_point!r}.")
    if language == "java":
        return program
    if language == "javascript":
        found = f"(typeof {entry_point} !== 'undefined' ? {entry_point} : module.exports.{entry_point})"
        return f"{program}\n{asset('driver.js').replace('ENTRY', found, 1)}"
    if re.search(r"\bmain\s*\(", program):
        program = f'#define main dterm_program_main\n#line 1 "main.{language}"\n{program}'
    if language == "cpp":
        calls = []
        for count in sorted({len(test.args) for test in tests}):
            arguments = ", ".join(f"Argument{{a[{index}]}}" for index in range(count))
            call = f"returned([&]() -> decltype(auto) {{ return {entry_point}({arguments}); }})"
            calls.append(f'case {count}: said = "=" + {call}; break;')
        return f'{program}\n#line 1 "driver.hpp"\n{asset("driver.hpp").replace("DTERM_CALLS", " ".join(calls))}'
    cases = []
    for number, test in enumerate(tests):
        call = f"{entry_point}({', '.join(_c_literal(value) for value in test.args)})"
        cases.append(f"case {number}: DTERM_SHOW(mark, {call}); break;")
    return f'{program}\n#line 1 "driver.h"\n{asset("driver.h").replace("DTERM_CASES", " ".join(cases))}'


def driver_input(
    language: str, entry_point: str, classes: Sequence[str], tests: Sequence[tuple[int, CallTest]], mark: str
) -> bytes:
    """Standard input of the driver for some numbered tests; every claim it makes will start with ``mark``.

    Raises:
        ValueError: arguments that cannot be passed.
    """
    if language == "c":
        lines = [str(number) for number, _ in tests]
    else:
        lines = [json.dumps([encode(value) for value in test.args], separators=(",", ":")) for _, test in tests]
    head = [mark, ",".join(classes), entry_point] if language == "java" else [mark]
    return "\n".join([*head, *lines, ""]).encode("utf-8", "replace")


def claims(printed: bytes, mark: str, count: int) -> list[tuple[Any, str | None]]:
    """What a driver claims: for each test run, its value, or None and the exception.

    Raises:
        Malformed: more claims than tests, or one that no driver makes.
    """
    found: list[tuple[Any, str | None]] = []
    for line in printed.decode("utf-8", "replace").split("\n"):
        if not line.startswith(mark) or len(line) <= len(mark):
            continue
        kind, text = line[len(mark)], line[len(mark) + 1 :]
        if len(found) == count or kind not in "=!":
            raise Malformed("more claims than tests")
        found.append((decode(text), None) if kind == "=" else (None, text[:300] or "exception"))
    return found


def _c_literal(value: Any) -> str:
    """One argument as C: numbers, booleans, text, and lists of one kind of number or of texts."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"{value} does not fit a C integer")
        return (
            f"(-{(1 << 63) - 1}LL - 1)" if value == -(1 << 63) else str(value) + ("LL" if abs(value) >= 1 << 31 else "")
        )
    if isinstance(value, float):
        if not math.isfinite(value):
            return "NAN" if math.isnan(value) else ("INFINITY" if value > 0 else "-INFINITY")
        return repr(value)
    if isinstance(value, str):
        return '"' + "".join(_c_char(byte) for byte in value.encode("utf-8")) + '"'
    if isinstance(value, (list, tuple)) and value:
        kinds = {type(item) for item in value}
        if kinds <= {int, bool}:
            wide = any(abs(item) >= 1 << 31 for item in value)
            kind = "long long" if wide else "int"
        elif kinds <= {int, float, bool}:
            kind = "double"
        elif kinds == {str}:
            kind = "char *"
        else:
            raise ValueError(f"{value!r} cannot be passed to a C function")
        return f"({kind}[]){{{', '.join(_c_literal(item) for item in value)}}}"
    if isinstance(value, (list, tuple)):
        return "(int[1]){0}"
    raise ValueError(f"{type(value).__name__} cannot be passed to a C function")


def _c_char(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 and byte not in (34, 63, 92) else f"\\{byte:03o}"
