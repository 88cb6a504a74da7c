"""The report of a probe run: the findings as a table, and what they mean for the proxy.

Text from the server is escaped before it is shown.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smtpproxy.core.capabilities import NEVER_PASSED, PASSED
from smtpproxy.probe.behaviour_checks import NewlineResult, RelayResult
from smtpproxy.probe.findings import Findings, word_of
from smtpproxy.probe.pipelining_checks import GroupEnd, GroupResult
from smtpproxy.probe.smtp_connection import ProbeReply, short
from smtpproxy.probe.tls_checks import CertificateFindings, TlsFindings
from smtpproxy.timeline.labels import BAD, COMMAND, GOOD, QUIET

_MOST_WORDS = 40
_MOST_NAMES = 4
_GROUP_CELLS = 28
_MATTER_CELLS = 11
_NEAR_DAYS = 21
_MASK = re.compile(rb"X{4,}|\*{3,}", re.IGNORECASE)
"""What firewalls put in place of capabilities that they do not know."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The mark at the start of a row: whether the finding is good or bad."""

    sign: str
    ascii_sign: str
    style: str


RIGHT = Mark("✓", "+", GOOD)
WRONG = Mark("✗", "x", BAD)
ODD = Mark("!", "!", "yellow")
PLAIN = Mark("·", "-", QUIET)
UNKNOWN = Mark("?", "?", "yellow")
NONE = Mark("", "", "")

Row = tuple[Mark, str, Text | str]


def show(console: Console, found: Findings) -> None:
    """Print all findings and the conclusion."""
    reached = f" ({found.ip})" if found.ip not in ("", found.address.host) else ""
    count = "1 connection" if found.connections == 1 else f"{found.connections} connections"
    shown_text = f"EHLO {found.name}, {count}, {_duration(found.took_s)}"
    console.print(Text.assemble((f"{found.address}{reached}", "bold"), "  ", (shown_text, QUIET)))
    console.print()
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold", min_width=_MATTER_CELLS)
    table.add_column(overflow="fold")
    for mark, matter, text in _rows(found):
        sign = mark.ascii_sign if console.options.ascii_only else mark.sign
        table.add_row(Text(sign, mark.style), Text(matter), text)
    console.print(table)
    if not found.refusal:
        console.print()
        console.print(verdict(found))


def verdict(found: Findings) -> Text:
    """Return the conclusion about PIPELINING, as one sentence."""
    if not found.groups:
        return Text("Whether it answers groups of commands is not known.", ODD.style)
    if found.offers_pipelining:
        if found.loses_groups:
            shown_text = (
                "It offers PIPELINING but loses commands: let the proxy send one at a time."
            )
            return Text(shown_text, "bold")
        return Text("Its PIPELINING works: the proxy uses it.", GOOD)
    if found.loses_groups:
        shown_text = "It lacks PIPELINING and loses commands sent in groups: the proxy fixes both."
        return Text(shown_text, "bold")
    return Text(
        "It lacks PIPELINING, but loses no commands sent in groups: the proxy adds PIPELINING.",
        "bold",
    )


def _rows(found: Findings) -> Iterator[Row]:
    greets = RIGHT if found.greeting.is_accepting else WRONG
    yield greets, "greeting", found.greeting.line
    if _MASK.search(found.greeting.octets):
        yield ODD, "", "edited by a firewall between here and the server"
    if found.is_implicit:
        yield PLAIN, "", "inside implicit TLS"
    if found.hello is not None:
        yield from _hello_rows(found, found.hello)
    yield from _group_rows(found)
    if found.data is not None:
        takes = found.data.reply.code < 400
        context = "after a refused recipient" if found.data.refused else "without any recipient"
        text = f"{context}: {found.data.reply.line}"
        yield WRONG if takes else RIGHT, "DATA", text
    for name, newline in (("bare LF", found.lf), ("bare CR", found.cr)):
        if newline is not None:
            ends = newline is NewlineResult.ENDS
            mark = (ODD if name == "bare LF" else WRONG) if ends else RIGHT
            yield mark, name, newline.value + (", and may end a content line too" if ends else "")
    if not found.refusal and found.hello is not None:
        yield from _tls_rows(found)
    if found.relay is not None:
        yield _relay_row(found.relay)
    yield from ((UNKNOWN, name, why) for name, why in found.undetermined.items())
    if found.seconds:
        yield from _time_rows(found.seconds)


