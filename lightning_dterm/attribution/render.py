"""Heat maps for people: a self-contained HTML page, and a terminal rendering with rich.

Completions are hostile text. The page has no script and forbids any by its content security policy, every character of
model or data is escaped, and controls, invisible and direction-changing characters are spelled out.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.style import Style
from rich.text import Text

from lightning_dterm.attribution.heatmap import LEVELS, HeatMap, HeatMapRow, describe, level, shown

_BLUE, _RED = (33, 102, 172), (178, 24, 43)  # ends of ColorBrewer's RdBu, told apart without colour vision
_HTML_COLUMNS = 96
_MAX_PROMPT = 4000
_CSP = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5em; color: #1a1a1a; background: #fff; color-scheme: light; }
h1 { font-size: 1.3em; } h2 { font-size: 1.05em; margin: 1.6em 0 .2em; }
table { border-collapse: collapse; margin: .5em 0; }
th, td { font: 12px/1.25 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre; padding: 0 1px; }
th { text-align: left; font-weight: normal; color: #555; padding-right: 10px; min-width: 21em; }
td { border: 1px solid #e4e4e4; height: 1.05em; }
td.t { border: 0; unicode-bidi: isolate; font-weight: bold; }
td.t.o { color: #999; font-weight: normal; }
tr.r th, tr.r td { border-top: 2px solid #888; }
p, pre { margin: .2em 0; } pre { background: #f6f6f6; padding: .5em; white-space: pre-wrap; }
.k { display: inline-block; width: 12px; height: 12px; }
"""


def colour(step: int) -> tuple[int, int, int]:
    """Red, green and blue (0 to 255) of a colour step: white at 0, blue above, red below."""
    end = _BLUE if step > 0 else _RED
    share = abs(step) / LEVELS
    red, green, blue = (round(255 + (channel - 255) * share) for channel in end)
    return red, green, blue


def html_page(title: str, maps: Sequence[HeatMap]) -> str:
    """One page with every map, needing nothing but itself.

    Args:
        title: Heading and title of the page.
        maps: The heat maps.

    Returns:
        An HTML document, ASCII only: whatever serves it, no encoding can be mistaken.
    """
    body = "\n".join(_section(number, one) for number, one in enumerate(maps, 1))
    page = (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_CSP}">'
        f'<meta name="viewport" content="width=device-width"><title>{_text(title)}</title>'
        f"<style>{_STYLE}{_level_rules()}</style></head>\n<body><h1>{_text(title)}</h1>\n{_legend()}\n{body}\n</body></html>\n"
    )
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _text(text: str) -> str:
    return escape(shown_whole(text))


