from __future__ import annotations

import io
import json
import math
import re
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lightning_dterm.attribution import show
from lightning_dterm.attribution.heatmap import (
    LEVELS,
    HeatMap,
    HeatMapError,
    HeatMapRow,
    describe,
    level,
    read_json,
    shown,
    to_json,
)
from lightning_dterm.attribution.render import TerminalHeatMap, colour, html_page

HOSTILE = [
    "<script>alert(1)</script>", "</table></body>", "<!--", "-->", "&lt;", "&#60;b", '" onclick="x',
    "'><img src=x onerror=y>", "[red]x[/red]", "[/]", "[link=http://x]y", "\x1b[31m", "\x1b]0;title\x07", "\x00",
    "\u202e", "\u200b", "\u2028", "\ud800", "]]>", "\r", "\n", "\t", "    ", "", "漢字", "é", "e\u0301", "x" * 90,
    "\u3164",
]  # fmt: skip


def heat_map(tokens: list[str], rows: tuple[HeatMapRow, ...] | None = None, **changed: object) -> HeatMap:
    count = len(tokens)
    given_rows = rows or (
        HeatMapRow("tests", (0.25,) * count, 0.5, 0.5),
        HeatMapRow("total", (-0.5,) * count),
        HeatMapRow("value", (2.0,) * count),
    )
    one = HeatMap("t/1", "repair", "prompt", tuple(tokens), ("<eos>",) * count, (True,) * count, given_rows, True, 0.5)
    return replace(one, **changed)  # type: ignore[arg-type]