def _hello_rows(found: Findings, hello: ProbeReply) -> Iterator[Row]:
    if found.ehlo_refused is not None:
        yield ODD, "EHLO", f"is not known: {found.ehlo_refused.line}"
        yield RIGHT if hello.is_accepting else WRONG, "HELO", hello.line
    else:
        yield RIGHT if hello.is_accepting else WRONG, "EHLO", hello.line
    if not hello.is_accepting or found.ehlo_refused is not None:
        return
    passed = [line for line in found.capabilities if word_of(line) in PASSED]
    yield PLAIN, "passed on", _listed(passed)
    hidden: dict[str, list[bytes]] = {}
    for line in found.capabilities:
        if (why := _why_hidden(word_of(line))) is not None:
            hidden.setdefault(why, []).append(line)
    for number, (why, lines) in enumerate(hidden.items()):
        yield PLAIN, "" if number else "hidden", Text.assemble(_listed(lines), (f"  {why}", QUIET))
    inside = [line for line in found.inside if word_of(line)]
    if inside:
        yield PLAIN, "inside TLS", _listed(inside)


def _why_hidden(word: bytes) -> str | None:
    """Return why the proxy hides a capability; None if it passes it on or handles it itself."""
    if word in PASSED or word in (b"PIPELINING", b""):
        return None
    if word == b"STARTTLS":
        return "unless the listener sets tls"
    if word == b"REQUIRETLS":
        return "unless both sides are inside TLS"
    if word in NEVER_PASSED:
        return "always: would break framing or trust"
    if _MASK.fullmatch(word):
        return "masked by a firewall"
    return "unless the listener's capabilities.allow names them"


def _group_rows(found: Findings) -> Iterator[Row]:
    if found.hello is not None and not found.refusal:
        if not found.offers_pipelining:
            yield WRONG, "PIPELINING", "not offered"
        elif found.loses_groups:
            yield WRONG, "PIPELINING", "offered, but loses commands"
        else:
            yield RIGHT, "PIPELINING", "offered, and works"
    for number, group in enumerate(found.groups):
        mark = RIGHT if group.end is GroupEnd.ANSWERED else WRONG
        yield mark, "" if number else "groups", _group(group)


def _group(group: GroupResult) -> Text:
    """Return a group's verbs and reply codes, unusual codes in red, and how it ended."""
    verbs = Text(" | ".join(group.verbs), COMMAND)
    verbs.pad_right(_GROUP_CELLS - verbs.cell_len)
    codes = [
        Text(str(reply.code), GOOD if reply.code == usual else BAD)
        for reply, usual in zip(group.replies, group.usual, strict=False)
    ]
    shown_text = Text(" | ").join(codes) if codes else Text("no reply", BAD)
    if group.end is GroupEnd.ANSWERED:
        return Text.assemble(verbs, shown_text)
    missing = len(group.commands) - len(codes)
    lost = f": {missing} of {len(group.commands)} lost" if missing else ""
    return Text.assemble(verbs, shown_text, (f", {group.end.value}{lost}", BAD))


def _tls_rows(found: Findings) -> Iterator[Row]:
    if found.tls is None:
        if "TLS" not in found.undetermined:
            yield PLAIN, "TLS", "STARTTLS is not offered"
        return
    tls, working = found.tls, found.tls.working
    how = "implicit" if found.is_implicit else "by STARTTLS"
    if found.insists_on_tls:
        how += ", required for mail"
    yield PLAIN, "TLS", how
    yield from _version_rows(tls)
    if tls.certificate is not None:
        yield from _certificate_rows(tls, tls.certificate)
    elif working:
        yield ODD, "", "no readable certificate"
    if tls.is_injectable:
        yield WRONG, "", "executes plaintext sent after STARTTLS inside TLS (CVE-2011-0411)"
    if tls.undetermined:
        yield UNKNOWN, "", tls.undetermined


