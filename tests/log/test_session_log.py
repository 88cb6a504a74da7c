"""What is logged of a session, from the exchanges it consists of."""

import io
import json

import pytest

from smtpproxy.core.observer import SessionSummary
from smtpproxy.core.pipeline import Pipeline
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.log import log
from smtpproxy.log.debug_log import DebugLog
from smtpproxy.log.session_log import REFUSALS_LOGGED, ServiceLog
from smtpproxy.log.transaction_summary import paths
from tests.support.memory import Allocated
from tests.support.observed_session import SOURCE, KnownEnds, Watched


class Logged:
    """A pipeline whose exchanges are logged, and the lines that come of it."""

    def __init__(
        self, level: str = "info", greeting: str = "220 mx", *, add_chunking: bool = False
    ) -> None:
        self._stream = io.BytesIO()
        log.configure(level, "json", self._stream)
        self.session = ServiceLog().session("1-1", "smtp", "old", "192.0.2.1:4711")
        self.session.connected("10.0.0.5:25", KnownEnds())
        self.pipeline = Pipeline(
            SessionPolicy(recipients=10_000, add_chunking=add_chunking),
            lambda _: None,
            self.session,
            10.0,
            self.session.content,
        )
        self.pipeline.connect_backend(lambda _: None)
        if greeting:
            self.says(greeting)

    def sends(self, *lines: str) -> None:
        self.pipeline.client_received("".join(line + "\r\n" for line in lines).encode(), 11.0)

    def says(self, *replies: str) -> None:
        for reply in replies:
            self.pipeline.backend_received(reply.encode() + b"\r\n", 12.5)

    def close(self) -> None:
        self.session.closed(
            SessionSummary(self.pipeline.ended or "client_closed", 2.5, 4, 3, 1, 80, 90)
        )

    @property
    def raw(self) -> list[bytes]:
        return self._stream.getvalue().splitlines()

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.raw]

    @property
    def events(self) -> list[object]:
        return [line["event"] for line in self.lines]


def test_a_message_is_one_line_with_all_its_fields() -> None:
    logged = Logged()
    logged.sends("MAIL FROM:<a@x> SIZE=9", "RCPT TO:<b@y>", "RCPT TO:<c@z> NOTIFY=NEVER", "DATA")
    logged.says("250 a", "250 b", "550 5.1.1 no c", "354 go")
    logged.sends("text", ".")
    logged.says("250 2.0.0 Ok: queued as 4XqZ3k")
    refusal, line = logged.lines
    assert (refusal["event"], refusal["recipient"]) == ("recipient_refused", "c@z")
    assert line["event"] == "message_relayed"
    assert (line["client_ip"], line["client_port"]) == ("192.0.2.1", 4711)
    assert (line["listener"], line["backend"], line["server"]) == ("smtp", "old", "10.0.0.5:25")
    assert (line["sender"], line["recipients"]) == ("a@x", ["b@y"])
    assert line["refused"] == ["c@z 550 5.1.1 no c"]
    assert (line["size_bytes"], line["reply"]) == (6, "250 2.0.0 Ok: queued as 4XqZ3k")
    assert line["queue_id"] == "4XqZ3k"
    assert (line["source_ip"], line["source_port"]) == SOURCE
    assert (line["duration_s"], line["groups"]) == (1.5, [4, 1])


@pytest.mark.parametrize(
    ("lines", "replies", "event"),
    [
        (["DATA", "text", "."], ["354 go", "554 spam"], "message_refused"),
        (["DATA", "RSET"], ["451 later", "250 ok"], "message_refused"),
        (["RSET"], ["250 ok"], "message_abandoned"),
        (["EHLO x"], ["250 mx"], "message_abandoned"),
        (["MAIL FROM:<n@x>"], ["503 nested"], None),
    ],
)
def test_refused_and_abandoned_transactions_have_events_of_their_own(
    lines: list[str], replies: list[str], event: str | None
) -> None:
    logged = Logged()
    logged.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>")
    logged.says("250 a", "250 b")
    logged.sends(lines[0])
    logged.says(replies[0])
    if lines[1:]:
        logged.sends(*lines[1:])
        logged.says(*replies[1:])
    assert logged.events == ([event] if event else [])


