"""Which recorded sessions a command is for: the options, and what they match."""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce, wraps
from typing import Any

import click
import msgspec

from smtpproxy.config.address import canonical
from smtpproxy.text.number_options import WholeNumber
from smtpproxy.trace.header_pattern import HeaderPattern
from smtpproxy.trace.records import Closed, client_of


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """What the options choose."""

    since: datetime | None = None
    """Only sessions that began then or later."""
    until: datetime | None = None
    """Only sessions that began before."""
    address: str | None = None
    """A part of the client's address, or of a sender or recipient."""
    code: int | None = None
    """A reply code, or its first digits."""
    text: str | None = None
    """A part of the last record."""
    message_id: str | None = None
    """A part of the Message-ID of a message."""
    queue_id: str | None = None
    """A part of the id that the MTA gave a message."""
    header: HeaderPattern | None = None
    """A header field of a message: `sessions` has the ids of the sessions with such messages."""
    sessions: Collection[str] | None = None
    """The ids of the sessions to choose from; None: all."""

    def matches(self, session: Closed) -> bool:
        """Return whether a session, of which this is the last record, is chosen."""
        return (
            (self.since is None or session.opened >= _seconds(self.since))
            and (self.until is None or session.opened < _seconds(self.until))
            and (not self.address or _has_address(session, self.address))
            and (not self.code or _has_code(session, str(self.code)))
            and (self.sessions is None or session.session in self.sessions)
            and (not self.message_id or _has(session, "message_id", self.message_id))
            and (not self.queue_id or _has(session, "queue_id", self.queue_id))
            and (
                not self.text or self.text.lower() in msgspec.json.encode(session).decode().lower()
            )
        )


class _Time(click.DateTime):
    """A time, whose error is an example and not a format."""

    def __init__(self) -> None:
        super().__init__(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"])

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the time that a text is."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            example = "2026-11-24, 2026-11-24T08:00 or 2026-11-24T08:00:30"
            self.fail(f"{value!r} is not a time; write, for example, {example}", param, ctx)


def _header(_: click.Context, param: click.Parameter, value: str | None) -> HeaderPattern | None:
    try:
        return None if value is None else HeaderPattern.of(value)
    except ValueError as error:
        raise click.BadParameter(str(error), param=param) from None


_time = _Time()
_OPTIONS = (
    click.option(
        "--since",
        type=_time,
        metavar="TIME",
        help="Only sessions that began then or later (UTC).",
    ),
    click.option(
        "--until", type=_time, metavar="TIME", help="Only sessions that began before (UTC)."
    ),
    click.option(
        "--address", metavar="TEXT", help="Only if client, sender or recipient contains this."
    ),
    click.option(
        "--code",
        type=WholeNumber(1, 999, example=550),
        metavar="CODE",
        help="Only if a reply had this code: 550, or 5 for 5xx.",
    ),
    click.option("--text", help="Only if the last record contains this."),
    click.option(
        "--message-id", metavar="TEXT", help="Only if the Message-ID of a message contains this."
    ),
    click.option(
        "--queue-id", metavar="TEXT", help="Only if the MTA's id of a message contains this."
    ),
    click.option(
        "--header",
        callback=_header,
        metavar="NAME[=TEXT]",
        help="Only if a message has this header field, and TEXT in it, where content is recorded.",
    ),
)


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as its argument `chosen`."""

    @wraps(command)
    def with_filter(
        since: datetime | None,
        until: datetime | None,
        address: str | None,
        code: int | None,
        text: str | None,
        message_id: str | None,
        queue_id: str | None,
        header: HeaderPattern | None,
        **others: Any,
    ) -> Any:
        chosen = SessionFilter(since, until, address, code, text, message_id, queue_id, header)
        return command(chosen=chosen, **others)

    return reduce(lambda made, option: option(made), reversed(_OPTIONS), with_filter)


def _seconds(time: datetime) -> float:
    return time.replace(tzinfo=UTC).timestamp()


def _has_address(session: Closed, address: str) -> bool:
    wanted = address.lower()
    with contextlib.suppress(ValueError):  # not an IP address, but a part of one or other text
        wanted = canonical(wanted.strip("[]"))
    names = [client_of(session)]
    for message in session.transactions:
        names += [message.sender, *message.recipients, *message.refused]
    return any(wanted in name.lower() for name in names)


def _has(session: Closed, name: str, wanted: str) -> bool:
    wanted = wanted.lower()
    return any(wanted in getattr(each, name).lower() for each in session.transactions)


def _has_code(session: Closed, code: str) -> bool:
    codes = list(map(str, session.codes))
    codes += [message.reply[:3] for message in session.transactions]
    return any(each.startswith(code) for each in codes)
