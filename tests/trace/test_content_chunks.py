"""BDAT that an MTA without CHUNKING gets as DATA: what is recorded of both sides."""

from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from smtpproxy.core.policy import SessionPolicy
from smtpproxy.text.escaping import octets_of
from smtpproxy.trace.content_capture import CaptureMode
from smtpproxy.trace.pcapng import _payloads, client_octets
from smtpproxy.trace.reader import TraceReader
from smtpproxy.trace.records import Exchanged, decode
from smtpproxy.trace.replay import played_pieces
from smtpproxy.trace.terminal import rows_of
from tests.support.observed_session import Traced, Watched


def exchanges(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["what"] == "exchange"]


def relayed(
    tmp_path: Path, kept: CaptureMode = CaptureMode.FULL, *, begin: bytes = b""
) -> list[dict[str, Any]]:
    traced = Traced(tmp_path, kept=kept, most=4096)
    session = Watched(traced.trace, policy=SessionPolicy(add_chunking=True))
    session.sends("EHLO x")
    session.says("250 mx")
    session.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>")
    session.says("250 a", "250 b")
    octets = begin + b"BDAT 4\r\nA\r\n.BDAT 3\r\n\r\nBBDAT 4 LAST\r\n\r\nC."
    session.pipeline.client_received(octets, session.now)
    session.says("354 go", "250 2.0.0 queued as 7")
    session.sends("QUIT")
    session.says("221 bye")
    session.close()
    return traced.records()


def test_each_chunk_has_its_own_reply_and_the_last_that_of_the_mta(tmp_path: Path) -> None:
    chunks = [each for each in exchanges(relayed(tmp_path)) if each["verb"] == "BDAT"]
    assert [(each["command"], each["reply"], each["content_bytes"]) for each in chunks] == [
        ("BDAT 4", "250 2.0.0 4 bytes received", 4),
        ("BDAT 3", "250 2.0.0 3 bytes received", 3),
        ("BDAT 4 LAST", "250 2.0.0 queued as 7", 4),
    ]
    steps = [
        [(step["command"], step["reply"]) for step in each.get("steps", ())] for each in chunks
    ]
    end_of_data = (".", "250 2.0.0 queued as 7")
    assert steps == [[("DATA", "354 go")], [], [end_of_data]]
    assert [each["sent"] > 0 for each in chunks] == [False, False, True]


def test_the_content_of_each_is_recorded_on_both_sides(tmp_path: Path) -> None:
    chunks = [each for each in exchanges(relayed(tmp_path)) if each["verb"] == "BDAT"]
    sent = [each["content"] for each in chunks]
    assert [octets_of(each) for each in sent] == [b"A\r\n..", b"\r\nB", b"\r\nC.\r\n"]
    received = [octets_of(each.get("content_received", "")) for each in chunks]
    assert received == [b"A\r\n.", b"", b"\r\nC."]


def test_the_message_has_the_size_of_its_chunks(tmp_path: Path) -> None:
    (message,) = relayed(tmp_path)[-1]["transactions"]
    assert (message["outcome"], message["size_bytes"]) == ("relayed", 11)


def test_what_each_side_sends_of_it(tmp_path: Path) -> None:
    found: dict[tuple[bool, bool], bytes] = {}
    lines = [msgspec.json.encode(each) for each in relayed(tmp_path)]
    records = [each for each in map(decode, lines) if isinstance(each, Exchanged)]
    for *_, inside, from_client, octets in sorted(_payloads(records), key=itemgetter(0)):
        found[inside, from_client] = found.get((inside, from_client), b"") + octets
    assert b"BDAT 4\r\nA\r\n.BDAT 3\r\n\r\nBBDAT 4 LAST\r\n\r\nC.QUIT" in found[False, True]
    assert b"DATA\r\nA\r\n..\r\nB\r\nC.\r\n.\r\nQUIT\r\n" in found[True, True]
    assert b"354 go" in found[True, False]
    assert b"354 go" not in found[False, False]
    played = b"".join(piece for each in records for piece in played_pieces(each))
    assert b"BDAT 4\r\nA\r\n.BDAT 3\r\n\r\nBBDAT 4 LAST\r\n\r\nC.QUIT" in played


def test_content_that_is_not_recorded_is_filled_up(tmp_path: Path) -> None:
    lines = map(msgspec.json.encode, relayed(tmp_path, CaptureMode.NONE))
    records = [each for each in map(decode, lines) if isinstance(each, Exchanged)]
    sent = b"".join(
        octets
        for *_, inside, from_client, octets in sorted(_payloads(records), key=itemgetter(0))
        if inside and from_client
    )
    assert b"DATA\r\n" + b"-" * 11 + b".\r\nQUIT\r\n" in sent


def test_both_sides_are_drawn(tmp_path: Path) -> None:
    name = relayed(tmp_path)[0]["session"]
    rows = [row for row in rows_of(TraceReader(tmp_path).session(name)) if row.mta_side]
    drawn = [tuple(label.short for label in (*row.to_mta, *row.to_client)) for row in rows]
    assert drawn[-5:] == [
        ("DATA", "354"),
        *[("content",)] * 2,
        ("end of data", "250"),
        ("QUIT", "221"),
    ]


def test_an_empty_chunk_is_drawn_as_no_content(tmp_path: Path) -> None:
    name = relayed(tmp_path, begin=b"BDAT 0\r\n")[0]["session"]
    rows = rows_of(TraceReader(tmp_path).session(name))
    content = [label.long for row in rows for label in row.to_mta if label.short == "content"]
    assert content == ["content, 4 bytes", "content, 3 bytes"]


def test_a_refused_chunk_is_played_and_exported_with_the_payload_that_it_announces(
    tmp_path: Path,
) -> None:
    """None of it is counted, as the client may announce any size, but the next command follows."""
    traced = Traced(tmp_path)
    session = Watched(traced.trace, policy=SessionPolicy(add_chunking=True))
    session.sends("EHLO x")
    session.says("250 mx")
    session.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "BDAT 4", "ab")
    session.says("250 a", "250 b", "452 full")
    session.sends("MAIL FROM:<a@x>", "BDAT 99999999999999999999")
    session.says("250 a", "452 full")
    session.close()
    lines = map(msgspec.json.encode, traced.records())
    found = [each for each in map(decode, lines) if isinstance(each, Exchanged)]
    four, endless = [each for each in found if each.verb == "BDAT"]
    assert (four.content_bytes, endless.content_bytes) == (0, 0)
    assert b"".join(played_pieces(four)) == b"BDAT 4\r\nxxxx"
    assert client_octets(four) == b"BDAT 4\r\n----"
    assert len(client_octets(endless, 100)) == len("BDAT 99999999999999999999\r\n") + 100