def test_an_open_transaction_is_logged_when_the_session_ends() -> None:
    logged = Logged()
    logged.sends("MAIL FROM:<a@x>")
    logged.says("250 a")
    logged.close()
    assert logged.events == ["message_abandoned", "session_closed"]


@pytest.mark.parametrize("replies", [(), ("250 a",), ("250 a", "250 b")])
def test_a_transaction_without_a_last_reply_lasts_to_the_one_before(
    replies: tuple[str, ...],
) -> None:
    logged = Logged()
    logged.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA")
    logged.says(*replies)
    logged.pipeline.client_lost(99.0)
    logged.close()
    (duration,) = [each["duration_s"] for each in logged.lines if "duration_s" in each][:1]
    assert duration == (1.5 if replies else 0.0)


def test_bdat_chunks_make_one_message() -> None:
    logged = Logged()
    logged.sends("EHLO x")
    logged.says("250-mx\r\n250 CHUNKING")
    logged.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "BDAT 2", "", "BDAT 2 LAST", "")
    logged.says("250 a", "250 b", "250 2 octets", "250 queued")
    (line,) = logged.lines
    assert (line["event"], line["size_bytes"], line["reply"]) == (
        "message_relayed",
        4,
        "250 queued",
    )


def with_added_chunking() -> Logged:
    logged = Logged(add_chunking=True)
    logged.sends("EHLO x")
    logged.says("250 mx")
    logged.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "BDAT 23", "Message-ID: <1@x>", "", "")
    logged.says("250 a", "250 b")
    return logged


def test_chunks_that_become_content_make_one_message() -> None:
    logged = with_added_chunking()
    logged.says("354 go")
    logged.sends("BDAT 2 LAST", "")
    logged.says("250 queued")
    (line,) = logged.lines
    assert (line["event"], line["size_bytes"]) == ("message_relayed", 25)
    assert (line["reply"], line["message_id"]) == ("250 queued", "<1@x>")


@pytest.mark.parametrize("client", ["RSET", "QUIT", ""])
def test_chunks_without_a_last_one_are_an_abandoned_message(client: str) -> None:
    logged = with_added_chunking()
    logged.says("354 go")
    if client:
        logged.sends(client)
    logged.close()
    abandoned, _ = logged.lines
    assert (abandoned["event"], abandoned["reply"]) == ("message_abandoned", "")
    assert logged.lines[-1]["reason"] == {"RSET": "message_aborted", "QUIT": "quit"}.get(
        client, "client_closed"
    )


def test_a_refused_data_refuses_the_chunks() -> None:
    logged = with_added_chunking()
    logged.says("452 full")
    logged.sends("BDAT 2 LAST", "", "RSET")
    logged.says("250 reset")
    (line,) = logged.lines
    assert (line["event"], line["reply"]) == ("message_refused", "452 full")


def test_a_refused_chunk_refuses_those_after_it() -> None:
    logged = with_added_chunking()
    logged.says("354 go", "452 full")
    logged.sends("BDAT 2", "", "BDAT 2 LAST", "")
    logged.close()
    refused, _ = logged.lines
    assert (refused["event"], refused["reply"]) == ("message_refused", "452 full")


def test_a_refusal_between_two_chunks_refuses_the_message() -> None:
    logged = with_added_chunking()
    logged.says("354 go", "552 too big")
    logged.sends("BDAT 2 LAST", "")
    (line,) = logged.lines
    assert (line["event"], line["reply"]) == ("message_refused", "552 too big")


def test_a_message_id_is_found_in_any_chunk() -> None:
    logged = Logged()
    logged.sends("EHLO x")
    logged.says("250-mx\r\n250-PIPELINING\r\n250 CHUNKING")
    one = "From: a@x\r\nMessage-ID: <1@x>\r\n\r\n"
    two = "Message-ID: <2@x>\r\n\r\n"
    envelope = "MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\n"
    group = f"{envelope}BDAT 11\r\n{one[:11]}BDAT {len(one) - 11} LAST\r\n{one[11:]}"
    group += f"{envelope}BDAT {len(two)} LAST\r\n{two}"
    logged.pipeline.client_received(group.encode(), 11.0)
    logged.says("250 a", "250 b", "250 c", "250 d", "250 a", "250 b", "250 c")
    logged.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA")
    logged.says("250 a", "250 b", "354 go")
    logged.sends("Subject: none", "", "text", ".")
    logged.says("250 d")
    assert [line.get("message_id") for line in logged.lines] == ["<1@x>", "<2@x>", None]


