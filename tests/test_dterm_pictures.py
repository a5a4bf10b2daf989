"""Pictures: what is drawn is what was given, in SVG and in pixels, whatever the names."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lightning_dterm.dterm.canvas import Box, Label, Line, Picture, blend
from lightning_dterm.dterm.pictures import attention_picture, bars_picture, colours, curves_picture, weights_picture

SVG = "{http://www.w3.org/2000/svg}"


def elements(picture: Picture, kind: str) -> list[dict[str, str]]:
    return [dict(element.attrib) for element in ElementTree.fromstring(picture.svg()).iter(SVG + kind)]


def texts(picture: Picture) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture.svg()).iter(SVG + "text")]


def test_pixels_lie_where_the_shapes_do_and_png_holds_them() -> None:
    picture = Picture(30, 20)
    picture.add(
        Box(8, 12, 0.3, 6, (0, 0, 0)), Box(5, 4, 10, 6, (10, 20, 30)), Line(((20.0, 0.0), (20.0, 19.0)), (200, 0, 0))
    )
    pixels = picture.pixels()
    assert pixels.shape == (20, 30, 3)
    assert pixels.dtype == np.uint8
    boxed = (pixels == (10, 20, 30)).all(-1)
    rows, columns = np.nonzero(boxed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 9, 5, 14)
    assert (pixels[:, 20] == (200, 0, 0)).all()
    assert (pixels[0, 0] == 255).all()
    assert (pixels[11:, :20] == 255).all()  # thinner than a pixel
    assert (np.asarray(Image.open(io.BytesIO(picture.png()))) == pixels).all()


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=30))
def test_any_label_is_well_formed_and_only_text(text: str) -> None:
    picture = Picture(60, 20)
    picture.add(Label(1, 12, text))
    document = picture.svg()
    document.encode()
    (shown,) = texts(picture)
    if text.isprintable() and text.isascii():
        assert shown == text
    assert {element.tag for element in ElementTree.fromstring(document).iter()} == {
        SVG + n for n in ("svg", "rect", "text")
    }


def test_markup_and_controls_in_names_stay_text() -> None:
    name = '</text><script>alert(1)</script>\x00\u202e&"'
    picture = weights_picture({name: {name: [(0, 0.5), (1, 1.0)]}}, [name])
    assert not elements(picture, "script")
    assert '</text><script>alert(1)</script>??&"' in texts(picture)
    assert picture.png().startswith(b"\x89PNG")


def test_proportions_are_the_last_weights() -> None:
    names = ["a", "b", "c"]
    history = {"repair": {"a": [(0, 0.5), (9, 0.25)], "b": [(0, 0.5), (9, 0.75)]}, "prose": {"c": [(0, 1.0), (9, 1.0)]}}
    picture = weights_picture(history, names)
    chosen = {"#{:02x}{:02x}{:02x}".format(*colour): name for name, colour in colours(names).items()}
    bars = [box for box in elements(picture, "rect") if box["width"] == "40.0"]
    heights = [(chosen[box["fill"]], float(box["height"])) for box in bars]
    assert heights == [("a", 30.0), ("b", 90.0), ("c", 120.0)]
    assert {"0.25 a", "0.75 b", "1.00 c"} <= set(texts(picture))


def test_curves_rise_and_stop_where_nothing_is_known() -> None:
    curve = [(0, 0.0), (1, 1.0), (2, math.nan), (3, 1.0), (4, 0.0)]
    picture = curves_picture("title", {"x": curve, "unknown": [(0, math.nan)]}, [(0, 0.5), (4, 0.5)])
    colour = "#{:02x}{:02x}{:02x}".format(*colours(["x"])["x"])
    drawn = [line["points"] for line in elements(picture, "polyline") if line["stroke"] == colour]
    points = [[tuple(map(float, point.split(","))) for point in line.split()] for line in drawn]
    assert len(points) == 2  # the gap
    (first, second), (third, fourth) = points
    assert first[0] < second[0] < third[0] < fourth[0]
    assert second[1] < first[1]  # up is a smaller y
    assert second[1] == third[1]
    assert fourth[1] == first[1]
    assert curves_picture("nothing", {}, []).png()


def test_attention_is_darker_where_there_is_more() -> None:
    picture = attention_picture({"repair": [0.9, 0.1], "synthesis": [0.25, 0.75]})
    cells = [box for box in elements(picture, "rect") if box["width"] == "52.0"]
    light = [int(box["fill"][1:3], 16) for box in cells]
    assert light[0] < light[3] < light[2] < light[1]
    assert [text for text in texts(picture) if "." in text] == ["0.90", "0.10", "0.25", "0.75"]
    assert blend((0, 0, 0), -1.0) == (255, 255, 255)
    assert blend((0, 0, 0), 2.0) == (0, 0, 0)


def test_bars_are_as_long_as_their_shares() -> None:
    picture = bars_picture("why", {"weights": [("a", 0.25, 0.5), ("b", 0.75, None)]})
    widths = [float(box["width"]) for box in elements(picture, "rect") if box["width"][-1] != "%"]
    assert widths == [pytest.approx(90.0), pytest.approx(270.0)]
    assert len(elements(picture, "polyline")) == 1  # one prior is marked
