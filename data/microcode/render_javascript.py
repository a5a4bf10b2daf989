"""Print program trees as JavaScript that computes the same values."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_dterm.data.microcode.nodes import Count, Do, For, Function, If, Let, Node, Return, Update, While


def _reassigned(nodes: Sequence[Node], names: set[str]) -> set[str]:
    for node in nodes:
        if isinstance(node, Update):
            names.add(node.name)
        elif isinstance(node, If):
            _reassigned(node.body, names)
            _reassigned(node.orelse, names)
        elif isinstance(node, (For, Count, While)):
            _reassigned(node.body, names)
    return names


def _block(nodes: Sequence[Node], indent: str, changing: set[str], lines: list[str]) -> None:
    inner = indent + "  "
    for node in nodes:
        if isinstance(node, Return):
            lines.extend(indent + line for line in node.js_before)
            lines.append(f"{indent}return {node.value.js};")
            continue
        if isinstance(node, Update):
            lines.append(f"{indent}{node.name} {node.operator} {node.value.js};")
            continue
        if isinstance(node, Let):
            lines.append(f"{indent}{'let' if node.name in changing else 'const'} {node.name} = {node.value.js};")
            continue
        if isinstance(node, Do):
            lines.append(f"{indent}{node.code.js};")
            continue
        if isinstance(node, If):
            lines.append(f"{indent}if ({node.condition.js}) {{")
            _block(node.body, inner, changing, lines)
            if node.orelse:
                lines.append(f"{indent}}} else {{")
                _block(node.orelse, inner, changing, lines)
        elif isinstance(node, For):
            lines.append(f"{indent}for (const {node.target.js} of {node.iterable.js}) {{")
            _block(node.body, inner, changing, lines)
        elif isinstance(node, Count):
            name = node.variable
            lines.append(f"{indent}for (let {name} = {node.start}; {name} {node.stop.js}; {name}++) {{")
            _block(node.body, inner, changing, lines)
        elif isinstance(node, While):
            lines.append(f"{indent}while ({node.condition.js}) {{")
            _block(node.body, inner, changing, lines)
        lines.append(f"{indent}}}")


def render_javascript(functions: Sequence[Function]) -> str:
    """The functions as JavaScript declarations, with a final newline."""
    lines: list[str] = []
    for function in functions:
        lines.append(f"function {function.name}({', '.join(function.parameters)}) {{")
        _block(function.body, "  ", _reassigned(function.body, set()), lines)
        lines.append("}")
    return "\n".join(lines) + "\n"