def test_each_further_line_of_a_session_names_its_last_fault() -> None:
    logged = Logged()
    logged.session.broken(ValueError("x"))
    for fault in ("RCPT 450", "NOOP close"):
        logged.session.noted("fault_injected", fault=fault)
        logged.session.slowed()
    found = [(line["event"], line.get("fault")) for line in logged.lines]
    assert found == [
        ("internal_error", None),
        ("fault_injected", "RCPT 450"),
        ("client_slowed", "RCPT 450"),
        ("fault_injected", "NOOP close"),
        ("client_slowed", "NOOP close"),
    ]
    assert [line for line in logged.lines if "reason" in line] == []  # which would be the same


def test_a_message_shows_helo_tls_and_auth_of_the_client() -> None:
    logged = Logged()
    logged.session.noted("tls_started", side="backend", version="TLSv1", cipher="OLD")
    logged.session.noted("tls_started", side="client", version="TLSv1.3", cipher="AES")
    logged.sends("EHLO first", "EHLO pc.example")
    logged.says("250-mx\r\n250 AUTH LOGIN PLAIN", "250-mx\r\n250 AUTH LOGIN PLAIN")
    logged.sends("AUTH LOGIN")
    logged.says("334 VXNlcm5hbWU6")
    logged.sends("am9l")
    logged.says("535 5.7.8 no")
    logged.sends("auth plain AGpvZQBzZWNyZXQ=")
    logged.says("235 2.7.0 yes")
    logged.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA")
    logged.says("250 a", "250 b", "354 go")
    logged.sends("text", ".")
    logged.says("250 ok")
    refusal, line = logged.lines
    assert (refusal["event"], refusal["mechanism"], refusal["attempt"]) == (
        "auth_refused",
        "LOGIN",
        1,
    )
    assert refusal["reply"] == "535 5.7.8 no"
    assert (line["helo"], line["tls"], line["auth"]) == ("pc.example", "TLSv1.3 AES", "PLAIN")
    assert b"am9l" not in b"".join(logged.raw)
    assert b"AGpv" not in b"".join(logged.raw)


def test_each_kind_of_refusal_is_an_event() -> None:
    logged = Logged(greeting="554 5.7.1 not you")
    assert [(line["event"], line["reply"]) for line in logged.lines] == [
        ("greeting_refused", "554 5.7.1 not you")
    ]
    logged = Logged()
    logged.sends("EHLO old")
    logged.says("502 5.5.1 what", "250 mx")
    logged.sends("HELO bad name")
    logged.says("501 5.5.2 no name")
    logged.sends("EHLO spam.example")
    logged.says("550 5.7.1 no spam")
    logged.sends("XCLIENT ADDR=192.0.2.7")
    assert [(line["event"], line["command"], line["reply"]) for line in logged.lines] == [
        ("hello_refused", "HELO bad name", "501 5.5.2 no name"),
        ("hello_refused", "EHLO spam.example", "550 5.7.1 no spam"),
        ("xclient_refused", "XCLIENT *", "550 5.7.0 Error: insufficient authorization"),
    ]


def test_greeting_is_refused_by_the_mta_only() -> None:
    """The proxy's own 421 has events of its own, and the reason of `session_closed`."""
    for greeting in (b"", b"554 5.7.1 not you\r\n"):
        logged = Logged(greeting="")
        logged.pipeline.backend_unavailable(greeting, 12.0)
        assert [line["event"] for line in logged.lines] == ["greeting_refused"] * bool(greeting)
    logged = Logged(greeting="")
    logged.pipeline.expire("greeting", 12.0)
    assert logged.lines == []


