"""Hostile programs cost bounded time, in every language and every part."""

from __future__ import annotations

import time

import pytest

from lightning_dterm.structure import LANGUAGES, SubtreeReference, TreeParser, data_flow, differences, shared_parser

HOSTILE = {
    "parentheses": "(" * 50_000,
    "balanced": "[" * 20_000 + "]" * 20_000,
    "binary": bytes(range(256)).decode("latin-1") * 200,
    "one line": "a = b;" * 12_000,
    "wide": "f(" + "a, " * 20_000 + ")",
    "branches": "if (a) { b = c; } else " * 3_000,
    "python branches": "".join(" " * depth + f"if a{depth}:\n" for depth in range(300)) + " " * 300 + "x = 1\n",
    "python loops": "".join(" " * depth + f"for a{depth} in b:\n" for depth in range(60)) + " " * 60 + "x = a0\n",
    "loops": "".join(f"for (int a{n} = 0; a{n} < b; a{n}++) {{" for n in range(60)) + "x = a0;" + "}" * 60,
    "sum": "x = " + "a + " * 20_000 + "a;",
    "names": "".join(f"v{n} = v{n // 2};\n" for n in range(5_000)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_end_soon(name: str) -> None:
    references = {
        language: SubtreeReference(tree)
        for language in LANGUAGES
        if (tree := shared_parser().parse("x = f(a);", language)) is not None
    }
    parser = TreeParser(cache_nodes=1)
    used = time.process_time()
    for language, tree in zip(LANGUAGES, parser.parse_many([(HOSTILE[name], one) for one in LANGUAGES]), strict=True):
        if tree is not None:
            numbering = references[language].number(tree)
            assert 0 <= references[language].overlap(numbering).f1 <= 1
            differences(references[language], tree, numbering)
            data_flow(tree)
    parser.close()
    assert time.process_time() - used < 30  # CPU seconds of this process for all eight languages


def test_sixty_nested_loops_cost_as_much_as_their_length() -> None:
    def seconds(depth: int) -> float:
        text = "".join(" " * n + f"for a{n} in b:\n" for n in range(depth)) + " " * depth + "x = a0\n"
        tree = shared_parser().parse(text, "python")
        assert tree is not None
        started = time.process_time()
        for _ in range(5):
            data_flow(tree)
        return time.process_time() - started

    seconds(10)
    # The published algorithm would take 2**50 times as long.
    assert seconds(60) < 100 * max(seconds(10), 1e-3)


def test_twice_as_long_takes_about_twice_as_long() -> None:
    def seconds(count: int) -> float:
        text = "".join(f"if a{n} > b: c{n % 50} = d{n} + c{n % 7}\n" for n in range(count))
        tree = shared_parser().parse(text, "python")
        assert tree is not None
        started = time.process_time()
        data_flow(tree)
        SubtreeReference(tree)
        return time.process_time() - started

    seconds(200)
    # a quadratic step would make it 16; the least of three, since other work on the machine costs CPU time too
    assert min(seconds(4_000) for _ in range(3)) < 12 * max(min(seconds(1_000) for _ in range(3)), 0.02)


def test_many_clauses_of_one_comprehension_are_planned_once() -> None:
    tree = shared_parser().parse("a = [x " + "for x in y " * 40_000 + "]", "python")
    assert tree is not None
    started = time.process_time()
    data_flow(tree)
    assert time.process_time() - started < 8  # 0.6; planned once per clause they took half a minute
