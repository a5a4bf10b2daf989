"""Runs a program's nodes in order and records which token comes from which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lightning_dterm.structure.compiled import Compiled
from lightning_dterm.structure.parsing import ERROR_KIND, SyntaxTree
from lightning_dterm.structure.tables import Binding, Branch, Loop, Rule, Update
from lightning_dterm.structure.worker import MISSING

_MAX_LOOPS = 16
_MAX_BRANCHES = 64

Item = tuple[int, str, tuple[int, ...]]
Range = tuple[int, int]


@dataclass(slots=True, eq=False)
class Node:
    """A token with its relation and its sources."""

    relation: str
    name: str
    sources: dict[int, str] = field(default_factory=dict)  # token to its name


@dataclass(frozen=True, slots=True, eq=False)
class DataFlow:
    """A program's items in the order of their tokens, and the character range of each one's token."""

    items: list[Item]
    ranges: list[Range]

    def __post_init__(self) -> None:
        assert len(self.items) == len(self.ranges)


class Machine:
    """Runs a program's nodes in order over the state *name to the token that defined it last*.

    A definition is a token's index or, where branches meet, a negative number for a set of definitions.
    """

    def __init__(self, tree: SyntaxTree, compiled: Compiled) -> None:
        self.tree, self.compiled, self.table = tree, compiled, compiled.table
        self.state: dict[str, int] = {}
        self.nodes: dict[int, Node] = {}
        self.used: set[int] = set()
        self.joins: list[tuple[int, ...]] = []
        self.journals: list[dict[str, int | None]] = []
        self.arms: list[list[dict[str, int]]] = []
        self.repeating = self.loops = 0
        self.todo: list[tuple[Any, ...]] = [(self.visit, 0, len(tree))]

    def run(self) -> None:
        """Work until nothing is left to do."""
        todo = self.todo
        while todo:
            operation, *arguments = todo.pop()
            operation(*arguments)

    def plan(self, *operations: tuple[Any, ...]) -> None:
        """Do these next, in this order."""
        self.todo.extend(reversed(operations))

    def nodes_of(self, nodes: Iterable[int]) -> list[tuple[Any, ...]]:
        """Operations that visit some nodes."""
        return [(self.visit, node, self.tree.stops[node]) for node in nodes]

    def visit(self, node: int, stop: int) -> None:
        """Read everything in ``[node, stop)`` from left to right."""
        kinds, stops, compiled = self.tree.kinds, self.tree.stops, self.compiled
        rules, literals, ignored, named = compiled.rules, compiled.literals, compiled.ignored, compiled.grammar.named
        while node < stop:
            kind, after = kinds[node], stops[node]
            if kind in rules:
                self.todo.append((self.visit, after, stop))
                if self.apply(rules[kind], node):
                    return
                self.todo.pop()
                node += 1
            elif kind in literals:
                code = self.code_inside(node)
                if code:
                    self.plan(*self.nodes_of(code), (self.visit, after, stop))
                    return
                self.read(node)
                node = after
            elif after > node + 1:
                node = after if kind in ignored else node + 1
            else:
                if (kind == ERROR_KIND or named[kind]) and kind not in ignored:
                    self.read(node)
                node = after

    def code_inside(self, node: int) -> list[int]:
        """Children of a literal that are code."""
        compiled = self.compiled
        return [
            child
            for child in self.tree.children(node)
            if self.tree.kinds[child] == ERROR_KIND
            or (compiled.grammar.named[self.tree.kinds[child]] and self.tree.kinds[child] not in compiled.contents)
        ]

    def token(self, node: int) -> str:
        """A token's text; empty where it is no token of the data flow (keywords; made up by the parser)."""
        tree = self.tree
        if tree.fields[node] & MISSING:
            return ""
        text = tree.text[tree.starts[node] : tree.ends[node]]
        kind = tree.kinds[node]
        if kind not in self.compiled.names and kind != ERROR_KIND and self.compiled.grammar.kinds[kind] == text:
            return ""
        return text

    def tokens(self, nodes: Iterable[int]) -> dict[int, str]:
        """The tokens below some nodes, with their texts."""
        tree, compiled, found = self.tree, self.compiled, {}
        for top in nodes:
            todo = [(top, tree.stops[top])]
            while todo:
                node, stop = todo.pop()
                while node < stop:
                    kind, after = tree.kinds[node], tree.stops[node]
                    leaf = after == node + 1
                    if kind in compiled.literals:
                        code = self.code_inside(node)
                        if code:
                            todo.append((after, stop))
                            todo.extend((child, tree.stops[child]) for child in reversed(code))
                            break
                        leaf = True
                    if kind in compiled.ignored:
                        node = after
                    elif leaf:
                        if compiled.grammar.is_named(kind) and (text := self.token(node)):
                            found[node] = text
                        node = after
                    else:
                        node += 1
        return found

    def define(self, name: str, definition: int) -> None:
        """From here on ``name`` is what ``definition`` made it."""
        if self.journals:
            self.journals[-1].setdefault(name, self.state.get(name))
        self.state[name] = definition

    def read(self, node: int) -> None:
        """A token is read: it comes from what defined it, or is seen for the first time."""
        name = self.token(node)
        if not name:
            return
        entry = self.nodes.get(node)
        if entry is None:
            entry = self.nodes[node] = Node("comesFrom", name)
        if name in self.state:
            definition = self.state[name]
            self.used.add(definition)
            entry.sources.setdefault(node, name)
        elif self.tree.kinds[node] in self.compiled.names:
            self.define(name, node)

    def assign(self, targets: list[int], values: list[int], relation: str, own: bool) -> None:
        """Every token of the targets gets its value from every token of the values (and from itself)."""
        sources = self.tokens(values)
        places = self.tokens(targets)
        if own:
            for name in places.values():
                if name in self.state:
                    self.used.add(self.state[name])
            sources = {**places, **sources}
        self.used.update(sources)
        for node, name in places.items():
            entry = self.nodes.get(node)
            declared = not values and relation == "comesFrom"  # an assignment has a value, be it a bare ``this``
            if entry is None and (sources or declared or self.table.empty_values):
                entry = self.nodes[node] = Node(relation, name)
            if entry is not None:
                entry.sources.update(sources)
            self.define(name, node)

    # Rules ------------------------------------------------------------------------------------------------------------

    def apply(self, rule: Rule, node: int) -> bool:
        """Plan what a rule says; False where it does not apply to this node after all."""
        if isinstance(rule, Binding):
            return self.bind(rule, node)
        if isinstance(rule, Update):
            return self.update(rule, node)
        if isinstance(rule, Loop):
            return self.loop(rule, node)
        if isinstance(rule, Branch):
            return self.branch(rule, node)
        kinds = self.compiled.clauses[rule.kind]
        children = self.tree.children(node)
        first = [child for child in children if self.tree.kinds[child] in kinds]
        self.plan(*self.nodes_of(first), *self.nodes_of(child for child in children if child not in set(first)))
        return True

    def parts(self, rule: Binding, node: int) -> tuple[list[int], list[int], bool]:
        """Targets and values of a binding, and whether its operator is a compound one."""
        tree, grammar = self.tree, self.compiled.grammar
        targets_field = self.compiled.fields(rule.targets)
        values_field = self.compiled.fields(rule.values)
        targets: list[int] = []
        values: list[int] = []
        compound = False
        before, separated = -1, False
        for child in tree.children(node):
            kind, number = tree.kinds[child], tree.fields[child]
            if kind in self.compiled.ignored:
                continue
            if kind != ERROR_KIND and not grammar.named[kind]:
                token = grammar.kinds[kind]
                compound = compound or (len(token) > 1 and token[-1] == "=" and token not in (":=", "=="))
                if token == rule.separator and not separated:
                    separated = True
                    side = values if rule.value_first else targets
                    if before >= 0 and not (rule.values if rule.value_first else rule.targets):
                        side.append(before)
                continue
            if number in targets_field:
                targets.append(child)
            elif number in values_field:
                values.append(child)
            elif separated and not (rule.targets if rule.value_first else rule.values):
                side = targets if rule.value_first else values
                if not side:
                    side.append(child)
            before = child
        if not rule.targets and not targets and not separated and before >= 0:
            targets.append(tree.children(node)[0])
        return targets, values, compound

    def bind(self, rule: Binding, node: int) -> bool:
        """Read the values, then assign them."""
        targets, values, compound = self.parts(rule, node)
        if not targets or (rule.needs_value and not values):
            return False
        self.plan(*self.nodes_of(values), *self.assignments(rule, targets, values, compound))
        return True

    def assignments(
        self, rule: Binding, targets: list[int], values: list[int], compound: bool
    ) -> list[tuple[Any, ...]]:
        """One assignment, or one per element where targets and values are sequences of one length."""
        left, right = self.elements(targets), self.elements(values)
        own = compound and rule.augments
        if left and right and len(left) == len(right) > 1:
            return [(self.assign, [a], [b], rule.relation, own) for a, b in zip(left, right, strict=True)]
        return [(self.assign, targets, values, rule.relation, own)]

    def elements(self, nodes: list[int]) -> list[int]:
        """What a side of an assignment consists of; empty where it is a single thing."""
        if len(nodes) != 1:
            return nodes
        if self.tree.kinds[nodes[0]] not in self.compiled.sequences:
            return []
        named, kinds = self.compiled.grammar.named, self.tree.kinds
        children = self.tree.children(nodes[0])
        return [
            c for c in children if kinds[c] != ERROR_KIND and named[kinds[c]] and kinds[c] not in self.compiled.ignored
        ]

    def update(self, rule: Update, node: int) -> bool:
        """The variables of ``i++`` come from themselves."""
        if rule.operators:
            kinds, grammar = self.tree.kinds, self.compiled.grammar
            children = self.tree.children(node)
            if not any(kinds[c] != ERROR_KIND and grammar.kinds[kinds[c]] in rule.operators for c in children):
                return False
        self.assign([node], [node], "computedFrom", False)
        return True

    def loop(self, rule: Loop, node: int) -> bool:
        """Everything, then everything that runs again; inside a repetition once is enough.

        What a second turn can see, it sees in the first repetition: after that, the state at the loop's head is the
        same in every turn.
        """
        tree = self.tree
        once, late = self.compiled.fields(*rule.once), self.compiled.fields(*rule.after)
        children = tree.children(node)
        if rule.clause:
            clauses = self.compiled.clauses[rule.clause]
            children = [part for c in children for part in (tree.children(c) if tree.kinds[c] in clauses else [c])]
        after = [child for child in children if tree.fields[child] in late]
        first = [child for child in children if tree.fields[child] not in late]
        again = [child for child in first if tree.fields[child] not in once]
        turn, more = self.nodes_of(first), self.nodes_of(again)
        if rule.binding is not None:
            targets, values, _ = self.parts(rule.binding, node)
            if not targets:
                return False
            # Types, and whatever else stands in the loop's head, are no part of it: the body comes last.
            head = {*targets, *values}
            body = [child for child in again if child not in head][-1:]
            turn = more = [*self.nodes_of(values), *self.assignments(rule.binding, targets, values, False)]
            turn = more = [*turn, *self.nodes_of(body)]
        if self.repeating or self.loops >= _MAX_LOOPS:
            self.plan(*turn, *self.nodes_of(after))
        else:
            self.loops += 1
            self.plan(*turn, (self.repeat, 1), *more, (self.repeat, -1), *self.nodes_of(after))
        return True

    def repeat(self, change: int) -> None:
        """A repetition begins (1) or ends (-1)."""
        self.repeating += change
        if change < 0:
            self.loops -= 1

    def branch(self, rule: Branch, node: int) -> bool:
        """One arm after the other, each from the same state, then their join."""
        if len(self.arms) >= _MAX_BRANCHES:
            return False
        fields = self.compiled.fields(*rule.alternatives)
        children = self.tree.children(node)
        others = [child for child in children if self.tree.fields[child] in fields]
        first = [child for child in children if self.tree.fields[child] not in fields]
        steps: list[tuple[Any, ...]] = [(self.open_arm, True), *self.nodes_of(first), (self.close_arm,)]
        for other in others:
            steps += [(self.open_arm, False), *self.nodes_of([other]), (self.close_arm,)]
        # Python's elif: an alternative that is a condition leaves the way past it open, unless an else comes last.
        self.plan(*steps, (self.join, rule.keeps_entry or not self.ends_in_else(others)))
        return True

    def ends_in_else(self, others: list[int]) -> bool:
        """Whether one of the arms is always taken."""
        if not others:
            return False
        kind = self.compiled.grammar.kind(self.tree.kinds[others[-1]])
        return kind not in ("elif_clause", "else_if_clause")

    def open_arm(self, first: bool) -> None:
        """Begin an arm, and with the first one a branch."""
        if first:
            self.arms.append([])
        self.journals.append({})

    def close_arm(self) -> None:
        """Remember what the arm assigned, and undo it."""
        before = self.journals.pop()
        self.arms[-1].append({name: self.state[name] for name in before})
        for name, definition in before.items():
            if definition is None:
                del self.state[name]
            else:
                self.state[name] = definition

    def join(self, entry: bool) -> None:
        """After a branch a name is what any of its arms made it."""
        arms = self.arms.pop() + ([{}] if entry else [])
        for name in dict.fromkeys(name for arm in arms for name in arm):
            before = self.state.get(name)
            ways = {arm.get(name, before) for arm in arms} - {None}
            definitions = tuple(sorted(way for way in ways if way is not None))
            if len(definitions) > 1:
                self.joins.append(definitions)
                definitions = (-len(self.joins),)
            self.define(name, definitions[0])

    # Result -----------------------------------------------------------------------------------------------------------

    def spread_use(self) -> None:
        """What comes from a set of definitions comes from each of them."""
        todo = [definition for definition in self.used if definition < 0]
        while todo:
            for definition in self.joins[-todo.pop() - 1]:
                if definition not in self.used:
                    self.used.add(definition)
                    if definition < 0:
                        todo.append(definition)

    def result(self) -> DataFlow:
        """Number the names and list the items."""
        self.spread_use()
        numbers: dict[str, int] = {}
        items, ranges = [], []
        for node in sorted(self.nodes):
            entry = self.nodes[node]
            if not entry.sources and node not in self.used:
                continue
            places, name = entry.sources, entry.name
            if len(places) > 1:
                names = [places[source] for source in sorted(places)]
                for source_name in names:
                    numbers.setdefault(source_name, len(numbers))
                sources = tuple(sorted({numbers[source_name] for source_name in names}))
            else:
                sources = tuple(numbers.setdefault(one, len(numbers)) for one in places.values())
            items.append((numbers.setdefault(name, len(numbers)), entry.relation, sources))
            ranges.append((self.tree.starts[node], self.tree.ends[node]))
        return DataFlow(items, ranges)