def test_refusals_are_bounded_in_a_session() -> None:
    logged = Logged()
    logged.sends("MAIL FROM:<a@x>")
    logged.says("250 a")
    for number in range(100):
        logged.sends(f"RCPT TO:<r{number}@y>")
        logged.says("550 5.1.1 unknown")
    refusals = [line for line in logged.lines if line["event"] == "recipient_refused"]
    assert [line["attempt"] for line in refusals] == list(range(1, REFUSALS_LOGGED + 1))
    assert (refusals[0]["recipient"], refusals[0]["reply"]) == ("r0@y", "550 5.1.1 unknown")


def test_a_session_is_one_line() -> None:
    logged = Logged()
    logged.close()
    (line,) = logged.lines
    assert line["reason"] == "client_closed"
    assert (line["messages"], line["commands"], line["round_trips_saved"]) == (1, 4, 3)


def test_a_lost_backend_has_a_line_of_its_own() -> None:
    logged = Logged()
    logged.pipeline.backend_lost(13.0)
    logged.close()
    assert logged.events == ["backend_lost", "session_closed"]


def test_violations_are_logged_with_their_bytes_escaped() -> None:
    logged = Logged()
    logged.sends("NOOP\rMAIL FROM:<x>", "NOOP")
    logged.says("250 \x1b[2Jhello\r\n250 surplus")
    client, backend = logged.lines
    assert (client["event"], client["kind"]) == ("client_violation", "bare_cr_or_nul_in_command")
    assert client["bytes"] == r"NOOP\rMAIL FROM:<x>\r\n"
    assert (backend["event"], backend["kind"]) == ("backend_violation", "reply_not_asked_for")


def test_no_secret_is_logged() -> None:
    logged = Logged("debug")
    logged.sends("AUTH PLAIN AHVzZXIAc2VjcmV0")
    logged.says("250 what")
    logged.sends("AUTH LOGIN")
    logged.says("334 VXNlcm5hbWU6")
    logged.sends("c2VjcmV0\rx")
    logged.close()
    assert b"c2VjcmV0" not in json.dumps(logged.lines).encode()


def test_recipients_that_do_not_fit_in_a_line_are_counted() -> None:
    logged = Logged()
    logged.sends("MAIL FROM:<a@x>")
    logged.says("250 a")
    for number in range(1000):
        logged.sends(f"RCPT TO:<r{number}@y>")
        logged.says("250 ok" if number < 600 else "450 later")
    logged.sends("RSET")
    logged.says("250 ok")
    line = logged.lines[-1]
    shown, refused = line["recipients"], line["refused"]
    assert isinstance(shown, list)
    assert isinstance(refused, list)
    assert 300 < len(shown) < 400
    assert refused == []
    assert (line["more_recipients"], line["more_refused"]) == (600 - len(shown), 400)


def test_a_long_address_is_cut_and_marked() -> None:
    logged = Logged()
    logged.sends("MAIL FROM:<" + "s" * 1900 + ">", "RCPT TO:<" + "\x7f" * 2000 + ">", "RSET")
    logged.says("250 a", "250 b", "250 c")
    (line,) = logged.lines
    assert line["sender"] == "s" * 317 + "..."
    assert line["recipients"] == [79 * "\\x7f" + "..."]


