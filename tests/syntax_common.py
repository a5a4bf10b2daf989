"""Real functions and broken ones, for the tests and the benchmark of syntax flags."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import random
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("LIGHTNING_DTERM_SHARED", Path(__file__).parents[2] / "shared")) / "data"
INSERTS = ["(", ")", ":", "=", "if", "else", "'", '"', "\n", " ", "    ", "return", "]", "x", "5", "\\", "!", "$", "}"]


def stdlib_functions(count: int, seed: int = 0, longest: int = 2500) -> list[str]:
    """Functions and classes of this Python's standard library, a few from each of many modules."""
    rng, found = random.Random(seed), list[str]()
    root = Path(os.__file__).parent
    files = [
        path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts and "lib2to3" not in path.parts
    ]
    rng.shuffle(files)
    for path in files:
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (SyntaxError, ValueError):  # the library's own tests of bad source
            continue
        nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
        for node in rng.sample(nodes, min(4, len(nodes))):
            first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            text = textwrap.dedent("".join(source.splitlines(keepends=True)[first - 1 : node.end_lineno]))
            if len(text) <= longest and parses(text):
                found.append(text)
        if len(found) >= count:
            break
    return found[:count]


def parses(text: str) -> bool:
    """Whether ``ast.parse`` takes it."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def token_ends(source: str) -> list[int]:
    """Where the tokens of a valid Python program end, by the standard library's own tokenizer."""
    starts = [0]
    for line in io.StringIO(source):
        starts.append(starts[-1] + len(line))
    ends = {0}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.end[0] < len(starts):
            ends.add(min(starts[token.end[0] - 1] + token.end[1], len(source)))
    return sorted(ends)


def mutate(source: str, rng: random.Random, ends: list[int]) -> str:
    """``source`` with one lexeme or character deleted, doubled, replaced or put in."""
    place = rng.randrange(len(ends) - 1)
    start, end = ends[place], ends[place + 1]
    other = rng.randrange(len(ends) - 1)
    word = source[ends[other] : ends[other + 1]]
    change = rng.randrange(5)
    if change == 0:
        return source[:start] + source[end:]
    if change == 1:
        return source[:end] + " " + source[start:end] + source[end:]
    if change == 2:
        return source[:start] + word + source[end:]
    if change == 3:
        return source[:start] + rng.choice(INSERTS) + source[start:]
    at = rng.randrange(len(source))
    return source[:at] + source[at + 1 :]


def rows(name: str) -> Iterator[dict[str, Any]]:
    """Rows of a data file; none where it is not there."""
    path = SHARED / name
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def shared_functions(language: str, count: int) -> list[str]:
    """Published functions and programs of a language; none where the data is not there."""
    found: list[str] = []
    if language in ("java", "csharp"):
        key = "java" if language == "java" else "cs"
        found += [row[key] for row in rows("codexglue/translation_java_cs_test.jsonl.gz")][: count // 2]
    if language == "c":
        return [row["targetText"] for row in rows("repair/tracer_c_test.jsonl.gz")][: 3 * count : 3]
    name = {"java": "java", "cpp": "cpp", "javascript": "js"}.get(language)
    if name:
        pack = rows(f"multilingual/humaneval_x/humaneval_{name}.jsonl.gz")
        found += [row["prompt"] + row["canonical_solution"] for row in pack]
    mbxp = (row for row in rows(f"multilingual/mbxp/{language}.jsonl.gz") if row.get("canonical_solution"))
    tail = "\n}\n}" if language == "csharp" else ""  # MBXP leaves the class and the namespace open
    found += [row["prompt"] + row["canonical_solution"] + tail for row in mbxp]
    return found[:count]
