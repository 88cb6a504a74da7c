"""Few words for what travels: a group of commands or replies, told so that people see its parts.

It owns the reading of both directions of a recorded connection, only as far as a drawing needs it,
and never fails on what it cannot read: any octets have some label.
"""

from collections import deque
from dataclasses import dataclass

from rich.text import Text

from smtpproxy.demo.client import shown

COMMAND, GOOD, BAD, QUIET, LOUD = "cyan", "green", "red", "dim", "bold green"


@dataclass(frozen=True, slots=True)
class Label:
    """One command, content or reply: in one word, in a line, and in which colour."""

    short: str
    long: str
    style: str


class Labeller:
    """Follows one connection in the order of time and labels each of its groups."""

    def __init__(self) -> None:
        self._awaited: deque[str] = deque(["greeting"])
        self._in_content = False
        self._left_over = {True: b"", False: b""}

    def label(self, octets: bytes, *, from_client: bool) -> list[Label]:
        """Labels of the commands or replies that this group completes; none if it ends none."""
        octets = self._left_over[from_client] + octets
        self._left_over[from_client] = b""
        return self._commands(octets) if from_client else self._replies(octets)

    def _commands(self, octets: bytes) -> list[Label]:
        labels = []
        while octets:
            taken = self._content(octets) if self._in_content else octets.find(b"\n") + 1
            if not taken:
                self._left_over[True] = octets
                break
            part, octets = octets[:taken], octets[taken:]
            labels.append(self._content_label(part) if self._in_content else self._command(part))
        return labels

    def _content(self, octets: bytes) -> int:
        """How many octets the content takes, end of data included; 0 if there is no end yet."""
        if octets.startswith(b".\r\n"):
            return 3
        end = octets.find(b"\r\n.\r\n")
        return end + 5 if end >= 0 else 0

    def _content_label(self, content: bytes) -> Label:
        self._in_content = False
        self._awaited.append("end of data")
        if len(content) == 3:
            return Label(".", ". (an empty message)", COMMAND)
        return Label("content .", f"content, {len(content) - 3} octets, and .", COMMAND)

    def _command(self, line: bytes) -> Label:
        label = command_label(line)
        self._awaited.append(label.short)
        return label

    def _replies(self, octets: bytes) -> list[Label]:
        labels = []
        lines: list[bytes] = []
        for line in octets.splitlines(keepends=True):
            lines.append(line)
            if line.endswith(b"\n") and line[3:4] != b"-":
                labels.append(self._reply(lines))
                lines = []
        self._left_over[False] = b"".join(lines)
        return labels

    def _reply(self, lines: list[bytes]) -> Label:
        answered = self._awaited.popleft() if self._awaited else "unasked"
        code = shown(lines[-1][:3])
        self._in_content = self._in_content or (answered == "DATA" and code == "354")
        if answered == "EHLO" and code == "250":
            words = " ".join(shown(line[4:]).split(" ")[0] for line in lines[1:])
            return Label(code, f"{code} {words}", GOOD)
        return reply_label(b"".join(lines))


def command_label(line: bytes) -> Label:
    """The label of one command line."""
    text = shown(line)
    return Label(text.split(" ")[0].upper(), text, COMMAND)


def reply_label(reply: bytes, *, short: bool = False) -> Label:
    """The label of one complete reply; short: its code only."""
    first, *more = reply.splitlines()
    code, text = shown(first[:3]), shown(first[4:])
    told = code if short else f"{code} {text}{' ...' if more else ''}"
    return Label(code, told, BAD if code[:1] in {"4", "5"} else GOOD)


def join(labels: list[Label], width: int) -> Text:
    """The labels in at most so many cells, joined by `|` as they travelled together."""
    if len(labels) == 1:
        text = Text(labels[0].long, style=labels[0].style)
        text.highlight_words(["PIPELINING"], "bold underline")
    else:
        text = _joined(labels, " | ")
        if text.cell_len > width:
            text = _joined(_runs_counted(labels), " | ")
        if text.cell_len > width:
            text = _joined(_runs_counted(labels), "|")
    text.truncate(width, overflow="ellipsis")
    return text


def _joined(labels: list[Label], separator: str) -> Text:
    """Bold throughout: the groups are what is to be seen."""
    parts = [Text(label.short, style=label.style) for label in labels]
    return Text(separator, "bold").join(parts)


def _runs_counted(labels: list[Label]) -> list[Label]:
    """Labels with each run of equal ones told as one: `RCPT` three times as `3 RCPT`."""
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
