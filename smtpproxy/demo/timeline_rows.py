"""Turns the recorded groups and events of a demo session into the rows of a drawing."""

from collections import deque
from collections.abc import Iterator, Sequence

from smtpproxy.demo.legacy_session import Event, Happening
from smtpproxy.demo.simulated_network import SentGroup
from smtpproxy.timeline.drawing import Row, Timeline
from smtpproxy.timeline.labels import (
    BAD,
    COMMAND,
    GOOD,
    QUIET,
    Label,
    command_label,
    reply_label,
    shown,
)


def timeline(
    groups: Sequence[SentGroup], opened_at: float, events: Sequence[Event] | None = None
) -> Timeline:
    """Return the drawing of a session.

    Args:
        groups: The groups that the network recorded, in order.
        opened_at: When the client connected, on the event loop's clock.
        events: The events that the MTA recorded; None without a proxy.
    """
    rows = [*_client_rows(groups, opened_at), *_mta_rows(events or (), opened_at)]
    return Timeline(rows, proxied=events is not None)


def _client_rows(groups: Sequence[SentGroup], opened_at: float) -> Iterator[Row]:
    yield Row(0.0, to_mta=(Label("", "connects", QUIET),))
    labeller = GroupLabeller()
    parted = False
    for group in groups:
        at = (group.sent_at if group.from_client else group.arrived_at) - opened_at
        labels = tuple(labeller.label(group.octets, from_client=group.from_client))
        parted = parted or any(label.short in {"221", "421"} for label in labels)
        if not group.octets and not parted:
            how = "sends no more" if group.from_client else "closes the connection"
            labels = (Label("", how, QUIET if group.from_client else BAD),)
        if labels and group.from_client:
            yield Row(at, to_mta=labels)
        elif labels:
            yield Row(at, to_client=labels)


def _mta_rows(events: Sequence[Event], opened_at: float) -> Iterator[Row]:
    labeller = GroupLabeller()
    asked: tuple[Label, ...] = (Label("", "connects", QUIET),)
    asked_at = events[0].at if events else 0.0
    for event in events:
        if event.what in {Happening.RECEIVED, Happening.CONTENT}:
            asked = tuple(labeller.label(event.octets, from_client=True))
            asked_at = event.at
        elif event.what is Happening.SENT:
            replied = tuple(labeller.label(event.octets, from_client=False))
            yield Row(asked_at - opened_at, True, asked, replied)
            asked = ()


class GroupLabeller:
    """Labels the groups of one connection, which it must get in order of time."""

    def __init__(self) -> None:
        self._awaited: deque[str] = deque(["greeting"])
        self._in_content = False
        self._left_over = {True: b"", False: b""}

    def label(self, octets: bytes, *, from_client: bool) -> list[Label]:
        """Return the labels of the commands or replies that this group completes."""
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
        """Return the length of the content including end of data; 0 if it has not ended."""
        if octets.startswith(b".\r\n"):
            return 3
        end = octets.find(b"\r\n.\r\n")
        return end + 5 if end >= 0 else 0

    def _content_label(self, content: bytes) -> Label:
        self._in_content = False
        self._awaited.append("end of data")
        if len(content) == 3:
            return Label("end of data", "end of data (empty message)", COMMAND)
        return Label("end of data", f"content, {len(content) - 3} bytes, end of data", COMMAND)

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
