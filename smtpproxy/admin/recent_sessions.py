"""Recent sessions: a sample of open and recently closed sessions, for the live page.

The sample is bounded: sessions in a second, sessions in all, exchanges and octets of each session,
and the length of each line.  While no page is open, only what the list of sessions shows is kept of
each session: a few exchanges and the last transaction.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from time import monotonic, time
from typing import Any

import msgspec
from msgspec import Struct

from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import SessionEnds, SessionSummary
from smtpproxy.log.session_log import ip_and_port
from smtpproxy.text.escaping import text_of
from smtpproxy.trace import exchange_records, records

PER_SECOND = 20
"""The most sessions that are sampled in a second."""
KEPT_SESSIONS = 60
"""The most sessions in the sample."""
KEPT_EXCHANGES, KEPT_LAST = 120, 20
"""Of each session: its first exchanges, and its last ones."""
KEPT_UNSEEN, KEPT_WRONG = 8, 2
"""While no page is open: its first exchanges (those of one message), and the last that failed."""
KEPT_LINE, KEPT_OCTETS = 400, 24 * 1024
"""The octets kept of a line or reply, and of all the first exchanges of a session."""
KEPT_MESSAGES = KEPT_RECIPIENTS = 20
"""The most transactions kept of a session, and recipients of a transaction."""
KEPT_ADDRESSES = 2048
"""The most characters kept of the recipients of one transaction."""
KEPT_STEPS = 4
"""The most steps kept of an exchange that has several, such as AUTH."""
LOOK_S = 5.0
"""How long the page counts as open after `look` was called."""
TURN_S = 0.01
"""How long one call prepares sessions for the page; the rest are prepared a second later."""


class RecentTransaction(Struct):
    """The outcome of a transaction."""

    outcome: str
    """relayed, refused or abandoned."""
    sender: str
    """The address of MAIL; empty for the null sender."""
    to: list[str]
    """Its first recipients; the refused ones with their replies."""
    accepted: int
    """The number of accepted recipients."""
    refused: int
    """The number of refused recipients."""
    size_bytes: int
    """The size of the content."""
    reply: str
    """The reply to the end of data, or the last refusal."""


class RecentSessions:
    """Keeps a sample of a worker's sessions."""

    watched: bool
    """Whether the page is open, or was within the last `LOOK_S`."""

    def __init__(self) -> None:
        self.offset = time() - monotonic()
        self._second = 0
        self._taken = 0
        self._sessions: OrderedDict[str, RecentSession] = OrderedDict()
        self._looked = 0.0
        self.watched = False

    def session(
        self,
        session: str,
        listener: str,
        backend: str,
        client: str,
    ) -> "RecentSession | None":
        """Sample a session, if fewer than `PER_SECOND` have been sampled in this second."""
        now = monotonic()
        if int(now) != self._second:
            self._second, self._taken = int(now), 0
        if self._taken >= PER_SECOND:
            return None
        self._taken += 1
        kept = RecentSession(session, listener, backend, client, now + self.offset, self)
        self._sessions[session] = kept
        if len(self._sessions) > KEPT_SESSIONS:
            self._drop()
        return kept

    def _drop(self) -> None:
        """Remove the oldest closed session; if none is closed, the oldest."""
        over = next((name for name, each in self._sessions.items() if each.over), None)
        self._sessions.pop(over or next(iter(self._sessions)))

    def forget(self, session: str) -> None:
        """Remove a session."""
        self._sessions.pop(session, None)

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """Keep nothing."""

    def look(self, *, full: bool = False) -> None:
        """Count the page as open for the next `LOOK_S`.

        Args:
            full: Whether to report all sessions once, not only those that changed.
        """
        if full or not self.watched:
            for each in self._sessions.values():
                each.changed = True
        self.watched = True
        self._looked = monotonic()

    def _is_watched(self) -> bool:
        """Return whether the page is open; when it no longer is, free what was kept for it."""
        if self.watched and monotonic() - self._looked > LOOK_S:
            self.watched = False
            for each in self._sessions.values():
                each.forget()
        return self.watched

    def changed(self) -> list[object]:
        """Return the sessions that changed since the last call, as plain values.

        While no page is open there are none.  After `TURN_S`, the rest is left for the next call.
        """
        if not self._is_watched():
            return []
        until = monotonic() + TURN_S
        found: list[object] = []
        for each in self._sessions.values():
            if each.changed:
                found.append(each.as_plain())
                if monotonic() > until:
                    break
        return found

    def open(self) -> list[object]:
        """Return the ids of sessions that are open or not sent yet; none while no page is open."""
        if not self._is_watched():
            return []
        # One that is over but not sent yet counts, or the page would take it for lost.
        return [name for name, each in self._sessions.items() if not each.over or each.changed]


