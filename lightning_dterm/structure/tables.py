"""What data flow looks like in each language: node types and field names of its tree-sitter grammar, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Relation = Literal["comesFrom", "computedFrom"]


@dataclass(frozen=True, slots=True)
class Binding:
    """A node that gives targets their values.

    Attributes:
        targets: Field of the targets; empty: the node before ``separator``.
        values: Field of the values; empty: the node after ``separator``.
        separator: Token between the two, for grammars without the field.
        relation: ``comesFrom`` for declarations, ``computedFrom`` for assignments.
        value_first: The value stands before the separator (``open(f) as g``).
        augments: A compound operator (``+=``) makes the target one of its own sources.
        needs_value: Without a value the node is read like any other.
    """

    targets: str = ""
    values: str = ""
    separator: str = "="
    relation: Relation = "computedFrom"
    value_first: bool = False
    augments: bool = True
    needs_value: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """A node that computes its variables from themselves (``i++``).

    Attributes:
        operators: Tokens that make it one, where the node type has other meanings too; empty: it always is.
    """

    operators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loop:
    """A node whose parts run again: their variables also come from what the loop itself assigned.

    Attributes:
        once: Fields that run only before the first turn.
        after: Fields that run only after the last turn.
        binding: For loops over a collection: which variables take its elements. Types are left out.
        clause: Node type that holds the ``once`` fields, where it is not the loop itself.
    """

    once: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    binding: Binding | None = None
    clause: str = ""


@dataclass(frozen=True, slots=True)
class Branch:
    """A node with alternatives, each starting from the state before it; what they assign is joined.

    Attributes:
        alternatives: Fields of the alternatives; the rest is the first one. Without any, the state before is joined.
        keeps_entry: The state before is joined even where there is an alternative.
    """

    alternatives: tuple[str, ...] = ("alternative",)
    keeps_entry: bool = False


@dataclass(frozen=True, slots=True)
class Hoist:
    """A node that runs children of one type before the others (``[x for x in y]``)."""

    kind: str


Rule = Binding | Update | Loop | Branch | Hoist


@dataclass(frozen=True, slots=True)
class Table:
    """One language.

    Attributes:
        rules: Node type to what it does. All other nodes are read from left to right.
        names: Node types that become variables where they are first seen.
        literals: Node types that count as one token, unless code stands inside (``f"{x}"``): then that is read.
        sequences: Node types whose elements are paired one to one with another sequence of the same length.
        empty_values: A value without any token of its own (``null``, ``[]``) still makes its target a variable.
    """

    rules: Mapping[str, Rule]
    names: frozenset[str] = frozenset({"identifier"})
    literals: frozenset[str] = frozenset({"string_literal", "char_literal"})
    sequences: frozenset[str] = field(default_factory=frozenset)
    empty_values: bool = True


CONTENTS = frozenset({
    "string_start", "string_content", "string_end", "string_fragment", "multiline_string_fragment", "escape_sequence",
    "escape_interpolation", "string_literal_content", "string_literal_encoding", "raw_string_content", "character",
    "raw_string_delimiter", "raw_string_start", "raw_string_end", "interpreted_string_literal_content",
    "raw_string_literal_content", "character_literal_content", "interpolation_start", "interpolation_quote",
})  # fmt: skip
"""Node types inside a literal that are no code, in any of the languages."""

IGNORED = frozenset({
    "comment", "line_comment", "block_comment", "interpolation_brace", "type_conversion", "format_specifier",
})  # fmt: skip
"""Node types that have no part in data flow, in any of the languages."""

_DECLARED: Relation = "comesFrom"
_ASSIGN = Binding("left", "right")
_NAME_VALUE = Binding("name", "value", relation=_DECLARED)
_C_RULES: dict[str, Rule] = {
    "init_declarator": Binding("declarator", "value", relation=_DECLARED),
    "assignment_expression": _ASSIGN,
    "update_expression": Update(),
    "if_statement": Branch(),
    "for_statement": Loop(once=("initializer",)),
    "while_statement": Loop(),
    "do_statement": Loop(),
}

PYTHON = Table(
    rules={
        "assignment": _ASSIGN,
        "augmented_assignment": _ASSIGN,
        "named_expression": Binding("name", "value"),
        "default_parameter": _NAME_VALUE,
        "typed_default_parameter": _NAME_VALUE,
        "as_pattern": Binding(separator="as", value_first=True),
        "aliased_import": Binding(separator="as", value_first=True, relation=_DECLARED),
        "for_in_clause": _ASSIGN,
        "list_comprehension": Hoist("for_in_clause"),
        "set_comprehension": Hoist("for_in_clause"),
        "dictionary_comprehension": Hoist("for_in_clause"),
        "generator_expression": Hoist("for_in_clause"),
        "if_statement": Branch(),
        "for_statement": Loop(binding=_ASSIGN, after=("alternative",)),
        "while_statement": Loop(after=("alternative",)),
    },
    literals=frozenset({"string"}),
    sequences=frozenset({"pattern_list", "tuple_pattern", "list_pattern", "expression_list", "tuple", "list"}),
)
JAVA = Table(
    rules={
        "variable_declarator": _NAME_VALUE,
        "resource": _NAME_VALUE,
        "assignment_expression": _ASSIGN,
        "update_expression": Update(),
        "if_statement": Branch(),
        "for_statement": Loop(once=("init",)),
        "enhanced_for_statement": Loop(binding=Binding("name", "value")),
        "while_statement": Loop(),
        "do_statement": Loop(),
    },
    literals=frozenset({"string_literal", "character_literal"}),
)
C = Table(rules=_C_RULES)
CPP = Table(
    rules={
        **_C_RULES,
        "optional_parameter_declaration": Binding("declarator", "default_value", relation=_DECLARED),
        "lambda_capture_initializer": Binding("left", "right", relation=_DECLARED),
        "field_declaration": Binding("declarator", "default_value", relation=_DECLARED, needs_value=True),
        "for_range_loop": Loop(binding=Binding("declarator", "right")),
    },
    literals=frozenset({"string_literal", "char_literal", "raw_string_literal"}),
)
CSHARP = Table(
    rules={
        "variable_declarator": Binding(relation=_DECLARED),
        "parameter": Binding("name", relation=_DECLARED, needs_value=True),
        "property_declaration": Binding("name", "value", relation=_DECLARED, needs_value=True),
        "assignment_expression": _ASSIGN,
        "postfix_unary_expression": Update(("++", "--")),
        "prefix_unary_expression": Update(("++", "--")),
        "if_statement": Branch(),
        "for_statement": Loop(once=("initializer",)),
        "foreach_statement": Loop(binding=_ASSIGN),
        "while_statement": Loop(),
        "do_statement": Loop(),
    },
    literals=frozenset({"string_literal", "character_literal", "verbatim_string_literal", "raw_string_literal"})
    | {"interpolated_string_expression"},
    sequences=frozenset({"tuple_expression", "tuple_pattern"}),
)
JAVASCRIPT = Table(
    rules={
        "variable_declarator": _NAME_VALUE,
        "field_definition": Binding("property", "value", relation=_DECLARED),
        "assignment_expression": _ASSIGN,
        "augmented_assignment_expression": _ASSIGN,
        "assignment_pattern": _ASSIGN,
        "object_assignment_pattern": _ASSIGN,
        "update_expression": Update(),
        "if_statement": Branch(),
        "for_statement": Loop(once=("initializer",)),
        "for_in_statement": Loop(binding=_ASSIGN),
        "while_statement": Loop(),
        "do_statement": Loop(),
    },
    names=frozenset({"identifier", "shorthand_property_identifier", "shorthand_property_identifier_pattern"}),
    literals=frozenset({"string", "template_string"}),
    sequences=frozenset({"array_pattern", "array"}),
)
GO = Table(
    rules={
        "var_spec": _NAME_VALUE,
        "const_spec": _NAME_VALUE,
        "short_var_declaration": Binding("left", "right", relation=_DECLARED),
        "assignment_statement": _ASSIGN,
        "range_clause": _ASSIGN,
        "inc_statement": Update(),
        "dec_statement": Update(),
        "if_statement": Branch(),
        "for_statement": Loop(once=("initializer",), clause="for_clause"),
    },
    literals=frozenset({"interpreted_string_literal", "raw_string_literal", "rune_literal"}),
    sequences=frozenset({"expression_list"}),
)
PHP = Table(
    rules={
        "simple_parameter": Binding("name", "default_value", relation=_DECLARED),
        "static_variable_declaration": _NAME_VALUE,
        "property_element": Binding("name", "default_value", relation=_DECLARED),
        "const_element": Binding(relation=_DECLARED),
        "assignment_expression": _ASSIGN,
        "reference_assignment_expression": _ASSIGN,
        "augmented_assignment_expression": _ASSIGN,
        "update_expression": Update(),
        "if_statement": Branch(),
        "for_statement": Loop(once=("initialize",)),
        "foreach_statement": Loop(binding=Binding(separator="as", value_first=True)),
        "while_statement": Loop(),
        "do_statement": Loop(),
    },
    names=frozenset({"name"}),
    literals=frozenset({"string", "encapsed_string"}),
    sequences=frozenset({"list_literal", "array_creation_expression"}),
)

TABLES: Mapping[str, Table] = {
    "python": PYTHON, "java": JAVA, "c": C, "cpp": CPP,
    "csharp": CSHARP, "javascript": JAVASCRIPT, "go": GO, "php": PHP,
}  # fmt: skip
