"""Runs a program's nodes in order and records which token comes from which."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial

from lightning_dterm.structure.compiled import Compiled
from lightning_dterm.structure.parsing import ERROR_KIND, SyntaxTree
from lightning_dterm.structure.reading import read_tokens
from lightning_dterm.structure.tables import Binding, Branch, Loop, Rule, Update

_MAX_LOOPS = 16
_MAX_BRANCHES = 64

Item = tuple[int, str, tuple[int, ...]]
Range = tuple[int, int]
Step = Callable[[], object]


@dataclass(frozen=True, eq=False)
class DataFlow:
    """A program's items in the order of their tokens, and the character range of each one's token."""

    items: list[Item]
    ranges: list[Range]

    def __post_init__(self) -> None:
        assert len(self.items) == len(self.ranges)

    @cached_property
    def counts(self) -> Counter[Item]:
        """How often each item occurs: a reference is asked again and again."""
        return Counter(self.items)


class Machine:
    """Runs a program's nodes in order over the state *name to the token that defined it last*.

    A definition is a token's index or, where branches meet, a negative number for a set of definitions.
    """

    def __init__(self, tree: SyntaxTree, compiled: Compiled) -> None:
        self.tree, self.compiled, self.table = tree, compiled, compiled.table
        self.reading = read_tokens(tree, compiled)
        self.state: dict[str, int] = {}
        self.nodes: dict[int, tuple[str, set[int]]] = {}  # token to its relation and its sources
        self.used: set[int] = set()
        self.joins: list[tuple[int, ...]] = []
        self.journals: list[dict[str, int | None]] = []
        self.arms: list[list[dict[str, int]]] = []
        self.repeating = self.loops = 0
        self.todo: list[Step] = [partial(self.visit, 0, len(tree))]

    def run(self) -> None:
        """Work until nothing is left to do."""
        todo = self.todo
        while todo:
            todo.pop()()

    def plan(self, *operations: Step) -> None:
        """Do these next, in this order."""
        self.todo.extend(reversed(operations))

    def nodes_of(self, nodes: Iterable[int]) -> list[Step]:
        """Operations that visit some nodes."""
        visit, stops = self.visit, self.tree.stops
        return [partial(visit, node, stops[node]) for node in nodes]

    def visit(self, node: int, stop: int) -> None:
        """Read everything in ``[node, stop)`` from left to right."""
        order = self.reading.order
        first = bisect_left(order, node)
        self.walk(first, bisect_left(order, stop, first))

    def walk(self, first: int, last: int) -> None:
        """As :meth:`visit`, by places in the order of reading."""
        kinds, rules, names, order = self.tree.kinds, self.compiled.rules, self.compiled.names, self.reading.order
        words, state, nodes = self.reading.words, self.state, self.nodes
        for place in range(first, last):
            node = order[place]
            kind = kinds[node]
            if kind in rules:
                after = bisect_left(order, self.tree.stops[node], place + 1, last)
                self.todo.append(partial(self.walk, after, last))
                if self.apply(rules[kind], node):
                    return
                self.todo.pop()
                continue
            # A token is read: it comes from what defined it, or is seen for the first time.
            if node not in nodes:
                nodes[node] = ("comesFrom", set())
            name = words[node]
            if name in state:
                self.used.add(state[name])
                nodes[node][1].add(node)
            elif kind in names:
                self.define(name, node)

    def define(self, name: str, definition: int) -> None:
        """From here on ``name`` is what ``definition`` made it."""
        if self.journals:
            self.journals[-1].setdefault(name, self.state.get(name))
        self.state[name] = definition

    def assign(self, targets: list[int], values: list[int], relation: str, own: bool) -> None:
        """Every token of the targets gets its value from every token of the values (and from itself)."""
        tokens, stops, state = self.reading.tokens, self.tree.stops, self.state
        sources = set(tokens((value, stops[value]) for value in values))
        places = tokens((target, stops[target]) for target in targets)
        if own:
            self.used.update(state[name] for name in places.values() if name in state)
            sources.update(places)
        self.used.update(sources)
        for node, name in places.items():
            declared = not values and relation == "comesFrom"  # an assignment has a value, be it a bare ``this``
            if node not in self.nodes and (sources or declared or self.table.empty_values):
                self.nodes[node] = (relation, set())
            if node in self.nodes:
                self.nodes[node][1].update(sources)
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
        rest = [child for child in children if self.tree.kinds[child] not in kinds]
        self.plan(*self.nodes_of([*first, *rest]))
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

    def assignments(self, rule: Binding, targets: list[int], values: list[int], compound: bool) -> list[Step]:
        """One assignment, or one per element where targets and values are sequences of one length."""
        left, right = self.elements(targets), self.elements(values)
        own = compound and rule.augments
        if left and right and len(left) == len(right) > 1:
            return [partial(self.assign, [a], [b], rule.relation, own) for a, b in zip(left, right, strict=True)]
        return [partial(self.assign, targets, values, rule.relation, own)]

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
            self.plan(*turn, partial(self.repeat, 1), *more, partial(self.repeat, -1), *self.nodes_of(after))
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
        steps: list[Step] = [partial(self.open_arm, True), *self.nodes_of(first), self.close_arm]
        for other in others:
            steps += [partial(self.open_arm, False), *self.nodes_of([other]), self.close_arm]
        # Python's elif: an alternative that is a condition leaves the way past it open, unless an else comes last.
        self.plan(*steps, partial(self.join, rule.keeps_entry or not self.ends_in_else(others)))
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
        starts, ends, words, used = self.tree.starts, self.tree.ends, self.reading.words, self.used
        numbers: dict[str, int] = {}
        items: list[Item] = []
        ranges: list[Range] = []
        for node, (relation, places) in sorted(self.nodes.items()):
            sources: tuple[int, ...] = ()
            if len(places) > 1:
                # One after the other: each may be new.
                sources = tuple(sorted({numbers.setdefault(words[place], len(numbers)) for place in sorted(places)}))
            elif places:
                (place,) = places
                sources = (numbers.setdefault(words[place], len(numbers)),)
            elif node not in used:
                continue
            items.append((numbers.setdefault(words[node], len(numbers)), relation, sources))
            ranges.append((starts[node], ends[node]))
        return DataFlow(items, ranges)