class RecentSession:
    """Keeps one session."""

    __slots__ = (
        "_backend",
        "_client",
        "_commands",
        "_connected",
        "_first",
        "_id",
        "_last",
        "_listener",
        "_messages",
        "_noted",
        "_octets",
        "_offset",
        "_opened",
        "_room",
        "_sample",
        "_saved",
        "_summary",
        "_transactions",
        "_was_reported",
        "changed",
    )

    content = None

    def __init__(
        self,
        session: str,
        listener: str,
        backend: str,
        client: str,
        opened: float,
        sample: RecentSessions,
    ) -> None:
        self._id = session
        self._listener = listener
        self._backend = backend
        self._client = client
        self._opened = opened
        self._offset = sample.offset
        self._sample = sample
        self._connected: records.Connected | None = None
        self._first: list[Exchange] = []
        self._last: deque[Exchange] = deque(maxlen=KEPT_LAST)
        self._room = KEPT_OCTETS
        self._commands = self._saved = self._octets = self._messages = 0
        self._transactions: deque[RecentTransaction] = deque(maxlen=KEPT_MESSAGES)
        self._noted: list[records.Noted] = []
        self._summary: SessionSummary | None = None
        self._was_reported = False
        self.changed = True

    @property
    def over(self) -> bool:
        """Whether the session is closed."""
        return self._summary is not None

    def connected(self, server: str, ends: SessionEnds) -> None:
        """Keep the addresses of both connections."""
        at, end = monotonic() + self._offset, ends.all()
        self._connected = records.Connected(
            self._id, at, server, end.client, end.listener, end.proxy, end.server
        )
        self.changed = True

    def gave_up(self, server: str, reason: str) -> None:
        """Keep nothing: the reply shows it."""

    def settled(self, exchanges: list[Exchange]) -> None:
        """Keep exchanges: the first ones, and the last ones."""
        self._commands += len(exchanges)
        watched = self._sample.watched
        for exchange in exchanges:
            self._saved += exchange.pipelined
            self._octets += exchange.octets
            begins = len(self._first) < KEPT_UNSEEN and self._room > 0
            if watched or begins or exchange.code >= 400 or exchange.problem is not None:
                self._keep(exchange)
            else:
                self._room = 0  # here is the gap
        self.changed = True

    def _keep(self, exchange: Exchange) -> None:
        watched = self._sample.watched
        kept = _shortened(exchange)
        self._room -= len(kept.line) + len(kept.reply)
        if self._room > 0 and len(self._first) < (KEPT_EXCHANGES if watched else KEPT_UNSEEN):
            self._first.append(kept)
            return
        self._room = 0
        self._last.append(kept)
        if not watched and len(self._last) > KEPT_WRONG:
            self._last.popleft()

    def forget(self) -> None:
        """Remove what the list of sessions does not show."""
        if len(self._first) > KEPT_UNSEEN:
            del self._first[KEPT_UNSEEN:]
            self._room = 0
        for kept in (self._last, self._transactions):
            while len(kept) > 1:
                kept.popleft()

    def transaction(self, outcome: str, fields: Callable[[], dict[str, Any]]) -> None:
        """Keep the outcome of a transaction."""
        self._messages += 1
        if not self._sample.watched:
            self._transactions.clear()
        self._transactions.append(_transaction(outcome, fields()))

    def noted(self, event: str, **values: str) -> None:
        """Keep which connection is inside TLS, or why it is not."""
        if len(self._noted) < records.KEPT_NOTED:
            self._noted.append(records.Noted(self._id, monotonic() + self._offset, event, **values))
        self.changed = True

    def broken(self, error: Exception) -> None:
        """Keep nothing: the reply shows it."""

    def slowed(self) -> None:
        """Keep nothing."""

    def stalled(self) -> None:
        """Keep nothing."""

    def closed(self, summary: SessionSummary) -> None:
        """Keep how it ended."""
        self._summary = summary
        self.changed = True
        if summary.probe and not self._was_reported:
            self._sample.forget(self._id)  # else probes would displace all other sessions

    def as_plain(self) -> dict[str, object]:
        """Return the session for the page, in plain values."""
        self.changed = False
        self._was_reported = True
        summary, connected = self._summary, self._connected
        client_ip, client_port = ip_and_port(self._client)
        missing = self._commands - len(self._first) - len(self._last)
        gap = [records.Gap(self._id, missing)] if missing else []
        values: dict[str, object] = {
            "session": self._id,
            "opened": self._opened,
            "listener": self._listener,
            "backend": self._backend,
            "client_ip": client_ip,
            "client_port": client_port,
            "server": connected.server if connected else "",
            "tls": {each.side: each.version for each in self._noted if each.version},
            "reason": summary.reason if summary else "",
            "duration_s": summary.seconds if summary else 0.0,
            "round_trips_saved": self._saved,
            "content_bytes": self._octets,
            "messages": self._messages,
            "transactions": list(self._transactions),
            "records": [
                *([connected] if connected else []),
                *self._noted,
                *self._exchanged(self._first),
                *gap,
                *self._exchanged(self._last),
            ],
        }
        return msgspec.to_builtins(values)  # type: ignore[no-any-return]  # a dict makes a dict

    def _exchanged(self, exchanges: Collection[Exchange]) -> list[records.Exchanged]:
        return exchange_records.exchanged(self._id, list(exchanges), self._offset)


