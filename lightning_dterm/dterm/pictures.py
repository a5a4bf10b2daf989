"""What weights do, as pictures: over time and at the end (the paper's Figure 3), the rank loss on a fixed pool (Figure
4), the attention over prototypes, and the explanation of one task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from lightning_dterm.dterm.canvas import BLACK, GREY, PALETTE, WHITE, Box, Colour, Label, Line, Picture, Point, blend

_MARGIN = 16
_ROW = 22
Series = Sequence[tuple[float, float]]  # (x, y), x ascending; y may be NaN: a gap


def colours(names: Sequence[str]) -> dict[str, Colour]:
    """A colour for each name; they repeat after eight."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}


def weights_picture(history: Mapping[str, Mapping[str, Series]], names: Sequence[str]) -> Picture:
    """A row per task type: the weight of each component over rollouts, and the last ones as a bar.

    Args:
        history: Task type to (component to (rollout, weight in [0, 1])), components that do not apply left out.
        names: All components, in the order of the legend.
    """
    chosen = colours(names)
    panel, left, width = 120, 70, 460
    picture = Picture(left + width + 250, 60 + max(1, len(history)) * (panel + 40))
    picture.add(Label(_MARGIN, 24, "Reward weights per task type: over rollouts, and at the end", 15))
    _legend(picture, chosen, _MARGIN, 44)
    for row, (task_type, curves) in enumerate(history.items()):
        top = 76 + row * (panel + 40)
        picture.add(Label(left, top - 6, task_type, 13))
        _axes(picture, (left, top, width, panel), (0.0, 1.0), _span(curves.values()))
        for name, curve in curves.items():
            _curve(picture, curve, (left, top, width, panel), (0.0, 1.0), _span(curves.values()), chosen[name])
        _proportions(picture, curves, chosen, left + width + 40, top, panel)
    return picture


def _proportions(
    picture: Picture, curves: Mapping[str, Series], chosen: Mapping[str, Colour], left: float, top: float, height: float
) -> None:
    """The last weights stacked, their shares of the sum beside them."""
    last = {name: curve[-1][1] for name, curve in curves.items() if curve and curve[-1][1] > 0}
    total, bottom, lowest = sum(last.values()), top + height, top + height + 12
    for name, weight in last.items():
        tall = height * weight / total
        picture.add(Box(left, bottom - tall, 40, tall, chosen[name]))
        lowest = min(lowest - 12, bottom - tall / 2 + 4)  # labels of thin shares do not overlap
        picture.add(Label(left + 48, lowest, f"{weight:.2f} {name}", 11))
        bottom -= tall


