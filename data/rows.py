"""Rows of files as tasks: memory-mapped Arrow tables opened through ``datasets``, turned into tasks one at a time."""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from lightning_dterm.types import CodeTask

Convert = Callable[[Mapping[str, Any], str], CodeTask]
"""Builds a task from a row and the row's place (``file, line n``), which its error messages name."""


class RowError(ValueError):
    """A row that is no task: names the file, the line, the field and the remedy."""

    def __init__(self, place: str, field: str, problem: str) -> None:
        super().__init__(f"{place}, field {field!r}: {problem}")


def expand_files(files: str | Sequence[str], purpose: str) -> list[Path]:
    """Paths of existing files, in the given order; a pattern with ``*`` stands for its matches in sorted order.

    Raises:
        FileNotFoundError: naming the first entry that is no file.
    """
    paths: list[Path] = []
    for entry in [files] if isinstance(files, str) else files:
        path = Path(entry).expanduser()
        matches = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
        if not matches or not all(match.is_file() for match in matches):
            raise FileNotFoundError(f"{purpose}: no file at {path.absolute()}; correct the path in the data config")
        paths += matches
    return paths


class Table(NamedTuple):
    """Memory-mapped rows and where they come from."""

    name: str
    rows: Any
    """A ``datasets.Dataset``."""
    json_lines: bool = False
    """The rows are lines of JSON, in a column ``text``."""


def load_file(path: Path, cache_dir: str | None = None) -> Table:
    """Open one file as a memory-mapped ``datasets.Dataset``.

    JSON lines are kept as text (column ``text``), so that rows may differ in shape and a faulty one can be named;
    ``.parquet`` is opened with its own columns. ``.gz`` and other compressions that ``datasets`` knows are unpacked.

    Raises:
        ValueError: for a file that cannot be read, or holds no row.
    """
    import datasets

    parquet = path.suffix == ".parquet"
    builder = "parquet" if parquet else "text"
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    try:
        rows = datasets.load_dataset(builder, data_files=str(path), split="train", cache_dir=cache_dir)
    except Exception as error:
        kind = "Parquet" if parquet else "UTF-8 text, one JSON object a line"
        cause = error.__cause__ or error
        raise ValueError(f"{path}: not readable as {kind} ({type(cause).__name__}: {cause})") from error
    if not len(rows):
        raise ValueError(f"{path}: the file holds no row")
    return Table(str(path), rows, not parquet)


class TableTasks(Sequence[CodeTask]):
    """The tasks of one or more tables, built from their rows on access.

    Args:
        tables: The tables, in order.
        convert: Builds a task from a row.
    """

    def __init__(self, tables: Sequence[Table], convert: Convert) -> None:
        self.tables, self.convert = list(tables), convert
        self._ends = list(accumulate(len(table.rows) for table in self.tables))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> CodeTask:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[part - 1] if part else 0)
        table = self.tables[part]
        place = f"{table.name}, line {row + 1}"
        fields = table.rows[row]
        return self.convert(_parse(fields["text"], place) if table.json_lines else fields, place)

    def check(self) -> None:
        """Build every task once, so that a malformed row is reported before training and not in its middle."""
        for index in range(len(self)):
            self[index]


def _parse(line: str, place: str) -> Mapping[str, Any]:
    if not line.strip():
        raise RowError(place, "(whole line)", "the line is blank; remove it")
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError(place, "(whole line)", f"not JSON ({error}); write one JSON object a line") from error
    if not isinstance(parsed, dict):
        raise RowError(place, "(whole line)", f"a JSON object is needed, found {type(parsed).__name__}")
    return parsed


def text_field(row: Mapping[str, Any], field: str, place: str) -> str:
    """A field that must be there and hold text, valid Unicode (JSON can write half a surrogate pair).

    Raises:
        RowError: if it is missing or something else.
    """
    value = row.get(field)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowError(place, field, f"not valid Unicode ({error.reason} at {error.start}); repair it") from error
        return value
    if field not in row:
        raise RowError(place, field, f"missing; the row has {', '.join(map(str, row)) or 'no field'}")
    raise RowError(place, field, f"text is needed, found {type(value).__name__}")
