"""The spans of a session, as a collector receives them."""

import io
import json
import threading
import time
from collections.abc import Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from smtpproxy.log import log
from smtpproxy.otel import span_export, span_recorder
from smtpproxy.otel.span_export import SpanExport
from smtpproxy.otel.span_recorder import SpanRecorder
from tests.support import threads
from tests.support.catalogue import faults
from tests.support.collector import Collector, attributes, below, tree
from tests.support.observed_session import Watched


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as found:
        yield found


class Recorded:
    """A session of which spans are made, and the collector that gets them."""

    def __init__(self, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
        self.collector = collector
        self.recorder = SpanRecorder(SpanExport(collector.endpoint, 1.0, "mx1"))
        monkeypatch.setattr(span_recorder, "monotonic", lambda: 10.0)
        self.session = Watched(self.recorder)
        monkeypatch.setattr(span_recorder, "monotonic", lambda: self.session.now)

    def spans(self) -> list[Span]:
        """End the session, and return its spans: the root, then the others by their beginnings."""
        self.session.close()
        self.recorder.close()
        return self.collector.session()


@pytest.fixture
def recorded(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(collector, monkeypatch)


def test_an_exchange_is_below_the_session_and_what_the_backend_got_below_the_exchange(
    recorded: Recorded,
) -> None:
    session = recorded.session
    session.sends("EHLO x")
    session.says("250-mx\r\n250 SIZE")
    session.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "RCPT TO:<c@y>", "DATA")
    session.says("250 a", "250 b", "550 5.1.1 no such user", "354 go")
    session.sends("Subject: x", "", "text", ".")
    session.says("250 2.0.0 queued")
    session.sends("QUIT")
    session.says("221 bye")
    assert tree(recorded.spans()) == [
        "session ! 550",
        "  greeting",
        "  EHLO",
        "    EHLO",
        "  MAIL",
        "    MAIL",
        "  RCPT",
        "    RCPT",
        "  RCPT ! 550",
        "    RCPT ! 550",
        "  DATA",
        "    DATA",
        "  end_of_data",
        "    end_of_data",
        "  QUIT",
        "    QUIT",
    ]


def test_times_and_attributes_are_those_of_each_connection(recorded: Recorded) -> None:
    session = recorded.session
    session.observer.noted("proxy_header_read", forwarded_cn="c.example")
    session.observer.noted("tls_started", side="client", version="TLSv1.3", cipher="AES")
    session.sends("EHLO x")
    session.says("250-mx\r\n250 SIZE")
    session.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>")
    session.says("250 a", "450 4.2.0 later")
    spans = recorded.spans()
    (root,) = [each for each in spans if not each.parent_span_id]
    mail, recipient = below(spans, root)[-2:]
    (to_backend,) = below(spans, recipient)
    assert {each.trace_id for each in spans} == {root.trace_id}
    assert (root.kind, recipient.kind) == (Span.SPAN_KIND_SERVER,) * 2
    assert to_backend.kind == Span.SPAN_KIND_CLIENT
    # Both commands came at once; the backend got the second one after its reply to the first one.
    assert recipient.start_time_unix_nano == mail.start_time_unix_nano
    waited = to_backend.start_time_unix_nano - recipient.start_time_unix_nano
    took = to_backend.end_time_unix_nano - to_backend.start_time_unix_nano
    assert (round(waited / 1e9, 4), round(took / 1e9, 4)) == (0.25, 0.25)
    (mail_to_backend,) = below(spans, mail)
    held = mail.end_time_unix_nano - mail_to_backend.end_time_unix_nano
    assert round(held / 1e9, 4) == 0.25  # for the reply to the second one
    assert mail.end_time_unix_nano == recipient.end_time_unix_nano
    assert 0 <= time.time() - root.start_time_unix_nano / 1e9 < 60
    client = {
        "network.protocol.name": "smtp",
        "network.transport": "tcp",
        "client.address": "192.0.2.1",
        "client.port": 4711,
        "server.address": "192.0.2.9",
        "server.port": 25,
        "tls.protocol.name": "tls",
        "tls.protocol.version": "1.3",
        "tls.cipher": "AES",
        "smtp.forwarded_cn": "c.example",
    }
    dialogue = {
        "smtp.command": "RCPT TO:<b@y>",
        "smtp.response.status_code": 450,
        "smtp.response.text": "450 4.2.0 later",
        "error.type": "450",
    }
    assert attributes(recipient) == {
        **client,
        **dialogue,
        "smtp.pipelined": True,
        "smtp.recipients": ["b@y"],
    }
    assert attributes(to_backend) == {
        **dialogue,
        "network.protocol.name": "smtp",
        "network.transport": "tcp",
        "network.peer.address": "10.0.0.5",
        "network.peer.port": 25,
        "server.address": "10.0.0.5",
        "server.port": 25,
    }
    assert attributes(mail)["smtp.sender"] == "a@x"
    assert recipient.status.code == Status.STATUS_CODE_ERROR
    assert mail.status.code == Status.STATUS_CODE_UNSET
    found = attributes(root)
    assert found.pop("smtp.session.id").endswith("-1")
    assert found == {
        **client,
        "smtp.session.listener": "smtp",
        "smtp.session.backend": "old",
        "smtp.session.close_reason": "client_closed",
        "smtp.session.commands": 3,
        "smtp.session.messages": 0,
        "smtp.session.round_trips_saved": 1,
        "error.type": "450",
    }
    resource = recorded.collector.resources()[0]
    assert resource["service.name"] == "smtpproxy"
    assert resource["service.version"]
    assert resource["service.instance.id"] == "mx1"


def test_a_session_that_is_not_sampled_has_no_observer(collector: Collector) -> None:
    recorder = SpanRecorder(SpanExport(collector.endpoint, 0.0, "mx1"))
    assert recorder.session("s-1", "smtp", "old", "192.0.2.1:4711") is None
    recorder.close()
    assert collector.requests == []


def test_what_fails_besides_the_dialogue_is_an_event_of_the_session(recorded: Recorded) -> None:
    recorded.session.observer.gave_up("10.0.0.4:25", "refused\x1b[31m")
    recorded.session.observer.noted("tls_failed", side="backend", reason="x" * 1000)
    (root,) = [each for each in recorded.spans() if not each.parent_span_id]
    given_up, failed = root.events
    assert given_up.name == "server_given_up"
    assert attributes(given_up)["smtp.reason"] == "refused\\x1b[31m"
    assert failed.name == "tls_failed"
    assert attributes(failed)["smtp.reason"] == "x" * 253 + "..."
    assert attributes(root)["error.type"] == "server_given_up"


def test_text_of_peers_is_escaped_and_cut_and_names_no_span(recorded: Recorded) -> None:
    recorded.session.sends("EVIL\x1b[31m " + "\u202e" * 200)
    recorded.session.says("500 \udce9 what".encode("utf-8", "surrogateescape").decode("latin-1"))
    root, *spans = recorded.spans()
    odd = below(spans, root)[-1]
    assert odd.name == "other"
    shown = attributes(odd)["smtp.command"]
    assert shown.startswith("EVIL\\x1b[31m \\xe2")
    assert len(shown) <= 256
    for each in spans:
        for value in attributes(each).values():
            assert not isinstance(value, str) or value.isprintable()


def test_a_command_without_a_reply_ends_with_the_session(recorded: Recorded) -> None:
    session = recorded.session
    session.sends("NOOP")
    session.pipeline.client_lost(session.now)
    root, *spans = recorded.spans()
    (noop,) = [each for each in below(spans, root) if each.name == "NOOP"]
    assert attributes(noop)["error.type"] == "no_reply"
    assert [attributes(each)["error.type"] for each in below(spans, noop)] == ["no_reply"]
    assert root.end_time_unix_nano >= noop.end_time_unix_nano >= noop.start_time_unix_nano


def test_a_session_has_a_bounded_number_of_spans(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(span_recorder, "SPANS_OF_SESSION", 10)
    for _ in range(8):
        recorded.session.sends("NOOP")
        recorded.session.says("250 ok")
    spans = recorded.spans()
    assert len(spans) == 1 + 9  # the greeting, and four commands on both sides
    assert attributes(spans[0])["smtp.session.spans_left_out"] == 8
    assert recorded.recorder.lost == 0


QUEUE_SPANS = 256


def flood(recorder: SpanRecorder, log_to: io.BytesIO) -> int:
    """Let one session make more spans than may wait, and return how many it should have made."""
    session = Watched(recorder, level="warning", log_to=log_to)
    for _ in range(QUEUE_SPANS):
        session.sends("NOOP")
        session.says("250 ok")
    session.close()
    return 1 + 1 + 2 * QUEUE_SPANS  # the session, the greeting and the commands


@pytest.mark.parametrize("trouble", ["hangs", "refuses", "is gone"])
def test_a_collector_that_accepts_nothing_costs_spans_which_are_counted(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(span_export, "CLOSE_S", 0.1)
    monkeypatch.setattr(span_export, "QUEUE_SPANS", QUEUE_SPANS)
    monkeypatch.setattr(span_export, "BATCH_SPANS", QUEUE_SPANS // 4)
    monkeypatch.setattr(span_recorder, "SPANS_OF_SESSION", 1 << 20)
    logged = io.BytesIO()
    log.configure("warning", "json", logged)
    before = frozenset(threading.enumerate())
    with Collector(400, hangs=trouble == "hangs") as collector:
        endpoint = "http://127.0.0.1:9" if trouble == "is gone" else collector.endpoint
        export = SpanExport(endpoint, 1.0, "mx1")
        recorder = SpanRecorder(export)
        made = flood(recorder, logged) + flood(recorder, logged)
        waiting = export._queued - export._exporter.taken
        began = time.monotonic()
        recorder.close()
        took = time.monotonic() - began
    assert threads.left_of(before) == []
    assert waiting <= QUEUE_SPANS
    assert recorder.lost == made
    assert took < 5
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert {each["event"] for each in lines} == {"otel_spans_lost"}
    assert lines[-1]["spans"] == made
    assert len(lines) <= 2  # one in a minute, and the last one
    assert [fault for line in lines for fault in faults(line)] == []


def test_spans_beyond_the_queue_are_dropped_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(span_export, "CLOSE_S", 0.0)
    export = SpanExport("http://127.0.0.1:9", 1.0, "mx1")
    assert export.has_room(span_export.QUEUE_SPANS)
    assert not export.has_room(1)
    assert export.lost == 1
    export.close()
    assert export.lost == span_export.QUEUE_SPANS + 1
