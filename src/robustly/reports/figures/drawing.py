"""Shapes of SVG as text, for figures without JavaScript."""

from collections.abc import Mapping, Sequence
from html import escape

from robustly.output_text import plain_text

Attributes = Mapping[str, str | float]
PLAIN: Attributes = {}


def shape(tag: str, attributes: Attributes, inside: str = "") -> str:
    """An element of SVG; its attributes are escaped, and numbers are rounded to a tenth.

    Args:
        tag: name of the element.
        attributes: its attributes.
        inside: its content, which is SVG already.
    """
    words = "".join(f' {name}="{_value(value)}"' for name, value in attributes.items())
    return f"<{tag}{words}>{inside}</{tag}>" if inside else f"<{tag}{words}/>"


def text(words: str, x: float, y: float, style: Attributes = PLAIN) -> str:
    """Words at a place, escaped."""
    return shape("text", {"x": x, "y": y, "fill": "currentColor", **style}, escape(plain_text(words)))


def line(start: tuple[float, float], end: tuple[float, float], style: Attributes = PLAIN) -> str:
    """A straight line."""
    ends = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
    return shape("line", {**ends, "stroke": "currentColor", **style})


def points(places: Sequence[tuple[float, float]]) -> str:
    """The attribute `points` of a line or an area."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def hover(words: str) -> str:
    """The text that is shown over a shape; goes into its content."""
    return f"<title>{escape(plain_text(words))}</title>"


def picture(inside: str, width: float, height: float, words: str, colour: str = "color: inherit; ") -> str:
    """A picture that shrinks with the page around it.

    Args:
        inside: its shapes.
        width: its width, in pixels.
        height: its height, in pixels.
        words: its description for screen readers.
        colour: CSS of its colour; by default that of the page around it.
    """
    style = f"{colour}max-width: 100%; height: auto"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="{escape(plain_text(words))}" '
        f'style="{style}" font-family="system-ui, sans-serif" font-size="12.5">{inside}</svg>'
    )


def _value(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
