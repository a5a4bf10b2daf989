"""Runs the codebleu package (0.7.0) in an environment of its own; called by ``benchmarks/structure.py``.

Standard input: one JSON object: ``language``, ``pairs`` (candidate, reference) and ``changes``, names of
:data:`CHANGES`. Standard output: per-pair syntax and data-flow score, the texts without
comments and docstrings, and the seconds both scores took.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any


class OrderedSet(dict):  # type: ignore[type-arg]
    """A set that iterates in the order of insertion."""

    def __init__(self, items: Any = ()) -> None:
        super().__init__(dict.fromkeys(items))

    def add(self, item: Any) -> None:
        """Insert one item."""
        self[item] = None


def ordered(match: Any, dfg: Any) -> None:
    """Sets keep the order of insertion: their order is what makes the package's data flow depend on the hash seed."""
    match.set = dfg.set = OrderedSet


def uncut(match: Any, dfg: Any) -> None:
    """Comments and docstrings are left where they are."""
    match.remove_comments_and_docstrings = lambda text, language: text


def source_sets(match: Any, dfg: Any) -> None:
    """A variable's sources are a set: the package keeps a list with repeats, so ``x * x`` is not ``x + 1`` to it."""
    listed = match.normalize_dataflow
    match.normalize_dataflow = lambda flow: [(name, how, sorted(set(sources))) for name, how, sources in listed(flow)]


def for_else(match: Any, dfg: Any) -> None:
    """Python's ``for`` with an ``else`` is read: the package drops the body and the ``else``."""
    dropped = """\
            if root_node.children[-1].type == "block":
                temp, states = DFG_python(root_node.children[-1], index_to_code, states)
                DFG += temp
"""
    read = """\
            for field in ["body", "alternative"][: i + 1]:  # what follows else runs once
                if root_node.child_by_field_name(field) is not None:
                    temp, states = DFG_python(root_node.child_by_field_name(field), index_to_code, states)
                    DFG += temp
"""
    rewrite(dfg, "DFG_python", dropped, read)
    match.dfg_function["python"] = dfg.DFG_python


def keywords_as_names(match: Any, dfg: Any) -> None:
    """C#'s names that are keywords elsewhere (``when``, ``file``) are names: the package takes them for keywords."""
    literals, names = (
        '["string_literal", "string", "character_literal"]',
        '["string_literal", "character_literal", "identifier"]',
    )
    children = "len(child_node.children) != 0"
    syntax = importlib.import_module("codebleu.syntax_match")
    rewrite(syntax, "corpus_syntax_match", children, f'{children} and child_node.type != "identifier"')
    utils = importlib.import_module("codebleu.parser.utils")
    for name in ("tree_to_token_index", "tree_to_variable_index"):
        rewrite(utils, name, literals, names)
    match.tree_to_token_index, dfg.tree_to_variable_index = utils.tree_to_token_index, utils.tree_to_variable_index
    rewrite(dfg, "DFG_csharp", literals, names)
    match.dfg_function["c_sharp"] = dfg.DFG_csharp


def rewrite(module: Any, function: str, old: str, new: str) -> None:
    """Replace one piece of a function's source.

    Raises:
        RuntimeError: it does not stand there once, so it is another version of the package.
    """
    source = inspect.getsource(getattr(module, function))
    if source.count(old) != 1:
        raise RuntimeError(f"{function}: this is not codebleu 0.7.0")
    exec(source.replace(old, new), vars(module))


# Ways in which the package may be made to differ from itself, each alone or several together.
CHANGES: dict[str, Callable[[Any, Any], None]] = {
    change.__name__: change for change in (ordered, uncut, source_sets, for_else, keywords_as_names)
}


def cut_as_the_package_does(match: Any, text: str, language: str) -> str:
    """A program without comments and docstrings; whole where the package fails to cut it."""
    try:
        return str(match.remove_comments_and_docstrings(text, language))
    except Exception:  # as there
        return text


def main() -> None:
    """Score every pair, first all syntax, then all data flow."""
    logging.disable(logging.CRITICAL)
    dataflow_match = importlib.import_module("codebleu.dataflow_match")
    syntax_match = importlib.import_module("codebleu.syntax_match")
    dfg: Any = importlib.import_module("codebleu.parser.DFG")
    get_tree_sitter_language = importlib.import_module("codebleu.utils").get_tree_sitter_language

    request = json.load(sys.stdin)
    for name in request["changes"]:
        CHANGES[name](dataflow_match, dfg)
    language = request["language"]
    grammar = get_tree_sitter_language(language)
    cut = [[cut_as_the_package_does(syntax_match, text, language) for text in pair] for pair in request["pairs"]]
    started = time.perf_counter()
    syntax = [
        syntax_match.corpus_syntax_match([[reference]], [candidate], language, grammar)
        for candidate, reference in request["pairs"]
    ]
    middle = time.perf_counter()
    flow = [
        dataflow_match.corpus_dataflow_match([[reference]], [candidate], language, grammar)
        for candidate, reference in request["pairs"]
    ]
    ended = time.perf_counter()
    json.dump({"syntax": syntax, "flow": flow, "seconds": [middle - started, ended - middle], "cut": cut}, sys.stdout)


if __name__ == "__main__":
    main()
