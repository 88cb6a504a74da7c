"""Makes the records of exchanges.

It is apart from the records, as mypyc cannot compile a msgspec Struct.

Hot path: measure before changing (python -m tests.bench trace).
"""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from smtpproxy.core.exchange import Exchange
from smtpproxy.core.violations import BackendViolation
from smtpproxy.log.verb_name import VERB_NAMES, verb_of
from smtpproxy.text.escaping import BACKSLASH, DELETE, compact_text_of, text_of
from smtpproxy.trace.content_capture import CapturedContent
from smtpproxy.trace.records import Exchanged, Step, Violation, encode_lines


def encoded(
    session: str,
    exchanges: Sequence[Exchange],
    contents: Mapping[Exchange, CapturedContent],
    offset: float,
) -> bytes:
    """Return the lines of exchanges of a session.

    They are made at once, while the exchanges are in the processor's cache, and the short way where
    nothing is unusual.

    Args:
        session: The session's id.
        exchanges: The exchanges, in order.
        contents: What is to be recorded of the content of each that has some.
        offset: Seconds to add to their times to get those since 1970.
    """
    found = []
    try:
        for exchange in exchanges:
            if exchange.problem is not None or exchange.steps or exchange.bare_lf:
                break
            name, sent, replied = exchange.verb.name, exchange.sent, exchange.replied
            record = Exchanged(
                session,
                VERB_NAMES[name] if name else verb_of(exchange),
                exchange.line[:-2].decode("ascii"),
                exchange.code,
                exchange.reply[:-2].decode("ascii"),
                exchange.framed + offset,
                sent and sent + offset,
                replied and replied + offset,
                exchange.flushed and exchange.flushed + offset,
                exchange.pipelined,
                exchange.octets,
            )
            if contents and exchange in contents:
                content = contents[exchange]
                if content.text:
                    break
                record = replace(
                    record,
                    sha256=content.sha256,
                    digested_bytes=content.digested,
                    content_cut=content.cut,
                )
            found.append(record)
        else:
            lines = encode_lines(found)
            if BACKSLASH not in lines and DELETE not in lines:
                return lines
    except UnicodeDecodeError:
        pass
    return encode_lines([_exchanged(session, each, contents, offset) for each in exchanges])


def exchanged(session: str, exchanges: Sequence[Exchange], offset: float) -> list[Exchanged]:
    """Return the records of exchanges.

    Args:
        session: The session's id.
        exchanges: The exchanges, in order.
        offset: Seconds to add to their times to get those since 1970.
    """
    return [_exchanged(session, each, {}, offset) for each in exchanges]


def _exchanged(
    session: str, exchange: Exchange, contents: Mapping[Exchange, CapturedContent], offset: float
) -> Exchanged:
    record = Exchanged(
        session=session,
        verb=verb_of(exchange),
        command=_line_of(exchange.line),
        code=exchange.code,
        reply=_line_of(exchange.reply),
        framed=exchange.framed + offset,
        sent=exchange.sent and exchange.sent + offset,
        replied=exchange.replied and exchange.replied + offset,
        flushed=exchange.flushed and exchange.flushed + offset,
        pipelined=exchange.pipelined,
        content_bytes=exchange.octets,
        steps=_steps_of(exchange, offset),
        bare_lf=exchange.bare_lf,
    )
    if exchange.problem is not None:
        record = replace(record, violation=violation_of(exchange))
    if exchange in contents:
        content = contents[exchange]
        record = replace(
            record,
            sha256=content.sha256,
            digested_bytes=content.digested,
            content=compact_text_of(content.text),
            content_cut=content.cut,
            content_received=compact_text_of(content.came),
        )
    return record


def _steps_of(exchange: Exchange, offset: float) -> Sequence[Step]:
    steps = exchange.all_steps
    if not steps or (len(steps) == 1 and steps[0][:2] == (exchange.line, exchange.reply)):
        return ()  # nothing, or an EHLO that went through as it was
    return [
        Step(
            _line_of(step.line),
            _line_of(step.reply),
            step.sent + offset,
            step.replied and step.replied + offset,
        )
        for step in steps
    ]


def _line_of(octets: bytes) -> str:
    return compact_text_of(octets.removesuffix(b"\r\n"))


def violation_of(exchange: Exchange) -> Violation:
    """Return the record of the violation of an exchange that has one."""
    problem = exchange.problem
    assert problem is not None
    side = "backend" if isinstance(problem, BackendViolation) else "client"
    return Violation(side, problem.kind, text_of(problem.octets), exchange.rewritten)
