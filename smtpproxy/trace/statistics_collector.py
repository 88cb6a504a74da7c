"""Collects statistics from the records of trace files, in bounded memory.

A file is of any size, so only the fields that count are decoded, a block of lines at a time, and
the records of a block are counted by the loops of the interpreter's own functions where possible.
The file may also be hostile: nothing grows with the number of different clients, verbs or texts.
"""

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from heapq import heappush, heapreplace
from itertools import chain
from typing import TypeVar

import msgspec
from msgspec import Struct

from smtpproxy.text.escaping import expanded, printable
from smtpproxy.trace import statistics
from smtpproxy.trace.bounded_counts import BoundedCounts, Durations
from smtpproxy.trace.records import Code, Count, FileHeader, Moment, Name, Seconds, Text

VERBS = 100
"""How many verbs are counted one by one."""
OTHER_VERBS = "other_verbs"
"""What the others are counted as."""
SLOWEST = 5
"""How many of the slowest replies to a verb are named."""
TEXTS = 10
"""How many texts of a reply code are named."""
CLIENTS = 20
"""How many clients are named for each of bytes, errors and violations."""
REPLIES = 200
"""How many pairs of verb and code are named."""
OUTCOMES, VERSIONS = 50, 50
"""How many outcomes of messages, and versions of TLS, are named."""
PENDING_REPLY_CHARACTERS = 1024 * 1024
"""Whole replies of this size in all are kept before their texts are counted."""
OPEN_SESSIONS = 100_000
"""The most sessions that have not ended whose errors are counted."""
REPLY_CHARACTERS, TEXT_CHARACTERS, NAME_CHARACTERS = 400, 200, 64
"""How many characters are used of a reply, of its first line, and of a name."""
GROUP_SIZES = (1, 2, 3, 4, 5, 10, 20, 50, 100)
"""The smallest sizes of the groups that are counted together."""
_NOT_FAILED = (0, 0)
_ENHANCED_CODE = re.compile(r"\d\.\d{1,3}\.\d{1,3}(?: |$)")
_VARIES = re.compile(r"(?<![^ ])[^ \d@<]*+[\d@<][^ ]*+")  # possessive: linear for any text


class _Violation(Struct, gc=False):
    side: Name


class _Exchange(Struct, tag_field="what", tag="exchange", gc=False):
    session: Name
    verb: Name
    code: Code = 0
    reply: Text = ""
    sent: Moment = 0.0
    replied: Moment = 0.0
    violation: _Violation | None = None


class _Noted(Struct, tag_field="what", tag="noted", gc=False):
    session: Name
    event: Name
    side: Name = ""
    version: Name = ""


class _Transaction(Struct, gc=False):
    outcome: Name
    reply: Text
    size_bytes: Count
    groups: list[Count]


class _Closed(Struct, tag_field="what", tag="closed", gc=False):
    session: Name
    at: Moment
    opened: Moment
    client_ip: Name | None
    commands: Count
    round_trips_saved: Count
    messages: Count
    bytes_from_client: Count
    transactions: list[_Transaction]
    client_rtt_s: Seconds | None = None


class _Opened(Struct, tag_field="what", tag="opened", gc=False):
    pass


class _Connected(Struct, tag_field="what", tag="connected", gc=False):
    pass


class _ServerGivenUp(Struct, tag_field="what", tag="server_given_up", gc=False):
    pass


class _Gap(Struct, tag_field="what", tag="gap", gc=False):
    pass


AnyCounted = TypeVar("AnyCounted", _Exchange, _Noted, _Closed)
CountedRecord = (
    _Exchange | _Noted | _Closed | _Opened | _Connected | _ServerGivenUp | _Gap | FileHeader
)
"""A record of a trace file, with the fields that count."""
DECODER = msgspec.json.Decoder(CountedRecord)
"""Decodes such records."""


