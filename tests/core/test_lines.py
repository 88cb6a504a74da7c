"""Command lines: their end, which are valid, and what of them may be shown."""

import pytest

from smtpproxy.core import lines, replies
from smtpproxy.core.violations import ClientViolation


def _violation(call, *arguments, **options) -> ClientViolation:
    with pytest.raises(ClientViolation) as caught:
        call(*arguments, **options)
    return caught.value


def test_line_ends_at_the_first_lf_after_its_start() -> None:
    assert lines.end_of_line(b"NOOP\r\nRSET\r\n", 0, 100) == 6
    assert lines.end_of_line(b"NOOP\r\nRSET\r\n", 6, 100) == 12
    assert lines.end_of_line(b"NOOP\nRSET", 0, 100) == 5


@pytest.mark.parametrize("unfinished", [b"", b"NOOP", b"NOOP\r"])
def test_unfinished_line_has_no_end_yet(unfinished: bytes) -> None:
    assert lines.end_of_line(unfinished, 0, 100) == 0
    assert lines.end_of_line(b"x\r\n" + unfinished, 3, 100) == 0


def test_limit_counts_the_line_end() -> None:
    assert lines.end_of_line(b"12345678\r\n", 0, 10) == 10
    assert lines.end_of_line(b"123456789", 0, 10) == 0
    for octets in (b"123456789\r\n", b"1234567890", b"123456789\r"):
        violation = _violation(lines.end_of_line, octets, 0, 10)
        assert violation.kind == "line_too_long"
        assert violation.reply == replies.LINE_TOO_LONG
        assert violation.octets == octets[:10]
        assert not violation.closes


def test_only_auth_with_a_space_after_it_may_be_longer() -> None:
    assert lines.is_auth(b"RSET\r\nauth PLAIN", 6)
    assert not lines.is_auth(b"AUTHX", 0)
    assert not lines.is_auth(b"AUTH", 0)


def test_command_line_gets_crlf() -> None:
    assert lines.command_line(b"NOOP\n") == b"NOOP\r\n"
    assert lines.command_line(b"NOOP\r\n") == b"NOOP\r\n"
    assert lines.command_line(b"\n") == b"\r\n"


@pytest.mark.parametrize(
    "line",
    [b"NOOP\rRSET\r\n", b"NOOP\r\r\n", b"\rNOOP\r\n", b"NOOP\rRSET\n", b"NO\0OP\r\n", b"\0\n"],
)
def test_cr_or_nul_in_a_line_is_refused(line: bytes) -> None:
    for check in (lines.command_line, lines.auth_line):
        violation = _violation(check, line)
        assert violation.kind == "bare_cr_or_nul_in_command"
        assert violation.reply == replies.BARE_CR_OR_NUL


@pytest.mark.parametrize("white", [b" ", b"\t", b"\v", b"\f"])
def test_white_space_before_a_verb_is_refused_but_not_before_auth_data(white: bytes) -> None:
    assert _violation(lines.command_line, white + b"DATA\r\n").kind == "white_space_before_verb"
    assert lines.auth_line(white + b"DATA\n") == white + b"DATA\r\n"


def test_other_protocols_close() -> None:
    tls = _violation(lines.check_protocol, b"NOOP\r\n\x16\x03\x01\n", 6)
    assert tls.octets == b"\x16\x03"  # whatever else has come
    assert (tls.kind, tls.reply, tls.closes) == ("tls_unexpected", replies.TLS_NOT_EXPECTED, True)
    ssh = _violation(lines.check_protocol, b"SSH-2.0-x", 0)
    assert (ssh.kind, ssh.reply, ssh.closes) == ("not_smtp", replies.NOT_SMTP, True)
    assert ssh.octets == b"SSH-"


@pytest.mark.parametrize("line", [b"Host: x\r\n", b"Host:x\n", b"X-Y:\r\n"])
def test_header_is_another_protocol_if_it_comes_first(line: bytes) -> None:
    found = _violation(lines.check_header, line)
    assert (found.kind, found.reply, found.closes) == ("not_smtp", replies.NOT_SMTP, True)


@pytest.mark.parametrize(
    "line", [b"FROB x:y\r\n", b":\r\n", b"\r\n", b"", b"\x16", b"SSH", b"\xff:\n"]
)
def test_what_is_only_unknown_is_of_this_protocol(line: bytes) -> None:
    lines.check_protocol(line, 0)
    lines.check_header(line)


