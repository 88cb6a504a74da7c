"""The labels of a recorded connection: what each of its groups said.

It owns the reading of both directions, only as far as a picture needs it.
"""

from collections import deque

from smtpproxy.picture.labels import COMMAND, GOOD, Label, command_label, reply_label, shown


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
