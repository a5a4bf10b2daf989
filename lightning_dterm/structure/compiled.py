"""A language's table of data-flow rules, looked up in its grammar's numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from lightning_dterm.structure.parsing import Grammar
from lightning_dterm.structure.tables import CONTENTS, IGNORED, TABLES, Hoist, Loop, Rule, Table


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """A table in the kind and field numbers of a grammar."""

    table: Table
    rules: dict[int, Rule]
    names: frozenset[int]
    literals: frozenset[int]
    sequences: frozenset[int]
    contents: frozenset[int]
    ignored: frozenset[int]
    clauses: dict[str, frozenset[int]]
    grammar: Grammar
    _fields: dict[tuple[str, ...], frozenset[int]] = field(default_factory=dict)

    def fields(self, *names: str) -> frozenset[int]:
        """Field numbers of field names."""
        found = self._fields.get(names)
        if found is None:
            found = frozenset(n for n, name in enumerate(self.grammar.fields) if name and name in names)
            self._fields[names] = found
        return found


def compile_table(grammar: Grammar, table: Table) -> Compiled:
    """Look a table's names up in a grammar.

    Raises:
        ValueError: the grammar has no node type of that name, so the table is not for this version of it.
    """

    def numbers(names: Iterable[str], strict: bool = True) -> frozenset[int]:
        found: set[int] = set()
        for name in names:
            these = grammar.numbers(name)
            if strict and not these:
                raise ValueError(f"the {grammar.language} grammar has no node type {name!r}: install another version.")
            found.update(these)
        return frozenset(found)

    rules = {number: rule for name, rule in table.rules.items() for number in numbers([name])}
    special = {rule.kind for rule in table.rules.values() if isinstance(rule, Hoist)}
    special |= {rule.clause for rule in table.rules.values() if isinstance(rule, Loop) and rule.clause}
    return Compiled(
        table, rules, numbers(table.names), numbers(table.literals), numbers(table.sequences),
        numbers(CONTENTS, strict=False), numbers(IGNORED, strict=False),
        {name: numbers([name]) for name in sorted(special)}, grammar,
    )  # fmt: skip


@cache
def compiled_for(grammar: Grammar) -> Compiled:
    """The language's own table."""
    return compile_table(grammar, TABLES[grammar.language])