@pytest.mark.parametrize("octets", ["x", "\x7f", "\x01", "\\", '"', "\u202e", "\u65e5", "\x7f."])
@pytest.mark.parametrize("length", [1, 20, 2000])
@pytest.mark.parametrize("code", [250, 450])
def test_no_line_is_longer_than_its_bound(octets: str, length: int, code: int) -> None:
    logged = Logged()
    address = octets * (length // len(octets.encode()) or 1)
    logged.sends(f"MAIL FROM:<{address}>")
    logged.says("250 a")
    for _ in range(1000):
        logged.sends(f"RCPT TO:<{address}>")
        logged.says(f"{code} {octets * 400}")
    logged.sends("DATA")
    if code == 250:  # else the proxy itself refuses it
        logged.says(f"550 {octets * 1000}")
    logged.sends("RSET")
    logged.says("250 ok")
    (line,) = [each for each in logged.raw if b'"message_refused"' in each]
    assert len(line) < log.LINE_BYTES
    fields = json.loads(line)
    shown = [len(fields[name]) for name in ("recipients", "refused")]
    assert sum(shown) + fields.get("more_recipients", 0) + fields.get("more_refused", 0) == 1000


def test_an_open_transaction_takes_little_memory() -> None:
    for address in ("", "x", "x" * 2000):
        with Allocated() as allocated:
            logged = Logged()
            logged.sends(f"MAIL FROM:<{address}>")
            logged.says("250 a")
            before = allocated.octets()
            for number in range(3000):
                logged.sends(f"RCPT TO:<{address}>")
                logged.says(f"250-{number}\r\n250 " + "y" * 2000)
            assert allocated.octets() - before < 64 * 1024


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (b"MAIL FROM:<>\r\n", ""),
        (b"MAIL FROM:<a@b> BODY=8BITMIME\r\n", "a@b"),
        (b"rcpt to: <a@b>\r\n", "a@b"),
        (b"RCPT TO:a@b\r\n", "a@b"),
        (b'RCPT TO:<"x y"@b>\r\n', '"x y"@b'),
        (b"RCPT\r\n", ""),
        (b"RCPT TO:<\xc3\xa9@b>\r\n", "é@b"),
        (b"RCPT TO:<\xff\x1b\\@b>\r\n", "\\xff\\x1b\\\\@b"),
    ],
)
def test_paths_of_command_lines(line: bytes, path: str) -> None:
    assert paths([line]) == [path]
    assert paths([b"RCPT TO:<p@q>\r\n", line]) == ["p@q", path]


def test_no_lines_have_no_paths() -> None:
    assert paths([]) == []


def test_at_level_debug_each_exchange_is_logged() -> None:
    session = Watched(DebugLog(), level="debug")
    session.sends("AUTH PLAIN AHVzZXIAc2VjcmV0", "NOOP")
    session.says("235 in", "250 ok")
    session.pipeline.client_eof(40.0)
    session.observer.stalled()
    lines = [json.loads(line) for line in session.logged.getvalue().splitlines()]
    assert [line["event"] for line in lines[-4:]] == [*["exchange"] * 3, "client_stalled"]
    auth, noop = lines[-3:-1]
    assert (auth["verb"], auth["command"], auth["reply"]) == ("AUTH", "AUTH PLAIN *", "235 *")
    assert (auth["backend_s"], noop["backend_s"], noop["held_s"]) == (0.25, 0.25, 0.0)


@pytest.mark.parametrize("extension", ["CHUNKING", "8BITMIME"], ids=["BDAT", "DATA"])
@pytest.mark.parametrize(("came", "size"), [("", 0), ("ab", 4)])
def test_a_payload_that_is_cut_off_counts_as_what_came_of_it(
    extension: str, came: str, size: int
) -> None:
    """A client may announce any size."""
    logged = Logged(add_chunking=True)
    logged.sends("EHLO x")
    logged.says(f"250-mx\r\n250 {extension}")
    logged.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "BDAT 99999999999999999999")
    logged.says("250 a", "250 b", *["354 go"][: extension != "CHUNKING"])
    if came:
        logged.sends(came)
    logged.pipeline.client_lost(13.0)
    logged.close()
    abandoned, _ = logged.lines
    assert (abandoned["event"], abandoned["size_bytes"]) == ("message_abandoned", size)


def test_a_chunk_may_be_refused_amid_its_payload() -> None:
    logged = Logged()
    logged.sends("EHLO x")
    logged.says("250-mx\r\n250 CHUNKING")
    logged.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "BDAT 8 LAST", "ab")
    logged.says("250 a", "250 b", "552 too big")
    logged.sends("cd")
    logged.sends("RSET")
    logged.says("250 reset")
    logged.close()
    refused, closed = logged.lines
    assert (refused["event"], refused["size_bytes"]) == ("message_refused", 4)
    assert closed["reason"] == "client_closed"


def test_the_payload_of_a_refused_chunk_does_not_count() -> None:
    logged = Logged(add_chunking=True)
    logged.sends("EHLO x")
    logged.says("250 mx")
    logged.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "BDAT 99999999999999999999")
    logged.says("250 a", "250 b", "452 full")
    logged.sends("text")
    logged.close()
    refused, _ = logged.lines
    assert (refused["event"], refused["size_bytes"]) == ("message_refused", 0)
