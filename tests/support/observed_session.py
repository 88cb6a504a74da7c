"""A pipeline with the real observers and a fake clock."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from smtpproxy.core.observer import ConnectionEnds, Endpoint, SessionObserver, SessionSummary
from smtpproxy.core.pipeline import Pipeline
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.log import log
from smtpproxy.log.line_limits import LineLimits
from smtpproxy.log.session_log import ServiceLog
from smtpproxy.trace.recorder import TraceRecorder
from smtpproxy.trace.records import decode
from smtpproxy.trace.rotating_files import RotatingFiles
from smtpproxy.worker.observer_fanout import ObserverFanout, SessionObserverFactory

SOURCE = ("10.0.0.1", 33333)
ENDS = ConnectionEnds("192.0.2.1:4711", "192.0.2.9:25", "10.0.0.1:33333", "10.0.0.5:25", 0.025)


class Later:
    """Collects the callbacks of `call_later`."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def __call__(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def run(self) -> None:
        """Call it."""
        calls, self.calls = self.calls, []
        for call in calls:
            call()


class KnownEnds:
    """The addresses of a session without connections."""

    def source(self) -> Endpoint:
        return SOURCE

    def all(self) -> ConnectionEnds:
        return ENDS


class Watched:
    """One session between a client and a backend, watched by the log and by others."""

    def __init__(
        self,
        *watchers: SessionObserverFactory,
        client: str = ENDS.client,
        level: str = "error",
        policy: SessionPolicy | None = None,
        log_to: BinaryIO | None = None,
        line_limits: LineLimits | None = None,
        fanout: ObserverFanout | None = None,
    ) -> None:
        self.logged = io.BytesIO()
        log.configure(level, "json", log_to or self.logged)
        self.fanout = fanout or ObserverFanout(ServiceLog(line_limits), watchers)
        self.observer: SessionObserver = self.fanout.session("smtp", "old", client)
        self.now = 10.0
        self.got: list[bytes] = []
        self.pipeline = Pipeline(
            policy or SessionPolicy(),
            self.got.append,
            self.observer,
            self.now,
            self.observer.content,
        )
        self.backend: list[bytes] = []
        self.pipeline.connect_backend(self.backend.append)
        self.observer.connected("10.0.0.5:25", KnownEnds())
        self.says("220 mx")

    def sends(self, *lines: str) -> None:
        """Send a group of lines as the client."""
        self.now += 1
        self.pipeline.client_received("".join(f"{line}\r\n" for line in lines).encode(), self.now)

    def says(self, *replies: str) -> None:
        """Send replies as the backend, each a moment later."""
        for reply in replies:
            self.now += 0.25
            self.pipeline.backend_received(f"{reply}\r\n".encode(), self.now)

    def relay(self, *content: str, reply: str = "250 2.0.0 queued") -> None:
        """Play a pipelined message."""
        self.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA")
        self.says("250 a", "250 b", "354 go")
        self.sends(*content, ".")
        self.says(reply)

    def close(self, reason: str = "") -> None:
        """End the session."""
        framer = self.pipeline.framer
        reason = reason or self.pipeline.ended or "client_closed"
        self.observer.closed(
            SessionSummary(
                reason,
                2.5,
                framer.commands,
                framer.pipelined,
                self.pipeline.transaction.messages,
                80,
                90,
            )
        )


class Traced:
    """A trace in a directory, and the contents of its files."""

    def __init__(self, directory: Path, *, max_octets: int = 1 << 20, **kinds: Any) -> None:
        self.directory = directory
        self.later = Later()
        self.files = RotatingFiles(directory, 0, max_octets, 3)
        self.trace = TraceRecorder(self.files, self.later, **kinds)

    def records(self) -> list[dict[str, Any]]:
        """Write everything that is pending, and return all records without the files' headers."""
        self.trace.close()
        found = []
        for path in sorted(self.directory.glob("*.jsonl")):
            for line in path.read_bytes().splitlines()[1:]:
                decode(line)  # nothing is recorded that cannot be read
                found.append(json.loads(line))
        return found
