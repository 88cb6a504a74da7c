"""The trace: what is recorded of a session, when, and that it never delays mail."""

from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest

from smtpproxy.core.policy import SessionPolicy
from smtpproxy.text.escaping import octets_of
from smtpproxy.trace import session_recorder
from smtpproxy.trace.content_capture import DIGESTED_OCTETS, CaptureMode
from smtpproxy.trace.record_writer import GATHERED_OCTETS
from smtpproxy.trace.records import KEPT_NOTED, Exchanged, decode
from tests.support.memory import Allocated
from tests.support.observed_session import Traced, Watched


def exchanges(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["what"] == "exchange"]


class TestAll:
    def test_a_session_is_reported_from_start_to_end(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path)
        session = Watched(traced.trace)
        session.sends("EHLO x")
        session.says("250 mx")
        session.relay("text")
        session.sends("QUIT")
        session.says("221 bye")
        session.close()
        records = traced.records()
        kinds = [record["what"] for record in records]
        assert kinds == ["opened", "connected", *["exchange"] * 7, "closed"]
        assert len({record["session"] for record in records}) == 1
        assert [record["verb"] for record in exchanges(records)] == [
            *("greeting", "EHLO", "MAIL", "RCPT", "DATA", "end_of_data", "QUIT")
        ]
        opened, connected, closed = records[0], records[1], records[-1]
        assert (opened["client_ip"], opened["client_port"]) == ("192.0.2.1", 4711)
        assert (connected["proxy_address"], connected["server_address"]) == (
            "10.0.0.1:33333",
            "10.0.0.5:25",
        )
        assert (closed["reason"], closed["round_trips_saved"], closed["messages"]) == ("quit", 2, 1)
        assert closed["client_rtt_s"] == 0.025
        (message,) = closed["transactions"]
        assert (message["outcome"], message["sender"]) == ("relayed", "a@x")
        assert message["groups"] == [3, 1]

    def test_an_exchange_has_its_four_times_on_the_wall_clock(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path)
        session = Watched(traced.trace)
        session.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>")
        session.says("250 a", "550 5.1.1 no b")
        mail, rcpt = exchanges(traced.records())[1:]
        offset = traced.trace.writer.offset
        times = [
            [each[name] - offset for name in ("framed", "sent", "replied", "flushed")]
            for each in (mail, rcpt)
        ]
        assert times == [
            pytest.approx([11.25, 11.25, 11.5, 11.75], abs=1e-3),
            pytest.approx([11.25, 11.5, 11.75, 11.75], abs=1e-3),
        ]
        assert "pipelined" not in mail
        assert rcpt["pipelined"]
        assert (rcpt["code"], rcpt["reply"]) == (550, "550 5.1.1 no b")

    def test_a_violation_has_its_octets_escaped(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path)
        session = Watched(traced.trace)
        session.pipeline.client_received(b"MAIL\0\xff FROM\r\n", 12.0)
        session.close()
        *_, broken, closed = traced.records()
        assert broken["violation"] == {
            "side": "client",
            "kind": "bare_cr_or_nul_in_command",
            "bytes": "MAIL\0\\xff FROM\r\n",
        }
        assert (closed["violations"], closed["codes"]) == (["bare_cr_or_nul_in_command"], [500])

    def test_an_unknown_verb_is_in_capitals_and_its_escapes_are_not(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path)
        session = Watched(traced.trace)
        session.pipeline.client_received(b"xfo\x7f\xff\\o bar\r\n", 12.0)
        session.says("500 what")
        session.close()
        (_, unknown) = exchanges(traced.records())
        assert (unknown["verb"], unknown["command"]) == (
            "XFO\\x7f\\xff\\\\O",
            "xfo\\x7f\\xff\\\\o bar",
        )

    def test_rewritten_content_is_reported_too(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path)
        Watched(traced.trace).relay("a\nb")
        violation = exchanges(traced.records())[-1]["violation"]
        assert (violation["kind"], violation["rewritten"]) == ("bare_lf", True)

    def test_tls_is_printed_where_it_started(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path)
        session = Watched(traced.trace)
        session.sends("EHLO x")
        session.says("250 mx")
        session.observer.noted("tls_started", side="client", version="TLSv1.3", cipher="AES")
        session.sends("QUIT")
        session.says("221 bye")
        session.close()
        records = traced.records()
        kinds = [record["what"] for record in records]
        assert kinds[2:] == ["exchange", "exchange", "noted", "exchange", "closed"]
        noted = records[4]
        assert noted.pop("at") >= records[0]["at"]
        del noted["session"]
        assert noted == {
            "what": "noted",
            "event": "tls_started",
            "side": "client",
            "version": "TLSv1.3",
            "cipher": "AES",
        }

    def test_lines_do_not_pile_up(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path)
        session = Watched(traced.trace)
        for _ in range(500):
            session.sends("NOOP")
            session.says("250 ok")
        assert sum(map(len, traced.trace.writer._lines)) < GATHERED_OCTETS
        assert len(traced.later.calls) < 4
        assert len(exchanges(traced.records())) == 501

    def test_only_clients_of_the_networks_are_recorded(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path, networks=[ip_network("192.0.2.0/28"), ip_network("::1")])
        clients = ["192.0.2.1:1", "192.0.2.77:1", "[::1]:1", "unix"]
        for client in clients:
            Watched(traced.trace, client=client).close()
        recorded_clients = [
            each["client_ip"] for each in traced.records() if each["what"] == "closed"
        ]
        assert recorded_clients == ["192.0.2.1", "::1"]