def _shortened(exchange: Exchange) -> Exchange:
    """Return the exchange with its line and reply cut to what the page shows."""
    if len(exchange.line) <= KEPT_LINE and len(exchange.reply) <= KEPT_LINE and not exchange.steps:
        return exchange
    steps = [
        each._replace(line=_cut(each.line), reply=_cut(each.reply))
        for each in exchange.steps[:KEPT_STEPS]
    ]
    return exchange.replaced(_cut(exchange.line), _cut(exchange.reply), steps)


def _cut(octets: bytes) -> bytes:
    return octets if len(octets) <= KEPT_LINE else octets[:KEPT_LINE] + b" ..."


def _transaction(outcome: str, fields: dict[str, Any]) -> RecentTransaction:
    accepted, refused = fields["recipients"], fields["refused"]
    return RecentTransaction(
        outcome.removeprefix("message_"),
        fields["sender"],
        [*_first_of(accepted), *_first_of(refused)],
        len(accepted) + fields.get("more_recipients", 0),
        len(refused) + fields.get("more_refused", 0),
        fields["size_bytes"],
        text_of(_cut(fields["reply"])),
    )


def _first_of(addresses: list[str]) -> list[str]:
    """Return the addresses that are kept."""
    room = KEPT_ADDRESSES // 2
    kept = addresses[:KEPT_RECIPIENTS]
    for number, address in enumerate(kept):
        room -= len(address)
        if room < 0:
            return kept[: max(1, number)]
    return kept
