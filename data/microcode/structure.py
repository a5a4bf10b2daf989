"""Program structure: a key of the syntax tree without names and constants, and the split decided by it."""

from __future__ import annotations

import ast
import hashlib

SPLITS = ("train", "validation", "test")


# Fields that exist in some Python versions only, or that carry a use's context rather than structure.
_IGNORED = ("ctx", "type_comment", "type_ignores", "type_params", "kind")
_MAX_LINES = 1 << 15
_FIELDS: dict[type[ast.AST], tuple[str, ...]] = {}


def _shape(node: ast.AST) -> str:
    kind = type(node)
    if kind is ast.Name or kind is ast.arg:
        return "_"
    if kind is ast.Constant:
        return "#"
    fields = _FIELDS.get(kind)
    if fields is None:
        fields = _FIELDS[kind] = tuple(field for field in kind._fields if field not in _IGNORED)
    if not fields:
        return kind.__name__
    parts: list[str] = []
    for field in fields:
        value = getattr(node, field, None)
        if isinstance(value, ast.AST):
            parts.append(_shape(value))
        elif isinstance(value, list):
            parts.append("[" + ",".join([_shape(item) if isinstance(item, ast.AST) else "_" for item in value]) + "]")
        elif isinstance(value, int):
            parts.append(str(value))
        else:
            parts.append("." if value is None else "_")
    return f"{kind.__name__}({','.join(parts)})"


def structure_key(source: str) -> str:
    """Hash of a Python program's syntax tree with every identifier and constant replaced by a placeholder.

    Names of functions, parameters, variables, attributes and keyword arguments, and the values and types of constants
    do not count; the kinds of nodes, operators and their nesting do.

    Args:
        source: A Python program.

    Returns:
        16 hexadecimal digits, the same on every platform and Python version that parses ``source`` alike.

    Raises:
        SyntaxError: ``source`` is not Python.
    """
    return structure(source)[0]


def structure(source: str) -> tuple[str, int]:
    """The structure key of ``source`` and the number of syntax-tree nodes that enter it, as a measure of difficulty."""
    tree = ast.parse(source)
    return digest(",".join([_shape(statement) for statement in tree.body]))


def digest(shape: str) -> tuple[str, int]:
    """The structure key and the number of nodes of a program whose syntax tree has the normal form ``shape``."""
    nodes = shape.count("(") + shape.count("_") + shape.count("#")
    return hashlib.blake2b(shape.encode(), digest_size=8).hexdigest(), nodes


def expression_shape(expression: str) -> str:
    """The normal form of an expression's syntax tree, as it stands within that of a program."""
    return _shape(ast.parse(expression, mode="eval").body)


def _header(line: str) -> str:
    """The shape of a compound statement's header, its body as NUL and an else branch as SOH."""
    shape = _shape(ast.parse(line + " pass").body[0]).replace("[Pass]", "[\0]")
    return shape.replace("[\0],[])", "[\0],[\1])") if line.startswith("if ") else shape


class LineStructure:
    """Normal forms of the generator's own programs, several times as fast: parses each distinct line once.

    It holds for programs of one statement a line, 4-space indentation and no ``elif``, such as the renderer prints.
    """

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __call__(self, source: str) -> str:
        """The normal form of ``source``, for :func:`digest`."""
        if len(self._known) > _MAX_LINES:
            self._known.clear()
        lines = [line for line in source.split("\n") if line]
        return ",".join(self._block(lines, 0, 0)[0])

    def _block(self, lines: list[str], position: int, indent: int) -> tuple[list[str], int]:
        shapes: list[str] = []
        while position < len(lines) and not lines[position].startswith(" ", indent):
            line = lines[position]
            if len(line) <= indent or (indent and not line.startswith(" " * indent)):
                break
            text = line[indent:]
            if text == "else:":
                break
            shape = self._known.get(text)
            if shape is None:
                parsed = _header(text) if text.endswith(":") else None
                if parsed is None:
                    # A return or break is no module on its own for the compiler, but it is for the parser.
                    parsed = _shape(ast.parse(text).body[0])
                shape = self._known[text] = parsed
            position += 1
            if text.endswith(":"):
                body, position = self._block(lines, position, indent + 4)
                shape = shape.replace("\0", ",".join(body))
                orelse: list[str] = []
                if text.startswith("if ") and position < len(lines) and lines[position] == " " * indent + "else:":
                    orelse, position = self._block(lines, position + 1, indent + 4)
                shape = shape.replace("\1", ",".join(orelse))
            shapes.append(shape)
        return shapes, position


def split_of(key: str) -> str:
    """The split that holds every program of structure ``key``: 80% train, 10% validation, 10% test."""
    bucket = (
        int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4, person=b"microcode-split").digest(), "big") % 10
    )
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"