class Page(HTMLParser):
    """What a browser would see: elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs
        if tag not in ("meta",):
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag  # everything is closed in order: nothing broke out

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "span", "details", "summary", "pre", "table",
    "tr", "th", "td",
}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    tokens=st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=6)), max_size=20),
    name=st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8)),
)
def test_hostile_text_stays_text(tokens: list[str], name: str) -> None:
    rows = (HeatMapRow(name, (0.5,) * len(tokens), 0.5, 1.0), HeatMapRow("value", (0.0,) * len(tokens)))
    one = heat_map(tokens, rows, task_id=name, task_type=name, prompt="".join(tokens))
    text = html_page(name, [one])
    text.encode("ascii")
    page = Page(text)
    assert page.open == []
    assert set(page.elements) <= ALLOWED
    assert {key for key, _ in page.attributes} <= {"class", "title", "lang", "charset", "http-equiv", "content", "name"}
    assert page.elements.count("td") == 3 * len(tokens)
    tables = text.partition("</details>")[2]
    heads = [cell for cell in page.cells if cell]
    assert heads == one.labels()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", tables)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for cell in page.cells for c in cell)
    assert "src=" not in re.sub(r">[^<]*<", "><", text)


def test_page_forbids_scripts_and_the_network() -> None:
    page = Page(html_page("t", [heat_map(["a"])]))
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert "script" not in page.elements


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=6)), max_size=20),
    width=st.integers(20, 150),
)
def test_terminal_writes_no_escape_of_the_models_and_keeps_its_width(tokens: list[str], width: int) -> None:
    plain = io.StringIO()
    Console(file=plain, width=width, force_terminal=False, highlight=False).print(TerminalHeatMap(heat_map(tokens)))
    text = plain.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e\u200b\u2028]", text)
    assert text.count("tests") == text.count("total") >= bool(tokens)
    coloured = io.StringIO()
    console = Console(file=coloured, width=width, force_terminal=True, color_system="truecolor", highlight=False)
    console.print(TerminalHeatMap(heat_map(tokens)))
    escapes = re.findall(r"\x1b\[?[^m]*m?", coloured.getvalue())
    assert all(re.fullmatch(r"\x1b\[[0-9;]*m", escape) for escape in escapes)  # rich's own colours only
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured.getvalue()) == text


def test_terminal_by_hand() -> None:
    rows = (HeatMapRow("ok", (0.5, -1.0, 0.0), 0.25, 1.0), HeatMapRow("value", (0.0, 0.0, 3.0)))
    file = io.StringIO()
    Console(file=file, width=60).print(TerminalHeatMap(heat_map(["if", " x", ""], rows, code=(True, True, False))))
    assert [line.rstrip() for line in file.getvalue().splitlines()] == [
        "t/1: repair, 3 tokens, success 0.50",
        "                        if ·x ⟨<eos>⟩",
        "ok -0.500 = 0.25 x 1.00 ++ --",
        "value                         +++++++",
        "",
    ]


@settings(max_examples=200)
@given(
    tokens=st.lists(st.sampled_from(["a", " b", "\n", "c\n", "", "  ", "\n\n"]), max_size=30),
    limit=st.integers(1, 12),
    data=st.data(),
)
def test_lines_tile_the_tokens(tokens: list[str], limit: int, data: st.DataObject) -> None:
    widths = data.draw(st.lists(st.integers(1, 9), min_size=len(tokens), max_size=len(tokens)))
    lines = heat_map(tokens).lines(widths, limit)
    assert [at for line in lines for at in line] == list(range(len(tokens)))
    for line in lines:
        assert sum(widths[at] for at in line) <= limit or len(line) == 1
        text = "".join(tokens[at] for at in line)
        assert "\n" not in text.rstrip("\n")  # nothing but line breaks follows a line break


def test_lines_by_hand() -> None:
    one = heat_map(["def", ":\n", "\n", "  ", "x", "\n", ""])
    assert one.lines([1] * 7, 99) == [range(0, 3), range(3, 7)]
    assert one.lines([1] * 7, 2) == [range(0, 2), range(2, 3), range(3, 5), range(5, 7)]


def test_levels_and_colours() -> None:
    assert [level(v, 4.0) for v in (0.0, 4.0, -4.0, 1.0, -1.0, 9.0, 1e-6)] == [0, LEVELS, -LEVELS, 6, -6, LEVELS, 0]
    assert level(1.0, 0.0) == 0
    assert colour(0) == (255, 255, 255)
    assert colour(LEVELS) == (33, 102, 172)
    assert colour(-LEVELS) == (178, 24, 43)


def test_scales_are_shared_by_rewards_only() -> None:
    rows = (
        HeatMapRow("value", (0.5, 0.0), 0.5, 1.0),  # a component that happens to have this name
        HeatMapRow("total", (0.25, -2.0)),
        HeatMapRow("advantage", (7.0, 0.0)),
        HeatMapRow("value", (0.0, -3.0)),
    )
    one = heat_map(["a", "b"], rows)
    assert [one.scale_of(row) for row in rows] == [2.0, 2.0, 7.0, 3.0]


def test_describe_and_shown() -> None:
    assert describe(HeatMapRow("tests", (0.25, 0.2), 0.9, 0.5)) == "tests +0.450 = 0.90 x 0.50"
    assert describe(HeatMapRow("tests", (0.0,), None, 0.0)) == "tests n/a"
    assert describe(HeatMapRow("total", (0.5, -1.0))) == "total -0.500"
    assert describe(HeatMapRow("value", (0.5, -1.0))) == "value"
    assert describe(HeatMapRow("total", (-1e-9,))) == "total +0.000"
    assert shown("a b\n\t\r\u202e\x1b") == "a·b⏎⇥␍⟨202E⟩⟨1B⟩"
    assert shown("x" * 41) == "x" * 39 + "…"


def test_json_round_trip(tmp_path: Path) -> None:
    maps = [heat_map(["a", "\ud800é", ""], success=None), heat_map([])]
    path = tmp_path / "m.json"
    path.write_text(to_json("Step 3", maps), encoding="utf-8")
    assert read_json(path) == ("Step 3", maps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="x"), "holds no heat maps"),
        (lambda d: d.update(version=9), "version 9"),
        (lambda d: d["maps"][0].pop("tokens"), "incomplete.*tokens"),
        (lambda d: d["maps"][0]["rows"][0]["values"].pop(), "row 'tests' has 0 values for 1 tokens"),
        (lambda d: d["maps"][0]["rows"][0]["values"].__setitem__(0, math.nan), "not finite"),
        (lambda d: d["maps"][0]["rows"][0].update(score=math.inf), "not finite"),
        (lambda d: d["maps"][0].update(rows=3), "incomplete"),
        (lambda d: d.update(maps=None), "incomplete"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, change: object, message: str) -> None:
    document = json.loads(to_json("t", [heat_map(["a"])]))
    change(document)  # type: ignore[operator]
    path = tmp_path / "m.json"
    path.write_text(json.dumps(document))
    with pytest.raises(HeatMapError, match=message):
        read_json(path)


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(HeatMapError, match="cannot read"):
        read_json(tmp_path / "none.json")
    for content in ("", "[" * 100_000, "[]", "3"):
        (tmp_path / "m.json").write_text(content)
        with pytest.raises(HeatMapError, match=r"not JSON|holds no heat maps"):
            read_json(tmp_path / "m.json")


def run_show(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = 0
    try:
        show.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        status = int(ended.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_show_prints_saved_maps_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "heatmaps"
    folder.mkdir()
    for step in (1, 21):
        maps = [heat_map(["one"], task_id="a"), heat_map(["two"], task_id="b")]
        (folder / f"step_{step:06d}.json").write_text(to_json(f"Step {step}", maps))
    page = tmp_path / "sub" / "page.html"
    status, out, _ = run_show(capsys, tmp_path, "--html", page, "--width", 80, "--task", "b")
    assert status == 0
    assert "Step 21" in out
    assert "two" in out
    assert "one" not in out
    assert page.read_text() == html_page("Step 21", [heat_map(["two"], task_id="b")])


def test_show_lets_nothing_of_a_file_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x9b31m\x07\u202e[bold]x"
    saved = tmp_path / "m.json"
    saved.write_text(to_json(evil, [heat_map(["one"], task_id=evil)]))
    for arguments in ([], ["--task", "other\x1b"]):
        _, out, err = run_show(capsys, saved, "--width", 200, *arguments)
        assert "[bold]x" in out + err
        assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(out + err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.json"], "nowhere.json does not exist"),
        (["."], "has no heatmaps"),
        (["m.json", "--task", "c"], "no heat map of c; there are t/1"),
        (["m.json", "--tasks", "2"], "--tasks is for checkpoints"),
        (["m.json", "--config", "x"], "--config is for checkpoints"),
        (["run/checkpoints/a.ckpt"], "name the run's with --config"),
    ],
)
def test_show_says_what_is_wrong_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.json").write_text(to_json("t", [heat_map(["a"])]))
    status, _, err = run_show(capsys, *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
