"""Labels of commands and replies, short enough that a line shows the parts of a group.

Any octets have some label.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from smtpproxy.text.escaping import printable
from smtpproxy.text.styled_lines import StyledLine

COMMAND, GOOD, BAD, QUIET = "cyan", "green", "red", "dim"


@dataclass(frozen=True, slots=True)
class Label:
    """The label of one command, content or reply."""

    short: str
    """The text in a group: a verb or a code."""
    long: str
    """The text if it is alone in its line."""
    style: str
    """The colour, by its name in rich."""


def shown(octets: bytes) -> str:
    """Return octets as one line of printable text, without the last CRLF."""
    return printable(octets.removesuffix(b"\r\n"))


def command_label(line: bytes) -> Label:
    """Return the label of one command line."""
    text = shown(line)
    return Label(shown(line.split(b" ")[0].upper()), text, COMMAND)


def reply_label(reply: bytes, *, short: bool = False) -> Label:
    """Return the label of one complete reply; with `short`, its code only."""
    first, *more = reply.splitlines()
    code, text = shown(first[:3]), shown(first[4:])
    text_shown = code if short else f"{code} {text}{' ...' if more else ''}"
    return Label(code, text_shown, BAD if code[:1] in {"4", "5"} else GOOD)


def join(labels: Sequence[Label], width: int) -> StyledLine:
    """Return the labels of a group, joined by `|`, in at most `width` cells."""
    if len(labels) == 1:
        line = _alone(labels[0])
    else:
        line = _joined(labels, " | ")
        if line.width > width:
            line = _joined(_runs_counted(labels), " | ")
        if line.width > width:
            line = _joined(_runs_counted(labels), "|")
    return line.truncated(width)


def _alone(label: Label) -> StyledLine:
    before, word, after = label.long.partition("PIPELINING")
    if not word:
        return StyledLine((label.long, label.style))
    strong = f"{label.style} bold underline"
    return StyledLine((before, label.style), (word, strong), (after, label.style))


def _joined(labels: Sequence[Label], separator: str) -> StyledLine:
    """Return the short labels with a separator; all bold, so that groups stand out."""
    line = StyledLine()
    for label in labels:
        if line.pieces:
            line.add(separator, "bold")
        line.add(label.short, f"bold {label.style}")
    return line


def _runs_counted(labels: Sequence[Label]) -> list[Label]:
    """Return labels with each run of equal ones as one: `RCPT` three times as `3 x RCPT`."""
    counted: list[tuple[Label, int]] = []
    for label in labels:
        if counted and counted[-1][0].short == label.short:
            counted[-1] = (label, counted[-1][1] + 1)
        else:
            counted.append((label, 1))
    return [
        label if count == 1 else Label(f"{count} x {label.short}", label.long, label.style)
        for label, count in counted
    ]
