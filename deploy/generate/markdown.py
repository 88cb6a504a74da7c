"""Makes the Markdown of the reference pages."""

import re
from collections.abc import Iterable, Sequence

_NOTICE = "<!-- Made by `python deploy/generate` from the program; edit its sources instead. -->"


def page(title: str, parts: Iterable[str]) -> str:
    """Return a page of deploy/reference/ with paths of the handbook, `deploy/NAME.md`, as links."""
    text = "\n".join([f"# {title}\n", f"{_NOTICE}\n", *parts])
    return re.sub(r"(?<![`\w/])deploy/([\w/-]+)\.md(#[\w-]+)?", _link, text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    assert not any("|" in cell for row in lines for cell in row)
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in lines)


def code(text: str) -> str:
    """Return the text as code; an empty text stays empty."""
    return f"`{text}`" if text else ""


def _link(found: re.Match[str]) -> str:
    name = found[1].removeprefix("reference/")
    path = f"{name}.md" if name != found[1] else f"../{name}.md"
    return f"[{name}]({path}{found[2] or ''})"