def curves_picture(title: str, curves: Mapping[str, Series], mean: Series) -> Picture:
    """Several curves over rollouts in one frame, and their mean, black and bold.

    Args:
        title: Heading.
        curves: Name to (rollout, value).
        mean: (rollout, value).
    """
    values = [y for curve in (*curves.values(), mean) for _, y in curve if math.isfinite(y)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    pad = 0.05 * (high - low) or 0.05
    limits, span = (low - pad, high + pad), _span((*curves.values(), mean))
    frame = (70.0, 64.0, 620.0, 260.0)
    picture = Picture(760, 360)
    picture.add(Label(_MARGIN, 24, title, 15))
    chosen = colours(list(curves))
    _legend(picture, {**chosen, "mean": BLACK}, _MARGIN, 46)
    _axes(picture, frame, limits, span)
    for name, curve in curves.items():
        _curve(picture, curve, frame, limits, span, chosen[name])
    _curve(picture, mean, frame, limits, span, BLACK, 3)
    return picture


def attention_picture(attention: Mapping[str, Sequence[float]]) -> Picture:
    """A row per task type, a column per prototype, darker the more attention there is.

    Args:
        attention: Task type to its m attentions, which sum to 1.
    """
    columns = max((len(row) for row in attention.values()), default=0)
    left, top, cell = 150, 76, 54
    picture = Picture(
        max(420, left + columns * cell + _MARGIN), top + max(1, len(attention)) * (cell // 2 + 6) + _MARGIN
    )
    picture.add(Label(_MARGIN, 24, "Attention over prototypes per task type", 15))
    for column in range(columns):
        picture.add(Label(left + (column + 0.5) * cell, top - 8, str(column), 11, "middle", GREY))
    for row, (task_type, values) in enumerate(attention.items()):
        y = top + row * (cell // 2 + 6)
        picture.add(Label(left - 8, y + 18, task_type, 12, "end"))
        for column, value in enumerate(values):
            picture.add(Box(left + column * cell, y, cell - 2, cell // 2 + 4, blend(PALETTE[0], value)))
            dark = WHITE if value > 0.6 else BLACK
            picture.add(Label(left + (column + 0.5) * cell - 1, y + 19, f"{value:.2f}", 11, "middle", dark))
    return picture


def bars_picture(title: str, sections: Mapping[str, Sequence[tuple[str, float, float | None]]]) -> Picture:
    """Horizontal bars in named sections.

    Args:
        title: Heading.
        sections: Heading to (name, share in [0, 1], a share to mark with a stroke or None).
    """
    rows = sum(len(section) + 2 for section in sections.values())
    left, width = 160, 360
    picture = Picture(left + width + 90, 46 + rows * _ROW)
    picture.add(Label(_MARGIN, 26, title, 14))
    y = 46.0
    for heading, bars in sections.items():
        picture.add(Label(_MARGIN, y + 16, heading, 12, colour=GREY))
        y += _ROW
        for name, share, mark in bars:
            picture.add(Label(left - 8, y + 15, name, 12, "end"))
            picture.add(Box(left, y + 3, width * share, _ROW - 6, PALETTE[0]))
            picture.add(Label(left + width + 8, y + 15, f"{share:.3f}", 12))
            if mark is not None:
                x = left + width * mark
                picture.add(Line(((x, y + 1), (x, y + _ROW - 1)), PALETTE[3], 2))
            y += _ROW
        y += _ROW
    return picture


def _legend(picture: Picture, chosen: Mapping[str, Colour], x: float, y: float) -> None:
    for name, colour in chosen.items():
        picture.add(Box(x, y - 9, 10, 10, colour), Label(x + 14, y, name, 11))
        x += 28 + 6.6 * len(name)


def _span(curves: Iterable[Series]) -> tuple[float, float]:
    places = [x for curve in curves for x, _ in curve]
    return (min(places), max(places)) if places else (0.0, 1.0)


def _at(value: float, limits: tuple[float, float], low: float, high: float) -> float:
    """Where ``value`` of ``limits`` lies between the pixels ``low`` and ``high``; the middle where limits coincide."""
    width = limits[1] - limits[0]
    share = (value - limits[0]) / width if width else 0.5
    return low + share * (high - low)


def _axes(
    picture: Picture, frame: tuple[float, float, float, float], limits: tuple[float, float], span: tuple[float, float]
) -> None:
    left, top, width, height = frame
    picture.add(Line(((left, top), (left, top + height), (left + width, top + height)), GREY))
    for share in (0.0, 0.5, 1.0):
        y = top + height - share * height
        value = limits[0] + share * (limits[1] - limits[0])
        picture.add(Line(((left - 4, y), (left, y)), GREY), Label(left - 8, y + 4, f"{value:.2f}", 10, "end", GREY))
    picture.add(Label(left, top + height + 14, f"{span[0]:g}", 10, "middle", GREY))
    picture.add(Label(left + width, top + height + 14, f"rollout {span[1]:g}", 10, "middle", GREY))


def _curve(
    picture: Picture,
    curve: Series,
    frame: tuple[float, float, float, float],
    limits: tuple[float, float],
    span: tuple[float, float],
    colour: Colour,
    width: int = 2,
) -> None:
    """The curve, interrupted where a value is not known; a lone point is a dot."""
    left, top, wide, height = frame
    pieces: list[list[Point]] = [[]]
    for x, y in curve:
        if math.isfinite(y):
            pieces[-1].append((_at(x, span, left, left + wide), _at(y, limits, top + height, top)))
        elif pieces[-1]:
            pieces.append([])
    for piece in pieces:
        if len(piece) > 1:
            picture.add(Line(tuple(piece), colour, width))
        elif piece:
            picture.add(Box(piece[0][0] - 2, piece[0][1] - 2, 4, 4, colour))
