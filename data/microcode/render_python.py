"""Print program trees as Python."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_dterm.data.microcode.nodes import Count, Do, For, Function, If, Let, Node, Return, Update, While


def _block(nodes: Sequence[Node], indent: str, lines: list[str]) -> None:
    inner = indent + "    "
    for node in nodes:
        if isinstance(node, Return):
            lines.append(f"{indent}return {node.value.py}")
        elif isinstance(node, Update):
            lines.append(f"{indent}{node.name} {node.operator} {node.value.py}")
        elif isinstance(node, If):
            lines.append(f"{indent}if {node.condition.py}:")
            _block(node.body, inner, lines)
            if node.orelse:
                lines.append(f"{indent}else:")
                _block(node.orelse, inner, lines)
        elif isinstance(node, For):
            lines.append(f"{indent}for {node.target.py} in {node.iterable.py}:")
            _block(node.body, inner, lines)
        elif isinstance(node, Let):
            lines.append(f"{indent}{node.name} = {node.value.py}")
        elif isinstance(node, Do):
            lines.append(f"{indent}{node.code.py}")
        elif isinstance(node, Count):
            span = node.stop.py if node.start == "0" else f"{node.start}, {node.stop.py}"
            lines.append(f"{indent}for {node.variable} in range({span}):")
            _block(node.body, inner, lines)
        elif isinstance(node, While):
            lines.append(f"{indent}while {node.condition.py}:")
            _block(node.body, inner, lines)


def render_python(functions: Sequence[Function]) -> str:
    """The functions as a Python module, two blank lines apart, with a final newline."""
    texts: list[str] = []
    for function in functions:
        lines = [f"def {function.name}({', '.join(function.parameters)}):"]
        _block(function.body, "    ", lines)
        texts.append("\n".join(lines) + "\n")
    return "\n\n".join(texts)
