"""Runs the codebleu package (0.7.0) in an environment of its own; called by ``benchmarks/structure.py``.

Standard input: one JSON object: ``language``, ``pairs`` (candidate, reference), ``ordered`` and ``uncut``. Standard
output: per-pair syntax and data-flow score with matches and totals, and the seconds both took. ``ordered`` replaces the
package's ``set`` by one that keeps the order of insertion, which is what makes its data flow depend on the hash seed;
``uncut`` leaves comments and docstrings where they are.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import time
from typing import Any


class OrderedSet(dict):  # type: ignore[type-arg]
    """A set that iterates in the order of insertion."""

    def __init__(self, items: Any = ()) -> None:
        super().__init__(dict.fromkeys(items))

    def add(self, item: Any) -> None:
        """Insert one item."""
        self[item] = None


def main() -> None:
    """Score every pair, first all syntax, then all data flow."""
    logging.disable(logging.CRITICAL)
    dataflow_match = importlib.import_module("codebleu.dataflow_match")
    syntax_match = importlib.import_module("codebleu.syntax_match")
    dfg: Any = importlib.import_module("codebleu.parser.DFG")
    get_tree_sitter_language = importlib.import_module("codebleu.utils").get_tree_sitter_language

    request = json.load(sys.stdin)
    if request["ordered"]:
        dataflow_match.set = dfg.set = OrderedSet  # type: ignore[attr-defined]
    if request["uncut"]:
        dataflow_match.remove_comments_and_docstrings = lambda text, language: text  # type: ignore[attr-defined]
    language = request["language"]
    grammar = get_tree_sitter_language(language)
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
    json.dump({"syntax": syntax, "flow": flow, "seconds": [middle - started, ended - middle]}, sys.stdout)


if __name__ == "__main__":
    main()