def test_first_word_is_that_at_the_start_of_the_line() -> None:
    assert lines.first_word(b"NOOP\r\nget /x y", 6) == b"GET"
    assert lines.first_word(b"get\r\n", 0) == b"GET"
    assert lines.first_word(b" GET /", 0) == lines.first_word(b"", 0) == b""


@pytest.mark.parametrize(
    ("line", "size", "last"),
    [
        (b"BDAT 0\r\n", 0, False),
        (b"bdat 10 last\r\n", 10, True),
        (b"BDAT  007\tLAST \r\n", 7, True),
        (b"BDAT 99999999999999999999\r\n", 10**20 - 1, False),
    ],
)
def test_bdat_announces_its_payload(line: bytes, size: int, last: bool) -> None:
    assert lines.bdat_size(line) == size
    assert lines.is_last_chunk(line) == last


@pytest.mark.parametrize(
    "words",
    [
        *("BDAT", "BDAT ", "BDAT -1", "BDAT +5", "BDAT 0x10", "BDAT 100000000000000000000"),
        *("BDAT 5 LAST 7", "BDAT 5 FIRST", "BDAT LAST", "BDAT 5LAST", "BDAT\v5", "BDAT 5\fLAST"),
        *("BDAT 1_0", "BDAT \u0663"),
    ],
)
def test_bdat_with_an_unknown_size_closes(words: str) -> None:
    line = words.encode() + b"\r\n"
    violation = _violation(lines.bdat_size, line)
    assert (violation.kind, violation.reply) == ("bad_bdat", replies.BAD_BDAT)
    assert violation.closes
    assert violation.octets == line


def test_what_may_be_taken_for_bdat_is_known_whatever_is_wrong_with_it() -> None:
    assert lines.is_bdat(b"RSET\r\n \tbdat\0", 6)
    assert lines.is_bdat(b"BDATX", 0)
    assert not lines.is_bdat(b"BDA", 0)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"AUTH PLAIN c2VjcmV0\r\n", b"AUTH PLAIN *\r\n"),
        (b"auth  plain\tc2 Vj\r\n", b"auth plain *\r\n"),
        (b" AUTH PLAIN c2VjcmV0\r\n", b"AUTH PLAIN *\r\n"),
        (b"AUTH\0PLAIN\0c2VjcmV0\r\n", b"AUTH PLAIN *\r\n"),
        (b"AUTH PLAIN\rc2VjcmV0", b"AUTH PLAIN *\r\n"),
        (b"X-EXPS NTLM TlRM\r\n", b"X-EXPS NTLM *\r\n"),
        (b"xclient LOGIN=joe ADDR=10.0.0.1\r\n", b"xclient *\r\n"),
        (b"AUTH LOGIN\r\n", b"AUTH LOGIN\r\n"),
        (b"AUTH\r\n", b"AUTH\r\n"),
        (b"AUTH c2VjcmV0\r\n", b"AUTH *\r\n"),
        (b"AUTH=PLAIN c2VjcmV0\r\n", b"*\r\n"),
        (b"MAIL FROM:<a> SIZE=1 BODY=8BITMIME\r\n", None),
        (b"\r\n", None),
    ],
)
def test_secrets_are_cut(line: bytes, shown: bytes | None) -> None:
    assert lines.redacted(line) == (line if shown is None else shown)


def test_text_of_a_reply_is_cut() -> None:
    assert lines.redacted_reply(b"500 5.5.1 what: c2Vj\r\n") == b"500 5.5.1 *\r\n"
    assert lines.redacted_reply(b"501-c2Vj\r\n501 c2Vj\r\n") == b"501-*\r\n"
    assert lines.redacted_reply(b"502\r\n") == b"502\r\n"


def test_no_violation_shows_a_secret() -> None:
    for line in (b" AUTH PLAIN c2Vj\n", b"AUTH PLAIN\rc2Vj\n", b"AUTH PLAIN c2Vj\0\n"):
        assert b"c2Vj" not in _violation(lines.command_line, line).octets
    assert b"c2Vj" not in _violation(lines.end_of_line, b"AUTH PLAIN c2Vj", 0, 15).octets