def _version_rows(tls: TlsFindings) -> Iterator[Row]:
    new = [version for version in tls.working if version >= "1.2"]
    old = [version for version in tls.working if version < "1.2"]
    if new:
        yield RIGHT, "", f"{' and '.join(new)} {_works(new)}"
    if old:
        mark = ODD if new else WRONG
        yield mark, "", f"{' and '.join(old)} {_works(old)}, obsolete (RFC 8996)"
    if tls.lacks_secure_renegotiation:
        yield ODD, "", "lacks secure renegotiation (RFC 5746)"
    for version, why in tls.versions.items():
        if why:
            mark = WRONG if not tls.working else PLAIN
            yield mark, "", f"{version} does not work: {why}"


def _works(versions: list[str]) -> str:
    return "works" if len(versions) == 1 else "work"


def _certificate_rows(tls: TlsFindings, certificate: CertificateFindings) -> Iterator[Row]:
    names = ", ".join(certificate.names[:_MOST_NAMES]) or "no name"
    more = len(certificate.names) - _MOST_NAMES
    issuer = "itself" if certificate.is_self_signed else certificate.issuer
    more_names = f" and {more} more" if more > 0 else ""
    shown_text = f"for {names}{more_names}, by {issuer}, {certificate.key}"
    yield PLAIN, "certificate", shown_text
    yield _validity(certificate)
    if tls.is_verified and not tls.unverified:
        yield RIGHT, "", "verified by this machine's certificate authorities"
    elif tls.is_verified and tls.backend is not None:
        yield ODD, "", f"verified, but only for {tls.backend.server_name}: {tls.unverified}"
    elif tls.unverified:
        yield WRONG, "", f"does not verify: {tls.unverified}"
    else:
        yield (
            ODD,
            "",
            "could not be verified: the handshake fails, or needs obsolete TLS or ciphers",
        )


def _validity(certificate: CertificateFindings) -> Row:
    days = (certificate.ends - datetime.now(UTC)).days
    until = f"until {certificate.ends:%Y-%m-%d}"
    if certificate.has_expired:
        return WRONG, "", f"expired on {certificate.ends:%Y-%m-%d}"
    if certificate.begins > datetime.now(UTC):
        return WRONG, "", f"not valid before {certificate.begins:%Y-%m-%d}"
    return ODD if days < _NEAR_DAYS else RIGHT, "", f"valid {until}, for {days} more days"


def _relay_row(relay: RelayResult) -> Row:
    ask = f"from <{relay.sender}> to <{relay.recipient}>"
    if relay.would:
        return WRONG, "relay", Text(f"{ask}: would be relayed for this machine: {relay.reply.line}")
    if relay.reply.code < 500:
        return UNKNOWN, "relay", f"{ask}: {relay.verb} is refused temporarily: {relay.reply.line}"
    return RIGHT, "relay", f"{ask}: {relay.verb} is refused: {relay.reply.line}"


def _time_rows(seconds: dict[str, list[float]]) -> Iterator[Row]:
    shown_text = [f"{verb} {_duration(median(times))}" for verb, times in seconds.items()]
    yield PLAIN, "reply times", Text.assemble(", ".join(shown_text), ("  (medians)", QUIET))
    verb, slowest = max(((verb, max(times)) for verb, times in seconds.items()), key=lambda x: x[1])
    yield NONE, "", f"slowest: {verb}, {_duration(slowest)}"


def _duration(seconds: float) -> str:
    """Return a duration as text, in s or ms with at most three significant digits."""
    ms = seconds * 1000
    if ms >= 1000:
        return f"{seconds:.1f} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms" if ms >= 1 else f"{ms:.2f} ms"


def _listed(lines: Iterable[bytes]) -> str:
    lines = list(lines)
    shown_text = ", ".join(short(line) for line in lines[:_MOST_WORDS]) or "nothing"
    more = len(lines) - _MOST_WORDS
    return f"{shown_text} and {more} more" if more > 0 else shown_text
