"""Writes SVG pictures, light or dark like the page, with a description for screen readers."""

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

STYLE = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 }
  .dim { fill: #59636e }
  .strong { font-weight: 600 }
  .on { fill: #ffffff }
  .back { fill: #ffffff }
  .band { fill: #f6f8fa }
  .grid { stroke: #d1d9e0 }
  .guide { stroke: #8c959f; stroke-dasharray: 3 3 }
  .line { fill: none; stroke-width: 2 }
  .other { fill: #8c959f } .line.other { fill: none; stroke: #8c959f }
  .ours { fill: #0969da } .line.ours { fill: none; stroke: #0969da }
  .second { fill: #bc4c00 } .line.second { fill: none; stroke: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    text, .on { fill: #f0f6fc }
    .dim { fill: #9198a1 }
    .back { fill: #0d1117 }
    .band { fill: #151b23 }
    .grid { stroke: #3d444d }
    .other { fill: #656c76 } .line.other { stroke: #9198a1 }
    .ours { fill: #4493f8 } .line.ours { stroke: #4493f8 }
    .second { fill: #f0883e } .line.second { stroke: #f0883e }
  }
"""


class Picture:
    """A picture of shapes, later ones on top; `style` is one or more classes of STYLE."""

    def __init__(self, width: float, height: float, title: str, description: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}" role="img">\n'
            f"<title>{escape(title)}</title>\n<desc>{escape(description)}</desc>\n"
            f"<style>{STYLE}</style>\n"
        )
        self._shapes: list[str] = []
        self.rectangle(0, 0, width, height, "back")

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
        """Write a line of text; y is its baseline, x its `anchor`: start, middle or end."""
        self._add("text", style, f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"', escape(text))

    def rectangle(self, x: float, y: float, width: float, height: float, style: str) -> None:
        """Fill a rectangle."""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self._add("rect", style, place)

    def shape(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Fill a polygon."""
        self._add("polygon", style, f"points={quoteattr(_joined(points))}")

    def line(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Draw a line through points."""
        self._add("polyline", style, f'points={quoteattr(_joined(points))} fill="none"')

    def dot(self, x: float, y: float, style: str) -> None:
        """Draw the point of a measurement."""
        self._add("circle", style, f'cx="{x:.1f}" cy="{y:.1f}" r="3"')

    def render(self) -> str:
        """Return the file's text."""
        return self._head + "\n".join(self._shapes) + "\n</svg>\n"

    def _add(self, element: str, style: str, attributes: str, text: str = "") -> None:
        styled = f' class="{style}"' if style else ""
        self._shapes.append(f"<{element}{styled} {attributes}>{text}</{element}>")


def _joined(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
