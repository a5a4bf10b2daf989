"""Programs become trees in a process of their own, with exact character offsets, whatever they contain."""

from __future__ import annotations

import itertools
import pickle
import random
import sys
import threading
import time

import pytest
import tree_sitter
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.structure import LANGUAGES, ParseLimits, ParserUnavailable, SyntaxTree, TreeParser, shared_parser
from lightning_dterm.structure.worker import load


def leaves(tree: SyntaxTree) -> list[str]:
    return [tree.token(node) for node in range(len(tree)) if tree.stops[node] == node + 1]


def parse(text: str, language: str) -> SyntaxTree:
    tree = shared_parser().parse(text, language)
    assert tree is not None
    return tree


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_arrays_are_the_tree(language: str) -> None:
    text = "f(a, [1, 2]);\nx = {'é': \"ü\"} // y\n"
    tree = parse(text, language)
    index = LANGUAGES.index(language)
    nodes: list[tree_sitter.Node] = []

    def walk(node: tree_sitter.Node) -> None:
        nodes.append(node)
        for child in node.children:
            walk(child)

    root = tree_sitter.Parser(load(index)).parse(text.encode()).root_node
    walk(root)
    assert [tree.grammar.kind(kind) for kind in tree.kinds] == [node.type for node in nodes]
    assert [tree.token(n) for n in range(len(tree))] == [(node.text or b"").decode() for node in nodes]
    assert [len(tree.children(n)) for n in range(len(tree))] == [node.child_count for node in nodes]


def test_characters_not_bytes() -> None:
    tree = parse("größe = '😀' + naïve  # ☃\nz = größe\n", "python")
    assert [token for token in leaves(tree) if token.isidentifier()] == ["größe", "naïve", "z", "größe"]


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60), st.sampled_from(LANGUAGES))
def test_any_text_has_ordered_nodes_inside_it(text: str, language: str) -> None:
    tree = parse(text, language)
    for node in range(len(tree)):
        assert 0 <= tree.starts[node] <= tree.ends[node] <= len(text)
        assert node < tree.stops[node] <= len(tree)
        inside = tree.children(node)
        assert all(tree.stops[child] <= tree.stops[node] for child in inside)
        assert all(tree.ends[a] <= tree.starts[b] for a, b in itertools.pairwise(inside))


def test_lone_surrogates_and_nul_are_text_like_any_other() -> None:
    tree = parse("a = '\ud800'\nb\x00 = 2\n", "python")
    assert "a" in leaves(tree)
    assert tree.ends[0] <= len(tree.text)


def test_php_tags_are_blanked_in_place() -> None:
    tree = parse("<?php $a = 1; ?>", "php")
    assert not tree.has_error
    assert "a" in leaves(tree)


def test_equal_programs_are_parsed_once_and_aliases_are_one_language() -> None:
    with_cache = TreeParser()
    first, second, third = with_cache.parse_many([("int a;", "c++"), ("int a;", "cpp"), ("int a;", "c")])
    assert first is second
    assert first is not third
    assert with_cache.parse("int a;", "cpp") is first
    with_cache.close()


def test_the_cache_forgets_the_least_recently_used() -> None:
    parser = TreeParser(cache_nodes=40)
    kept = parser.parse("a = 1", "python")
    for number in range(20):
        parser.parse(f"b = {number}", "python")
        assert parser.parse("a = 1", "python") is kept
    first = parser.parse("b = 0", "python")
    for number in range(1, 20):
        parser.parse(f"b = {number}", "python")
    assert parser.parse("b = 0", "python") is not first
    parser.close()


def test_a_text_beyond_the_limits_is_none_and_hurts_nobody_else() -> None:
    parser = TreeParser(ParseLimits(cpu_s=0.1, memory=300 << 20))
    started = time.monotonic()
    programs = [("int a;", "java"), ("a=>" * 6000, "java"), ("int b;", "java"), ("a<" * 40_000, "csharp"), ("x", "go")]
    trees = parser.parse_many(programs)
    assert [tree is None for tree in trees] == [False, True, False, True, False]
    restarts = parser.restarts
    assert 2 <= restarts <= 4  # what crashes the process is tried twice
    assert sum(parser.process.beyond.values()) == 2
    assert time.monotonic() - started < 60
    assert parser.parse("a" * 2_000_000, "python") is None  # longer than max_bytes: not even sent
    assert parser.restarts == restarts
    parser.close()


def test_batches_larger_than_a_pipe_do_not_lock_up() -> None:
    parser = TreeParser()
    texts = [f"x{n} = [" + "1, " * random.Random(n).randrange(6_000) + "]" for n in range(20)]
    trees = parser.parse_many([(text, "python") for text in texts])
    assert [tree.text if tree else None for tree in trees] == texts
    parser.close()


def test_threads_and_pickles_share_nothing_by_accident() -> None:
    parser = TreeParser()
    results: dict[int, SyntaxTree | None] = {}

    def work(number: int) -> None:
        results[number] = parser.parse(f"v{number} = {number}", "python")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: tree.text if tree else None for n, tree in results.items()} == {n: f"v{n} = {n}" for n in range(8)}
    copy = pickle.loads(pickle.dumps(parser))
    assert copy.parse("a", "python") is not None
    parser.close()
    copy.close()


def test_a_parser_that_cannot_start_is_no_program_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ParserUnavailable, match="ends as soon as it starts"):
        TreeParser().parse("a", "python")


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="no grammar for cobol: supported are python"):
        shared_parser().parse("a", "cobol")
    with pytest.raises(ValueError, match="must be positive"):
        TreeParser(ParseLimits(cpu_s=0))
