"""A picture made of a few shapes, written as SVG or drawn by Pillow: one drawing for browsers and for TensorBoard."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

Colour = tuple[int, int, int]  # red, green, blue, each 0 to 255
Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]

BLACK: Colour = (26, 26, 26)
GREY: Colour = (150, 150, 150)
WHITE: Colour = (255, 255, 255)
# Okabe and Ito's palette: told apart without colour vision.
PALETTE: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (86, 180, 233),
    (120, 120, 120),
    (160, 140, 0),
)
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle: left, top, width and height in pixels."""

    x: float
    y: float
    width: float
    height: float
    fill: Colour


@dataclass(frozen=True, slots=True)
class Line:
    """A polyline through at least two points."""

    points: tuple[Point, ...]
    colour: Colour = BLACK
    width: int = 1


@dataclass(frozen=True, slots=True)
class Label:
    """Text whose baseline starts, has its middle, or ends at a point."""

    x: float
    y: float
    text: str
    size: int = 12
    anchor: Anchor = "start"
    colour: Colour = BLACK


@dataclass(slots=True)
class Picture:
    """Shapes on white, drawn in their order; x grows to the right, y downwards, in pixels."""

    width: int
    height: int
    shapes: list[Box | Line | Label] = field(default_factory=list)

    def add(self, *shapes: Box | Line | Label) -> None:
        """Draw further shapes above those there are."""
        self.shapes.extend(shapes)

    def svg(self) -> str:
        """A self-contained SVG document; labels, which may stem from data, are escaped."""
        body = "\n".join(_svg(shape) for shape in self.shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="system-ui, sans-serif">\n'
            f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
        )

    def png(self) -> bytes:
        """The picture as a PNG file."""
        file = io.BytesIO()
        self._image().save(file, format="PNG")
        return file.getvalue()

    def pixels(self) -> npt.NDArray[np.uint8]:
        """``[height, width, 3]`` red, green and blue, as TensorBoard's ``add_image(dataformats="HWC")`` wants them."""
        return np.asarray(self._image())

    def _image(self) -> Image.Image:
        from PIL import Image, ImageDraw, ImageFont

        image = Image.new("RGB", (self.width, self.height), WHITE)
        draw = ImageDraw.Draw(image)
        for shape in self.shapes:
            if isinstance(shape, Box):
                left, top = round(shape.x), round(shape.y)
                right, bottom = round(shape.x + shape.width) - 1, round(shape.y + shape.height) - 1
                if right >= left and bottom >= top:  # thinner than a pixel: nothing
                    draw.rectangle((left, top, right, bottom), shape.fill)
            elif isinstance(shape, Line):
                draw.line(shape.points, shape.colour, shape.width)
            else:
                anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
                font = ImageFont.load_default(shape.size)
                draw.text((shape.x, shape.y), printable(shape.text), shape.colour, font, anchor)
        return image


def printable(text: str) -> str:
    """``text`` with what no XML file, or no reader, could take as it is replaced by a question mark."""
    return _UNPRINTABLE.sub("?", text)


def blend(colour: Colour, share: float) -> Colour:
    """From white at a share of 0 to ``colour`` at 1."""
    red, green, blue = (round(255 + (channel - 255) * min(max(share, 0.0), 1.0)) for channel in colour)
    return red, green, blue


def _svg(shape: Box | Line | Label) -> str:
    if isinstance(shape, Box):
        place = f'x="{shape.x:.1f}" y="{shape.y:.1f}" width="{max(shape.width, 0):.1f}"'
        return f'<rect {place} height="{max(shape.height, 0):.1f}" fill="{_hex(shape.fill)}"/>'
    if isinstance(shape, Line):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
        return f'<polyline points="{points}" fill="none" stroke="{_hex(shape.colour)}" stroke-width="{shape.width}"/>'
    place = f'x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size}" text-anchor="{shape.anchor}"'
    return f'<text {place} fill="{_hex(shape.colour)}">{escape(printable(shape.text))}</text>'


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