class StatisticsCollector:
    """Counts the records of sessions.

    Args:
        chosen: The ids of the sessions to count; None for all.
    """

    def __init__(self, chosen: Collection[str] | None = None) -> None:
        self._chosen = chosen
        self._sessions = self._exchanges = 0
        self._began, self._ended = float("inf"), 0.0
        self._verbs: dict[str, _Verb] = {}
        self._pending_characters = 0  # of whole replies whose texts are not counted yet
        self._codes: BoundedCounts[tuple[str, str]] = BoundedCounts(1)
        self._texts: BoundedCounts[tuple[str, str, str]] = BoundedCounts(1)
        self._messages: BoundedCounts[tuple[str, str]] = BoundedCounts(2)
        self._clients: BoundedCounts[str] = BoundedCounts(5)
        self._failed: dict[str, list[int]] = {}  # session -> errors and violations, until it ends
        self._forgotten = False  # whether errors of sessions that had not ended were dropped
        self._tls: BoundedCounts[tuple[str, str]] = BoundedCounts(1)
        self._groups: Counter[int] = Counter()
        self._commands = self._saved = self._saved_measured = 0
        self._saved_s = 0.0
        self._round_trips = Durations()

    def add(self, records: Iterable[CountedRecord]) -> None:
        """Count records, in the order in which they are in the files."""
        by_verb: dict[str, list[_Exchange]] = defaultdict(list)
        noted: list[_Noted] = []
        closed: list[_Closed] = []
        for record in records:
            if isinstance(record, _Exchange):
                by_verb[record.verb].append(record)
            elif isinstance(record, _Closed):
                closed.append(record)
            elif isinstance(record, _Noted):
                noted.append(record)
        if self._chosen is not None:
            by_verb = {verb: self._only_chosen(group) for verb, group in by_verb.items()}
            noted, closed = self._only_chosen(noted), self._only_chosen(closed)
        for verb, exchanges in by_verb.items():
            self._add_exchanges(self._verb(verb), exchanges)
        if self._pending_characters > PENDING_REPLY_CHARACTERS:
            self._count_texts()
        self._add_noted(noted)
        self._add_closed(closed)

    def _only_chosen(self, records: list[AnyCounted]) -> list[AnyCounted]:
        chosen = self._chosen or ()
        return [each for each in records if each.session in chosen]

    def _verb(self, verb: str) -> "_Verb":
        name = _name(verb)
        if name not in self._verbs and len(self._verbs) >= VERBS:
            name = OTHER_VERBS
        return self._verbs.setdefault(name, _Verb())

    def _add_exchanges(self, verb: "_Verb", exchanges: Sequence[_Exchange]) -> None:
        self._exchanges += len(exchanges)
        replies = [each.reply for each in exchanges]
        verb.whole_replies.update(replies)
        self._pending_characters += sum(map(len, replies))
        verb.add([each for each in exchanges if 0 < each.sent <= each.replied])
        for each in exchanges:
            if each.code >= 400 or each.violation is not None:
                self._add_failed(each)

    def _add_failed(self, exchange: _Exchange) -> None:
        failed = self._failed.get(exchange.session)
        if failed is None:
            if len(self._failed) >= OPEN_SESSIONS:
                self._failed.clear()
                self._forgotten = True
            failed = self._failed[exchange.session] = [0, 0]
        failed[0] += exchange.code >= 400
        violation = exchange.violation
        failed[1] += violation is not None and violation.side == "client"

    def _count_texts(self) -> None:
        """Count the texts of replies instead of the whole replies, which may all be different."""
        for name, verb in self._verbs.items():
            for reply, count in verb.whole_replies.items():
                code, text = _code_and_text(reply)
                self._codes.add((name, code), count)
                self._texts.add((name, code, text), count)
            verb.whole_replies.clear()
        self._pending_characters = 0

    def _add_noted(self, noted: Sequence[_Noted]) -> None:
        for each in noted:
            if each.event == "tls_started":
                self._tls.add((_name(each.side), _name(each.version)), 1)
            elif each.event == "tls_failed":
                self._tls.add((_name(each.side), "failed"), 1)

    def _add_closed(self, closed: Sequence[_Closed]) -> None:
        self._sessions += len(closed)
        for each in closed:
            self._began = min(self._began, each.opened)
            self._ended = max(self._ended, each.at)
            self._commands += each.commands
            self._saved += each.round_trips_saved
            failed = self._failed.pop(each.session, _NOT_FAILED)
            client = _name(each.client_ip or "unix")
            self._clients.add(client, 1, each.messages, each.bytes_from_client, *failed)
        self._add_round_trips([each for each in closed if each.client_rtt_s is not None])
        self._add_messages([message for each in closed for message in each.transactions])

    def _add_round_trips(self, measured: Sequence[_Closed]) -> None:
        self._round_trips.add([each.client_rtt_s or 0.0 for each in measured])
        for each in measured:
            self._saved_measured += each.round_trips_saved
            self._saved_s += each.round_trips_saved * (each.client_rtt_s or 0.0)

    def _add_messages(self, messages: Sequence[_Transaction]) -> None:
        sizes: dict[tuple[str, str], list[int]] = defaultdict(list)
        for each in messages:
            sizes[each.outcome, each.reply[:3]].append(each.size_bytes)
        for size, count in Counter(chain.from_iterable(each.groups for each in messages)).items():
            self._groups[_least_size(size)] += count
        for (outcome, code), found in sizes.items():
            self._messages.add((_name(outcome), printable(code)), len(found), sum(found))

    def report(self) -> statistics.Statistics:
        """Return the statistics of what was counted so far."""
        self._count_texts()
        verbs = sorted(self._verbs.items(), key=lambda item: -item[1].times.seconds)
        tables = self._codes, self._texts, self._messages, self._clients, self._tls
        return statistics.Statistics(
            version=statistics.VERSION,
            sessions=self._sessions,
            exchanges=self._exchanges,
            began=self._began if self._sessions else 0.0,
            ended=self._ended,
            approximate=(
                self._forgotten
                or OTHER_VERBS in self._verbs
                or any(each.dropped for each in tables)
            ),
            messages=[
                statistics.MessageCount(*key, *sums)
                for key, sums in self._messages.largest(OUTCOMES)
            ],
            verbs=[verb.report(name) for name, verb in verbs if verb.times.count],
            saved=self._saved_time(),
            replies=self._replies(),
            clients=self._client_lists(),
            tls=[
                statistics.TlsCount(*key, *sums)
                for key, sums in sorted(self._tls.largest(VERSIONS))
            ],
            groups=self._group_sizes(),
        )

    def _saved_time(self) -> statistics.SavedTime:
        times = self._round_trips
        return statistics.SavedTime(
            self._commands,
            self._saved,
            self._saved_s,
            self._saved_measured,
            times.count,
            times.percentile(50),
            times.percentile(95),
        )

    def _replies(self) -> list[statistics.ReplyCount]:
        texts: dict[tuple[str, str], list[statistics.TextCount]] = defaultdict(list)
        for (verb, code, text), (count,) in self._texts.largest(len(self._texts.counts)):
            if len(texts[verb, code]) < TEXTS:
                texts[verb, code].append(statistics.TextCount(text, count))
        return [
            statistics.ReplyCount(verb, code, count, texts[verb, code])
            for (verb, code), (count,) in self._codes.largest(REPLIES)
        ]

    def _client_lists(self) -> statistics.Clients:
        by_bytes, by_errors, by_violations = (
            [
                statistics.ClientCount(name, *sums)
                for name, sums in self._clients.largest(CLIENTS, at)
            ]
            for at in (2, 3, 4)
        )
        totals = statistics.ClientCount("", *self._clients.totals)
        return statistics.Clients(by_bytes, by_errors, by_violations, totals)

    def _group_sizes(self) -> list[statistics.GroupCount]:
        ends = [*(each - 1 for each in GROUP_SIZES[1:]), None]
        return [
            statistics.GroupCount(least, most, self._groups[least])
            for least, most in zip(GROUP_SIZES, ends, strict=True)
            if self._groups[least]
        ]


