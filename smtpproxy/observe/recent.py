"""Recent sessions: a sample of those of now and of a moment ago, for whoever looks at the page.

Bounded in every direction: so many sessions a second are taken, so many are kept, with so many
exchanges.  Nothing is made of them, but references kept, until somebody looks.
"""

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic, time
from typing import Any

import msgspec

from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import Ends, Summary
from smtpproxy.observe import records

PER_SECOND = 20
KEPT_SESSIONS = 60
KEPT_EXCHANGES = 120
LOOK_S = 5.0
"""For so long after it was told so, somebody looks."""


class Recent:
    """Keeps a sample of a worker's sessions."""

    def __init__(self) -> None:
        self.offset = time() - monotonic()
        self._second = 0
        self._taken = 0
        self._sessions: OrderedDict[str, RecentSession] = OrderedDict()
        self._looked = 0.0

    def session(self, session: str, listener: str, client: str) -> "RecentSession | None":
        """Begin to keep a session, if not enough of this second are kept already."""
        now = monotonic()
        if int(now) != self._second:
            self._second, self._taken = int(now), 0
        if self._taken >= PER_SECOND:
            return None
        self._taken += 1
        kept = self._sessions[session] = RecentSession(session, listener, client, now, self.offset)
        if len(self._sessions) > KEPT_SESSIONS:
            self._drop()
        return kept

    def _drop(self) -> None:
        """Forget the oldest that is over, or else the oldest."""
        over = next((name for name, each in self._sessions.items() if each.over), None)
        self._sessions.pop(over or next(iter(self._sessions)))

    def server_changed(self, backend: str, server: str, up: bool, why: str) -> None:
        """Keep nothing."""

    def look(self) -> None:
        """Learn that somebody looks at the page."""
        now = monotonic()
        if now - self._looked > LOOK_S:
            for each in self._sessions.values():
                each.changed = True
        self._looked = now

    def changed(self) -> list[object]:
        """Return what has changed since the last time, as plain values; nothing if nobody looks."""
        if monotonic() - self._looked > LOOK_S:
            return []
        return [each.told() for each in self._sessions.values() if each.changed]


class RecentSession:
    """Keeps one session."""

    __slots__ = (
        "_client",
        "_connected",
        "_exchanges",
        "_id",
        "_listener",
        "_messages",
        "_missing",
        "_offset",
        "_opened",
        "_summary",
        "changed",
    )

    content = None

    def __init__(self, session: str, listener: str, client: str, now: float, offset: float) -> None:
        self._id = session
        self._listener = listener
        self._client = client
        self._opened = now + offset
        self._offset = offset
        self._connected: records.Connected | None = None
        self._exchanges: list[Exchange] = []
        self._missing = 0
        self._messages: list[records.Message] = []
        self._summary: Summary | None = None
        self.changed = True

    @property
    def over(self) -> bool:
        """Whether it is over."""
        return self._summary is not None

    def connected(self, server: str, ends: Callable[[], Ends]) -> None:
        """Keep who is connected with whom."""
        at, end = monotonic() + self._offset, ends()
        self._connected = records.Connected(
            self._id, at, server, end.client, end.listener, end.proxy, end.server
        )
        self.changed = True

    def gave_up(self, server: str, why: str) -> None:
        """Keep nothing: its reply tells."""

    def settled(self, exchanges: list[Exchange]) -> None:
        """Keep exchanges, the first ones only."""
        room = KEPT_EXCHANGES - len(self._exchanges)
        self._exchanges += exchanges[:room]
        self._missing += max(0, len(exchanges) - room)
        self.changed = True

    def transaction(self, outcome: str, fields: dict[str, Any]) -> None:
        """Keep what a transaction came to."""
        if len(self._messages) < KEPT_EXCHANGES:
            self._messages.append(records.message_of(outcome, fields))

    def noted(self, event: str, **values: str) -> None:
        """Keep nothing."""

    def slowed(self) -> None:
        """Keep nothing."""

    def stalled(self) -> None:
        """Keep nothing."""

    def closed(self, summary: Summary) -> None:
        """Keep how it ended."""
        self._summary = summary
        self.changed = True

    def told(self) -> dict[str, object]:
        """Return it as the page needs it, in plain values."""
        self.changed = False
        exchanged = records.exchanged(self._id, self._exchanges, self._offset)
        summary = self._summary
        told: dict[str, object] = {
            "id": self._id,
            "opened": self._opened,
            "listener": self._listener,
            "client": self._client,
            "server": self._connected.server if self._connected else "",
            "reason": summary.reason if summary else "",
            "seconds": summary.seconds if summary else 0.0,
            "saved": sum(each.pipelined for each in self._exchanges),
            "octets": sum(each.octets for each in self._exchanges),
            "missing": self._missing,
            "messages": self._messages,
            "records": [*([self._connected] if self._connected else []), *exchanged],
        }
        return msgspec.to_builtins(told)  # type: ignore[no-any-return]  # a dict makes a dict
