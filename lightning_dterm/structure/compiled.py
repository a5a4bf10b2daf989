"""A language's table of data-flow rules, looked up in its grammar's numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from lightning_dterm.structure.parsing import ERROR_KIND, Grammar
from lightning_dterm.structure.tables import CONTENTS, IGNORED, TABLES, Hoist, Loop, Rule, Table

NAMED_ROLE, RULE_ROLE, LITERAL_ROLE, IGNORED_ROLE = 1, 2, 3, 4


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """A table in the kind and field numbers of a grammar.

    Attributes:
        roles: Per kind number what such a node is: 0 punctuation, or one of the roles.
        spellings: Named kinds that are keywords when they are spelled like their name (``this``).
    """

    table: Table
    rules: dict[int, Rule]
    roles: bytes
    spellings: dict[int, str]
    names: frozenset[int]
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
    names, ignored = numbers(table.names), numbers(IGNORED, strict=False)
    roles = bytearray(ERROR_KIND + 1)
    roles[: len(grammar.named)] = grammar.named
    roles[ERROR_KIND] = NAMED_ROLE
    for role, some in ((IGNORED_ROLE, ignored), (LITERAL_ROLE, numbers(table.literals)), (RULE_ROLE, frozenset(rules))):
        for number in some:
            roles[number] = role
    spellings = {n: kind for n, kind in enumerate(grammar.kinds) if grammar.named[n] and n not in names}
    return Compiled(
        table, rules, bytes(roles), spellings, names, numbers(table.sequences),
        numbers(CONTENTS, strict=False), ignored,
        {name: numbers([name]) for name in sorted(special)}, grammar,
    )  # fmt: skip


@cache
def compiled_for(grammar: Grammar) -> Compiled:
    """The language's own table."""
    return compile_table(grammar, TABLES[grammar.language])