class TestContent:
    TEXT = "Subject: x\r\nTo: jörg\r\n\r\nbody\r\n..dot"

    def record(self, directory: Path, text: str, **kinds: Any) -> dict[str, Any]:
        traced = Traced(directory, **kinds)
        Watched(traced.trace).relay(text)
        return exchanges(traced.records())[-1]

    def test_none_is_its_size_and_digest(self, tmp_path: Path) -> None:
        record = self.record(tmp_path, self.TEXT)
        octets = f"{self.TEXT}\r\n.\r\n".encode()
        assert record["content_bytes"] == len(octets) - 3
        assert record["sha256"] == sha256(octets).hexdigest()
        assert record["digested_bytes"] == len(octets)
        assert "content" not in record

    def test_a_digest_is_of_the_first_octets(self, tmp_path: Path) -> None:
        text = "x" * 60000
        record = self.record(tmp_path, text)
        assert record["sha256"] == sha256(text[:DIGESTED_OCTETS].encode()).hexdigest()
        assert record["digested_bytes"] == DIGESTED_OCTETS
        assert record["content_bytes"] == 60002

    @pytest.mark.parametrize(
        ("text", "header"),
        [
            (TEXT, "Subject: x\r\nTo: jörg\r\n\r\n"),
            ("Subject: x", "Subject: x\r\n.\r\n"),
            ("\r\nbody: x\r\n\r\nx", ""),
        ],
    )
    def test_headers_end_where_the_body_begins(
        self, tmp_path: Path, text: str, header: str
    ) -> None:
        record = self.record(tmp_path, text, kept=CaptureMode.HEADERS)
        assert record.get("content", "") == header

    def test_full_has_a_bound(self, tmp_path: Path) -> None:
        record = self.record(tmp_path / "a", self.TEXT, kept=CaptureMode.FULL, most=4096)
        assert record["content"] == self.TEXT + "\r\n.\r\n"
        assert "content_cut" not in record
        record = self.record(tmp_path / "b", "x" * 60000, kept=CaptureMode.FULL, most=4096)
        assert (record["content"], record["content_cut"]) == ("x" * 4096, True)

    def test_what_would_grow_is_in_base64_and_read_as_it_was(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path, kept=CaptureMode.FULL, most=1 << 20)
        session = Watched(traced.trace)
        octets = b"\x7f\x01\xff" * 20_000
        session.sends("MAIL FROM:<" + "\x7f" * 1000 + ">", "DATA")
        session.says("250 a", "354 go")
        session.pipeline.client_received(octets + b"\r\n.\r\n", 20.0)
        session.says("250 ok")
        traced.trace.close()
        (path,) = tmp_path.iterdir()
        assert path.stat().st_size < 1.5 * len(octets)
        records = [decode(line) for line in path.read_bytes().splitlines()]
        found = [each for each in records if isinstance(each, Exchanged)]
        assert octets_of(found[1].command) == b"MAIL FROM:<" + b"\x7f" * 1000 + b">"
        assert found[1].command.startswith("MAIL FROM:<\\x7f\\x7f")
        assert octets_of(found[-1].content) == octets + b"\r\n.\r\n"

    def test_a_record_with_bad_base64_is_none(self) -> None:
        line = b'{"what":"exchange","session":"s","verb":"NOOP","command":"\\\\=x"}'
        with pytest.raises(msgspec.DecodeError):
            decode(line)

    def test_each_bdat_chunk_has_its_own(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path, kept=CaptureMode.FULL, most=4096)
        session = Watched(traced.trace)
        session.sends("EHLO x")
        session.says("250-mx\r\n250-PIPELINING\r\n250 CHUNKING")
        session.pipeline.client_received(b"BDAT 3\r\nabcBDAT 2 LAST\r\nde", 20.0)
        session.says("250 3", "250 2")
        *_, first, second = exchanges(traced.records())
        assert (first["content"], second["content"]) == ("abc", "de")

    def test_payload_after_a_refusal_is_not_that_of_the_next_chunk(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path, kept=CaptureMode.FULL, most=4096)
        session = Watched(traced.trace)
        session.sends("EHLO x")
        session.says("250-mx\r\n250 CHUNKING")
        session.pipeline.client_received(b"BDAT 3\r\na", 20.0)
        session.says("552 too big")
        session.pipeline.client_received(b"bcBDAT 2 LAST\r\nde", 21.0)
        session.says("250 2")
        *_, first, second = exchanges(traced.records())
        assert (first["content"], second["content"]) == ("a", "de")

    def test_content_cut_short_is_reported(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path, kept=CaptureMode.FULL, most=4096)
        session = Watched(traced.trace)
        session.sends("MAIL FROM:<a@x>", "DATA")
        session.says("250 a", "354 go")
        session.sends("half of it")
        session.pipeline.client_eof(30.0)
        session.close()
        (last,) = [each for each in exchanges(traced.records()) if each["verb"] == "end_of_data"]
        assert (last["content"], last.get("code", 0)) == ("half of it\r\n", 0)