def shown_whole(text: str) -> str:
    """:func:`shown` for text of any length and several lines: blanks and line breaks stay."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(" ".join("".join(shown(c) for c in word) for word in line.split(" ")) for line in lines)


def _level_rules() -> str:
    steps = [step for step in range(-LEVELS, LEVELS + 1) if step]
    return "\n".join(f".{_class(step)} {{ background: rgb{colour(step)}; }}" for step in steps)


def _class(step: int) -> str:
    return f"{'p' if step > 0 else 'n'}{abs(step)}"


def _legend() -> str:
    keys = "".join(f'<span class="k {_class(step) if step else ""}"></span>' for step in range(-LEVELS, LEVELS + 1))
    return (
        f"<p>negative {keys} positive; depth grows with the square root. Grey tokens are not code. Components, kl and "
        "total share one scale; advantage and value have their own. Numbers beside the names are sums over the "
        "completion; point at a cell for its own.</p>"
    )


def _section(number: int, heat_map: HeatMap) -> str:
    labels = heat_map.labels()
    lines = heat_map.lines([cell_len(label) + 1 for label in labels], _HTML_COLUMNS)
    tables = "\n".join(_table(heat_map, labels, line) for line in lines)
    cut = len(heat_map.prompt) - _MAX_PROMPT
    prompt = _text(heat_map.prompt[:_MAX_PROMPT]) + (f"\n({cut} more characters)" if cut > 0 else "")
    return (
        f"<h2>{number}: {_text(heat_map.task_id)}</h2>\n<p>{escape(_summary(heat_map))}</p>\n"
        f"<details><summary>prompt</summary><pre>{prompt}</pre></details>\n{tables}"
    )


def _table(heat_map: HeatMap, labels: Sequence[str], line: range) -> str:
    tokens = "".join(f'<td class="t{"" if heat_map.code[at] else " o"}">{escape(labels[at])}</td>' for at in line)
    return f"<table><tr><th></th>{tokens}</tr>{''.join(_row(heat_map, row, line) for row in heat_map.rows)}</table>"


def _row(heat_map: HeatMap, row: HeatMapRow, line: range) -> str:
    scale = heat_map.scale_of(row)
    cells = []
    for at in line:
        value = row.values[at]
        step = level(value, scale)
        kind = f' class="{_class(step)}"' if step else ""
        cells.append(f'<td{kind} title="{value:+.4g}"></td>' if value else "<td></td>")
    rule = ' class="r"' if row.name == "total" and row.alpha is None else ""
    return f"<tr{rule}><th>{escape(describe(row))}</th>{''.join(cells)}</tr>"


def _summary(heat_map: HeatMap) -> str:
    parts = [shown(heat_map.task_type), f"{len(heat_map.tokens)} tokens{'' if heat_map.finished else ' (cut)'}"]
    if heat_map.success is not None:
        parts.append(f"success {heat_map.success:.2f}")
    return ", ".join(parts)


class TerminalHeatMap:
    """A heat map as a rich renderable: the tokens of a line, below them one row of coloured cells a component.

    Cells also hold ``+`` or ``-``, so that the signs can be read without colour.
    """

    def __init__(self, heat_map: HeatMap) -> None:
        self.heat_map = heat_map

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the map out in the console's width."""
        heat_map = self.heat_map
        labels = heat_map.labels()
        names = [describe(row) for row in heat_map.rows]
        margin = min(max((cell_len(name) for name in names), default=0), options.max_width // 2) + 1
        room = max(options.max_width - margin, 8)
        clipped = [Text(label) for label in labels]
        for label in clipped:
            label.truncate(room - 1, overflow="ellipsis")
        widths = [label.cell_len + 1 for label in clipped]
        heading = Text(f"{shown(heat_map.task_id)}: ", style="bold") + Text(_summary(heat_map))
        parts: list[Text] = [heading]
        for line in heat_map.lines(widths, room):
            parts.append(self._tokens(clipped, line, margin))
            parts += [
                self._cells(row, name, widths, line, margin) for row, name in zip(heat_map.rows, names, strict=True)
            ]
            parts.append(Text(""))
        yield Group(*parts)

    def _tokens(self, labels: Sequence[Text], line: range, margin: int) -> Text:
        text = Text(" " * margin, no_wrap=True)
        for at in line:
            text.append(labels[at].plain, style="bold" if self.heat_map.code[at] else "dim")
            text.append(" ")
        return text

    def _cells(self, row: HeatMapRow, name: str, widths: Sequence[int], line: range, margin: int) -> Text:
        text = Text(name, no_wrap=True)
        text.truncate(margin - 1, overflow="ellipsis", pad=True)
        text.append(" ")
        scale = self.heat_map.scale_of(row)
        for at in line:
            step = level(row.values[at], scale)
            sign = "+" if step > 0 else "-" if step else " "
            text.append(sign * (widths[at] - 1), style=_style(step))
            text.append(" ")
        return text


def _style(step: int) -> Style:
    if not step:
        return Style()
    red, green, blue = colour(step)
    ink = "white" if abs(step) > LEVELS // 2 else "black"
    return Style(color=ink, bgcolor=f"rgb({red},{green},{blue})")
