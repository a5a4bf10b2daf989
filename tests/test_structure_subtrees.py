"""Syntactic match against tree-sitter's own printing of every subtree, and against cases counted by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import tree_sitter
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_dterm.structure import LANGUAGES, Overlap, SubtreeReference, differences, shared_parser
from lightning_dterm.structure.worker import load

PIECES = {
    "python": ["x = y + 1", "f(x, z=2)", "if a: b()", "for i in c:\n    d[i] = 0", "return", "x = (", "def g(a): pass"],
    "java": ["int x = y + 1;", "f(x);", "if (a) b(); else c();", "return;", "for (int i : c) { d = i; }", "x = ("],
    "c": ["int x = y + 1;", "f(x);", "while (a) b();", "p->q = *r;", "x = ("],
    "cpp": ["auto x = y;", "std::cout << x;", "for (auto v : w) f(v);", "x = ("],
    "csharp": ["var x = y;", "foreach (var v in w) F(v);", "int P { get; set; }", "x = ("],
    "javascript": ["let x = y;", "f(x => x + 1);", "for (const v of w) f(v);", "x = ("],
    "go": ["x := y", "for i := range c { d(i) }", "if a { b() }", "x = ("],
    "php": ["$x = $y;", "foreach ($a as $b) { c($b); }", "echo 'x';", "$x = ("],
}


def printed(text: str, language: str) -> list[str]:
    """Every subtree as tree-sitter prints it: the published definition, without any of our code."""
    found = []
    pending = [tree_sitter.Parser(load(LANGUAGES.index(language))).parse(text.encode()).root_node]
    while pending:
        node = pending.pop()
        found.append(str(node))
        # C#: the keyword that stands below an identifier (``var``, ``when``) makes it no less a token
        pending.extend(child for child in node.children if child.child_count and child.type != "identifier")
    return found


def compare(candidate: str, reference: str, language: str) -> tuple[Overlap, tuple[int, int]]:
    ours, theirs = shared_parser().parse_many([(candidate, language), (reference, language)])
    assert ours is not None
    assert theirs is not None
    prepared = SubtreeReference(theirs)
    numbering = prepared.number(ours)
    return prepared.overlap(numbering), prepared.published_recall(numbering)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str, str]:
    language = draw(st.sampled_from(LANGUAGES))
    programs = st.lists(st.sampled_from(PIECES[language]), max_size=6).map("\n".join)
    return draw(programs), draw(programs), language


@settings(max_examples=100, deadline=None)
@given(pairs())
@example(("", "x = (\nvar x = y;\nvar x = y;\nvar x = y;", "csharp"))
def test_against_every_printed_subtree(pair: tuple[str, str, str]) -> None:
    candidate, reference, language = pair
    ours, theirs = Counter(printed(candidate, language)), Counter(printed(reference, language))
    overlap, (found, total) = compare(candidate, reference, language)
    assert overlap == Overlap(sum((ours & theirs).values()), sum(theirs.values()), sum(ours.values()))
    assert (found, total) == (sum(n for tree, n in theirs.items() if tree in ours), sum(theirs.values()))
    assert 0 <= overlap.f1 <= 1


@settings(max_examples=50, deadline=None)
@given(pairs())
def test_differences_are_empty_exactly_where_the_trees_are_equal(pair: tuple[str, str, str]) -> None:
    candidate, reference, language = pair
    ours, theirs = shared_parser().parse_many([(candidate, language), (reference, language)])
    assert ours is not None
    assert theirs is not None
    prepared = SubtreeReference(theirs)
    numbering = prepared.number(ours)
    spans = differences(prepared, ours, numbering)
    same = printed(candidate, language)[0] == printed(reference, language)[0]
    assert same == (prepared.overlap(numbering).f1 == 1)
    if same:
        assert not spans
    else:
        assert spans or not candidate.strip()
    assert all(0 <= span.start < span.end <= len(candidate) and span.weight >= 1 for span in spans)


def test_counted_by_hand() -> None:
    # module, expression_statement, assignment, binary_operator; against the last without its operator.
    overlap, _ = compare("x = y", "x = y + 1", "python")
    assert overlap == Overlap(0, 4, 3)
    overlap, _ = compare("x = y + 1", "a = b * 2", "python")
    assert overlap == Overlap(4, 4, 4)  # names, literals and operators do not count
    # argument_list, call: 2 of 4; repeated, the reference's only ones match once each.
    overlap, published = compare("f()\nf()", "f()", "python")
    assert overlap == Overlap(3, 4, 7)
    assert published == (3, 4)


def test_comments_and_docstrings_are_no_part_of_it() -> None:
    plain = "def f(a):\n    return a\n"
    for text in ('def f(a):\n    """Doc."""\n    # why\n    return a  # so\n', '"""Doc."""\n' + plain):
        assert compare(text, plain, "python")[0].f1 == 1
    assert compare("/* a */ int f() { // b\n return 1; }", "int f() { return 1; }", "c")[0].f1 == 1
    assert compare("// a\nclass A { /** b */ int c; }", "class A { int c; }", "java")[0].f1 == 1


def test_repetition_and_junk_lower_the_score() -> None:
    reference = "def f(x):\n    return x + 1\n"
    junk = "".join(f"z{n} = [{n}]\n" for n in range(40))
    overlap, _ = compare(reference + junk, reference, "python")
    assert overlap.recall > 0.8
    assert overlap.f1 < 0.2
    assert compare(reference * 20, reference, "python")[0].f1 < 0.2


def test_other_languages_cannot_be_compared() -> None:
    ours, theirs = shared_parser().parse_many([("a", "python"), ("a", "java")])
    assert ours is not None
    assert theirs is not None
    with pytest.raises(ValueError, match="cannot compare python with java"):
        SubtreeReference(theirs).number(ours)


def places(candidate: str, reference: str, language: str = "python") -> list[str]:
    ours, theirs = shared_parser().parse_many([(candidate, language), (reference, language)])
    assert ours is not None
    assert theirs is not None
    prepared = SubtreeReference(theirs)
    return [candidate[s.start : s.end] for s in differences(prepared, ours, prepared.number(ours))]


def test_evidence_is_the_place_that_must_change() -> None:
    reference = "def f(x):\n    y = g(x)\n    return y\n"
    assert places("def f(x):\n    y = g(1)\n    return y\n", reference) == ["1"]  # other node
    assert places("def f(x):\n    y = g(x)\n    h(1)\n    return y\n", reference) == ["h(1)"]  # one too many
    assert places("def f(x):\n    return y\n", reference) == ["return"]  # missing: the token after the gap
    assert places("def f(x):\n    y = g(x)\n", reference) == [")"]  # missing at the end: the parent's last token
    assert places("int f() { a(); b(1); }", "int f() { a(); b(c); }", "c") == ["1"]
    assert places("größe = g('é', 1)\n", "größe = g('é', x)\n") == ["1"]