class TestBothSides:
    """What the proxy and the backend said, where the client knows nothing of it."""

    def test_steps_of_an_ehlo(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path)
        session = Watched(traced.trace)
        session.sends("EHLO x")
        session.says("500 what", "250 mx")
        session.sends("HELO y")
        session.says("250 mx")
        _, ehlo, helo = exchanges(traced.records())
        assert [(step["command"], step["reply"]) for step in ehlo["steps"]] == [
            ("EHLO x", "500 what"),
            ("HELO x", "250 mx"),
        ]
        assert "steps" not in helo

    def test_xforward_before_mail(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path)
        session = Watched(traced.trace, policy=SessionPolicy(xforward=True))
        session.pipeline.ehlo.xforward.lines = [b"XFORWARD ADDR=192.0.2.1\r\n"]
        session.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>")
        session.says("250 known", "250 a", "250 b")
        *_, mail, rcpt = exchanges(traced.records())
        assert [(step["command"], step["reply"]) for step in mail["steps"]] == [
            ("XFORWARD ADDR=192.0.2.1", "250 known"),
            ("MAIL FROM:<a@x>", "250 a"),
        ]
        assert "steps" not in rcpt

    def test_a_lost_backend_gave_no_reply(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path)
        session = Watched(traced.trace)
        session.sends("NOOP")
        session.pipeline.backend_lost(99.0)
        (step,) = exchanges(traced.records())[-1]["steps"]
        assert (step["command"], step["reply"], step.get("replied", 0.0)) == ("NOOP", "", 0.0)

    def test_a_bare_lf_after_a_command(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path)
        session = Watched(traced.trace)
        session.pipeline.client_received(b"NOOP\n", 12.0)
        session.says("250 ok")
        assert exchanges(traced.records())[-1]["bare_lf"] is True

    def test_content_as_received(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path, kept=CaptureMode.FULL, most=4096)
        session = Watched(traced.trace)
        session.relay("a\nb")
        session.relay("ab")
        rewritten, plain = (
            each for each in exchanges(traced.records()) if each["verb"] == "end_of_data"
        )
        assert (rewritten["content"], rewritten["content_received"]) == (
            "a\r\nb\r\n.\r\n",
            "a\nb\r\n.\r\n",
        )
        assert "content_received" not in plain


