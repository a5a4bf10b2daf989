"""Heat maps of completions as data: which token got how much from which component, and what GAE made of it."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

FORMAT = "lightning-dterm heat map"
VERSION = 1
LEVELS = 12
"""Steps of colour on either side of zero."""
_MAX_LABEL = 40


class HeatMapError(ValueError):
    """A file is not a heat map of this package; the message says why."""


@dataclass(frozen=True)
class HeatMapRow:
    """One row of a heat map.

    Attributes:
        name: ``total``, ``kl``, ``advantage``, ``value`` or a component's name.
        values: One finite number a token.
        score: A component's reward before it is weighted: the raw score, unless the weighting modulates or normalises
            it; None for the other rows, or where it is masked.
        alpha: A component's weight; None for the other rows, which is how they are told from components.
    """

    name: str
    values: tuple[float, ...]
    score: float | None = None
    alpha: float | None = None

    @property
    def is_reward(self) -> bool:
        """A component, ``kl`` or ``total``, which share one scale; advantage and value have their own."""
        return self.alpha is not None or self.name not in ("advantage", "value")


@dataclass(frozen=True)
class HeatMap:
    """One completion of T tokens and what each token got.

    Attributes:
        task_id: Of the task.
        task_type: Of the task.
        prompt: What the actor was given.
        tokens: T texts; joined they are the completion. Empty for special tokens and unfinished characters.
        pieces: T vocabulary entries, shown where a text is empty.
        code: T flags: the token overlaps code.
        rows: The components in column order, then ``kl`` (where it is part of the reward), ``total``, ``advantage``
            and ``value`` where known.
        finished: The completion ended by itself.
        success: The task's own success metric in [0, 1]; None where unknown.
    """

    task_id: str
    task_type: str
    prompt: str
    tokens: tuple[str, ...]
    pieces: tuple[str, ...]
    code: tuple[bool, ...]
    rows: tuple[HeatMapRow, ...]
    finished: bool
    success: float | None = None

    def __post_init__(self) -> None:
        """Check lengths and numbers.

        Raises:
            HeatMapError: A row, ``pieces`` or ``code`` is not as long as ``tokens``, or a number is not finite.
        """
        count = len(self.tokens)
        for name, given in (("pieces", self.pieces), ("code", self.code)):
            if len(given) != count:
                raise HeatMapError(f"{self.task_id}: {len(given)} {name} for {count} tokens")
        for row in self.rows:
            if len(row.values) != count:
                raise HeatMapError(f"{self.task_id}: row {row.name!r} has {len(row.values)} values for {count} tokens")
            if not all(math.isfinite(value) for value in row.values):
                raise HeatMapError(f"{self.task_id}: row {row.name!r} has a value that is not finite")

    def scale_of(self, row: HeatMapRow) -> float:
        """The value of full colour: the largest of the rewards, or of the row itself for advantage and value."""
        rows = [other for other in self.rows if other.is_reward] if row.is_reward else [row]
        return max((abs(value) for other in rows for value in other.values), default=0.0)

    def labels(self) -> list[str]:
        """What stands above each column: the token's text made visible, or its vocabulary entry in angle brackets."""
        pairs = zip(self.tokens, self.pieces, strict=True)
        return [shown(token) if token else f"⟨{shown(piece)}⟩" for token, piece in pairs]

    def lines(self, widths: Sequence[int], limit: int) -> list[range]:
        """Cut the tokens into ranges: before what follows a line break, and where ``limit`` columns are full.

        Line breaks in a row, and tokens without text at the end, stay with the line before them.

        Args:
            widths: Columns each token takes.
            limit: Columns of a line, at least 1; a token that is wider by itself has a line of its own.
        """
        found: list[range] = []
        start, used, ended = 0, 0, False
        for index, (token, width) in enumerate(zip(self.tokens, widths, strict=True)):
            if used and (used + width > limit or (ended and token.strip("\r\n"))):
                found.append(range(start, index))
                start, used, ended = index, 0, False
            used += width
            ended = ended or "\n" in token
        return [*found, range(start, len(self.tokens))] if self.tokens else []