class _Verb:
    """The replies to one verb."""

    def __init__(self) -> None:
        self.times = Durations()
        self.whole_replies: Counter[str] = Counter()
        self._slowest: list[tuple[float, str, float]] = []  # a heap, the fastest of them first

    def add(self, exchanges: Sequence[_Exchange]) -> None:
        """Count exchanges that were answered."""
        self.times.add([each.replied - each.sent for each in exchanges])
        slowest = self._slowest
        if len(slowest) == SLOWEST:
            least = slowest[0][0]
            exchanges = [each for each in exchanges if each.replied - each.sent > least]
        for each in exchanges:
            seconds = each.replied - each.sent
            if len(slowest) < SLOWEST:
                heappush(slowest, (seconds, _name(each.session), each.sent))
            elif seconds > slowest[0][0]:
                heapreplace(slowest, (seconds, _name(each.session), each.sent))

    def report(self, name: str) -> statistics.VerbTimes:
        """Return what is reported of it."""
        times = self.times
        return statistics.VerbTimes(
            name,
            times.count,
            times.seconds,
            times.percentile(50),
            times.percentile(95),
            times.percentile(99),
            times.longest,
            [
                statistics.SlowReply(session, at, seconds)
                for seconds, session, at in sorted(self._slowest, reverse=True)
            ],
        )


def _name(text: str) -> str:
    return (
        text
        if len(text) <= NAME_CHARACTERS and text.isprintable()
        else printable(text[:NAME_CHARACTERS])
    )


def _code_and_text(reply: str) -> tuple[str, str]:
    """Return a reply's code and its first line, without the words that differ each time."""
    try:
        reply = expanded(reply, REPLY_CHARACTERS)
    except ValueError:
        return "", ""
    line = printable(reply[:TEXT_CHARACTERS].partition("\r\n")[0])
    code, text = line[:3], line[4:]
    enhanced = _ENHANCED_CODE.match(text)
    if enhanced is None:
        return code, _VARIES.sub("*", text)
    return code, enhanced[0] + _VARIES.sub("*", text[enhanced.end() :])


def _least_size(size: int) -> int:
    return GROUP_SIZES[max(bisect_right(GROUP_SIZES, size) - 1, 0)]