class TestErrors:
    @pytest.mark.parametrize("reply", ["250 2.0.0 queued", "451 4.3.0 later", "554 5.7.1 spam"])
    def test_only_failed_sessions_are_written(self, tmp_path: Path, reply: str) -> None:
        traced = Traced(tmp_path, only_errors=True)
        session = Watched(traced.trace)
        session.relay("text", reply=reply)
        assert not traced.later.calls
        session.close()
        records = traced.records()
        if reply.startswith("250"):
            assert records == []
            return
        assert [record["what"] for record in records] == [
            *("opened", "connected", *["exchange"] * 5, "closed")
        ]
        assert records[-2]["sha256"]
        assert records[-1]["codes"] == [int(reply[:3])]

    @pytest.mark.parametrize("end", [["backend_lost"], ["expire", "command"]])
    def test_lost_backends_and_time_limits_are_failures(
        self, tmp_path: Path, end: list[str]
    ) -> None:
        traced = Traced(tmp_path, only_errors=True)
        session = Watched(traced.trace)
        session.sends("NOOP")
        getattr(session.pipeline, end[0])(*end[1:], 99.0)
        session.close()
        assert traced.records()[-1]["codes"] == [421]

    def test_failed_tls_is_a_failure(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path, only_errors=True)
        for failed in (False, True):
            session = Watched(traced.trace)
            for _ in range(KEPT_NOTED - failed):
                session.observer.noted("tls_started", side="backend", version="TLSv1.3", cipher="x")
            if failed:
                session.observer.noted("tls_failed", side="client", reason="unknown ca")
            session.observer.noted("tls_started", side="client", version="one too many", cipher="x")
            session.close("client_tls_failed" if failed else "quit")
        records = traced.records()
        assert len({record["session"] for record in records}) == 1
        noted = [record for record in records if record["what"] == "noted"]
        assert len(noted) == KEPT_NOTED
        assert (noted[-1]["event"], noted[-1]["reason"]) == ("tls_failed", "unknown ca")

    def test_what_a_proxy_in_front_says_is_no_failure(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path, only_errors=True)
        session = Watched(traced.trace)
        session.observer.noted("proxy_header_read", forwarded_unique_id="id-of-front")
        session.close()
        assert traced.records() == []

    def test_a_rewritten_newline_is_shown_as_a_problem(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path, only_errors=True)
        session = Watched(traced.trace)
        session.relay("a\rb")
        session.close()
        assert traced.records()[-1]["violations"] == ["bare_cr"]

    def test_a_long_session_keeps_its_beginning_and_its_end(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path, only_errors=True)
        session = Watched(traced.trace)
        for number in range(2000):
            session.sends(f"NOOP {number}")
            session.says("250 ok")
        session.sends("VRFY x")
        session.says("550 no")
        session.close()
        records = traced.records()
        lines = [each["command"] for each in exchanges(records) if "command" in each]
        (gap,) = [each for each in records if each["what"] == "gap"]
        assert 100 < len(exchanges(records)) < 200
        assert gap["exchanges"] == 2002 - len(exchanges(records))
        assert (lines[0], lines[-1]) == ("NOOP 0", "VRFY x")

    def test_long_replies_and_content_are_bounded_too(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path, only_errors=True, kept=CaptureMode.FULL, most=30000)
        session = Watched(traced.trace)
        for _ in range(20):
            session.relay("x" * 30000, reply="550 " + "y" * 3000)
        session.close()
        octets = sum(
            len(each.get("content", "")) + len(each.get("reply", ""))
            for each in exchanges(traced.records())
        )
        assert session_recorder.KEPT_OCTETS // 2 < octets < session_recorder.KEPT_OCTETS + 40000

    def test_a_long_reply_is_cut(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path, only_errors=True)
        session = Watched(traced.trace)
        session.sends("VRFY x")
        session.says("550-" + "\r\n550-".join(["y" * 500] * 30) + "\r\n550 no")
        session.close()
        reply = exchanges(traced.records())[-1]["reply"]
        assert reply.endswith("y ...")
        assert len(reply) == session_recorder.LONG_OCTETS + len(" ...")

    @pytest.mark.parametrize(
        "address", [pytest.param("x@y", marks=pytest.mark.long), "\x7f" * 2000]
    )
    def test_all_that_is_kept_of_a_session_counts(self, tmp_path: Path, address: str) -> None:
        """Commands, replies, messages under way and what the last record has."""
        traced = Traced(tmp_path, only_errors=True, kept=CaptureMode.FULL, most=1 << 20)
        policy = SessionPolicy(recipients=10_000, consecutive_errors=10**6)
        session = Watched(traced.trace, policy=policy)
        with Allocated() as allocated:
            for _ in range(30):
                session.sends(f"MAIL FROM:<{address}>", *[f"RCPT TO:<{address}>"] * 100, "RSET")
                session.says(*["250-ok\r\n250 " + "y" * 2000] * 102)
                session.backend.clear()
                session.got.clear()
            session.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA")
            session.says("250 a", "250 b", "354 go")
            for _ in range(4000):
                session.pipeline.client_received(b"a\n" * 128, session.now)
                session.backend.clear()
            kept = allocated.octets()
        log_keeps = 64 * 1024  # at most, of the open transaction
        assert traced.trace.memory.octets < session_recorder.KEPT_OCTETS
        assert kept < session_recorder.KEPT_OCTETS + log_keeps
        session.close()
        assert traced.trace.memory.octets == 0
        traced.trace.close()

    def test_what_the_last_record_will_contain_counts(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path, only_errors=True)
        session = Watched(traced.trace)
        session.sends("MAIL FROM:<a@x>", *[f"RCPT TO:<{'b' * 300}@y>"] * 20)
        session.says(*["250 ok"] * 21)
        session.sends("RSET")
        before = traced.trace.memory.octets
        session.says("250 ok")
        assert traced.trace.memory.octets - before > 20 * 300
        traced.trace.close()

    @pytest.mark.parametrize("content", [False, True])
    def test_all_sessions_together_are_bounded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bool
    ) -> None:
        bound = 1_000_000
        monkeypatch.setattr(session_recorder, "ALL_KEPT_OCTETS", bound)
        traced = Traced(tmp_path, only_errors=True, kept=CaptureMode.FULL, most=1 << 20)
        sessions = [Watched(traced.trace) for _ in range(100)]
        for session in sessions:
            if content:
                session.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA")
                session.says("250 a", "250 b", "354 go")
                session.sends("x" * 100_000)
            for number in range(0 if content else 400):
                session.sends(f"NOOP {number}")
                session.says("250 " + "x" * 100)
            assert traced.trace.memory.octets < bound
        assert traced.trace.memory.octets > bound // 2
        for session in sessions:
            if content:
                session.sends(".")
                session.says("250 ok")
            session.sends("VRFY x")
            session.says("550 no")
            session.close()
        assert traced.trace.memory.octets == 0
        traced.trace.close()
        last = [each for each in exchanges(traced.records()) if each.get("command") == "VRFY x"]
        assert len(last) > 50  # the most recent of each goes last

    def test_memory_of_a_session_without_errors_is_freed(self, tmp_path: Path) -> None:
        traced = Traced(tmp_path, only_errors=True, kept=CaptureMode.FULL, most=30000)
        session = Watched(traced.trace)
        for _ in range(20):
            session.relay("a\nb", "x" * 30000)
        assert traced.trace.memory.octets > 0
        session.close()
        assert traced.trace.memory.octets == 0
        traced.trace.close()