def level(value: float, scale: float) -> int:
    """Signed colour step in ``[-LEVELS, LEVELS]``: the square root of ``value / scale``, so that small shares show.

    0 for shares below about 0.2%.
    """
    if scale <= 0:
        return 0
    step = round(LEVELS * math.sqrt(min(abs(value) / scale, 1.0)))
    return step if value > 0 else -step


def shown(text: str) -> str:
    """``text`` with blanks, controls and invisible or direction-changing characters made visible; cut at 40."""
    marks = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
    short = text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…"
    return "".join(marks.get(character) or _visible(character) for character in short)


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    hidden = category[0] == "C" or category in ("Zl", "Zp", "Zs") or character in "\u3164\uffa0\u115f\u1160"
    return f"⟨{ord(character):X}⟩" if hidden and character != "\ufffd" else character


def describe(row: HeatMapRow) -> str:
    """A row's name and sum: ``tests 0.450 = 0.90 x 0.50`` for a component, ``tests: not applicable`` if masked."""
    total = f"{round(sum(row.values), 3) + 0.0:+.3f}"  # no minus before a zero
    if row.alpha is None:
        return f"{shown(row.name)} {total}" if row.is_reward else shown(row.name)
    if row.score is None:
        return f"{shown(row.name)} n/a"
    return f"{shown(row.name)} {total} = {row.score:.2f} x {row.alpha:.2f}"


def to_json(title: str, maps: Sequence[HeatMap]) -> str:
    """Heat maps as JSON text, numbers rounded to 7 significant digits."""
    document = {"format": FORMAT, "version": VERSION, "title": title, "maps": [_rounded(asdict(m)) for m in maps]}
    return json.dumps(document, ensure_ascii=True, allow_nan=False) + "\n"


def _rounded(item: Any) -> Any:
    if isinstance(item, float):
        return float(f"{item:.7g}")
    if isinstance(item, dict):
        return {key: _rounded(value) for key, value in item.items()}
    return [_rounded(value) for value in item] if isinstance(item, (list, tuple)) else item


def read_json(path: str | Path) -> tuple[str, list[HeatMap]]:
    """Title and heat maps of a file written by :func:`to_json`.

    Raises:
        HeatMapError: The file is missing, not JSON, of another kind or version, or incomplete.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise HeatMapError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise HeatMapError(f"{path} is not JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise HeatMapError(f"{path} holds no heat maps: give a file that HeatMapLogger wrote (heatmaps/step_*.json)")
    if document.get("version") != VERSION:
        raise HeatMapError(f"{path} has version {document.get('version')!r}, this package reads {VERSION}")
    try:
        return str(document["title"]), [_parse(item) for item in document["maps"]]
    except HeatMapError as error:
        raise HeatMapError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise HeatMapError(f"{path} is incomplete ({type(error).__name__}: {error})") from error


def _parse(item: Mapping[str, Any]) -> HeatMap:
    given = {field.name: item[field.name] for field in fields(HeatMap)}
    rows = tuple(
        HeatMapRow(str(row["name"]), tuple(map(float, row["values"])), _optional(row["score"]), _optional(row["alpha"]))
        for row in given["rows"]
    )
    return HeatMap(
        task_id=str(given["task_id"]),
        task_type=str(given["task_type"]),
        prompt=str(given["prompt"]),
        tokens=tuple(map(str, given["tokens"])),
        pieces=tuple(map(str, given["pieces"])),
        code=tuple(map(bool, given["code"])),
        rows=rows,
        finished=bool(given["finished"]),
        success=_optional(given["success"]),
    )


def _optional(value: Any) -> float | None:
    if value is None:
        return None
    if not math.isfinite(float(value)):
        raise HeatMapError(f"{value!r} is not finite")
    return float(value)
