"""Secrets never leave: not in any log, trace, capture, page or metric, plain or in base64."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from smtpproxy.admin.recent_sessions import RecentSessions
from smtpproxy.control_socket.watch_command import _Records, _Sessions
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.log.debug_log import DebugLog
from smtpproxy.metrics.counters import MetricCounters
from smtpproxy.metrics.exposition import Exposition
from smtpproxy.metrics.snapshot import MetricsSnapshot
from smtpproxy.otel.span_recorder import SpanRecorder
from smtpproxy.trace import html_page, pcapng, statistics_page
from smtpproxy.trace.content_capture import CaptureMode
from smtpproxy.trace.live_output import LiveLines, LiveSessions
from smtpproxy.trace.reader import TraceReader, files_of
from smtpproxy.trace.recorder import TraceRecorder
from smtpproxy.trace.records import Record
from smtpproxy.trace.rotating_files import RotatingFiles
from smtpproxy.trace.statistics_collector import DECODER, StatisticsCollector
from smtpproxy.trace.watch import read_line
from smtpproxy.worker.watch_recorders import WatchSink
from tests.support.observed_session import Later, Watched

PASSWORD = "correct-horse-battery"
PLAIN = base64.b64encode(f"\0joe\0{PASSWORD}".encode()).decode()
LOGIN = base64.b64encode(PASSWORD.encode()).decode()
BODY = "the body of a letter"
SECRETS = [PASSWORD, PLAIN, LOGIN, base64.b64encode(BODY.encode()).decode(), BODY]


def talk(session: Watched) -> None:
    """Let all secrets be said, in every way there is."""
    session.sends("EHLO x")
    session.says("250-mx\r\n250-AUTH PLAIN LOGIN\r\n250 SIZE")
    session.sends(f"AUTH PLAIN {PLAIN}")
    session.says("535 no")
    session.sends("AUTH LOGIN")
    session.says("334 VXNlcm5hbWU6")
    session.sends(LOGIN)
    session.says("334 UGFzc3dvcmQ6")
    session.sends(LOGIN)
    session.says(f"235-2.7.0 {LOGIN}\r\n235 2.7.0 {PASSWORD}")
    session.sends(f"XCLIENT LOGIN={PASSWORD}")
    session.sends(f"X-EXPS LOGIN {LOGIN}")
    session.relay("Subject: hello", "", BODY)
    session.sends("AUTH LOGIN")
    session.says("334 VXNlcm5hbWU6")
    session.pipeline.client_received(f"{LOGIN}\rx\r\n".encode(), 90.0)
    session.close()


def sent_ahead(session: Watched) -> None:
    """Let a password be sent before it was asked for."""
    session.sends("AUTH LOGIN", LOGIN, LOGIN)
    session.says("535 no", "500 what", "500 what")
    session.close()


BLUNDERS = [
    "AUTH PLAIN {}",
    "auth plain {}",
    "AuTh\tPLAIN\t{}",
    "AUTH  PLAIN  {} ",
    " AUTH PLAIN {}",
    "AUTH {}",
    "AUTH={}",
    "AUTH=PLAIN {}",
    "AUTHPLAIN {}",
    "\ufeffAUTH PLAIN {}",
    "AUTH PLAIN\0{}",
    "AUTH\rPLAIN {}",
    "AUTH PLAIN\x0b{}",
    "AUTH PLAIN {0}\n{0}\nAUTH LOGIN\n{0}",
    "AUTH PLAIN {0}\r\n{0}\r\nQUIT",
    "MAIL FROM:<a@x>\r\nDATA\r\nAUTH PLAIN {}",
    "STARTTLS\r\nAUTH PLAIN {}",
    "NOOP\r\nAUTH PLAIN {}",
    "AUTH LOGIN\r\n{0}\r\n{0}\0\r\n",
    "AUTH PLAIN {0}" + "{0}" * 1000,
    "AUTH LOGIN " + "{0}" * 90 + " " * 13000 + "{0}",
    "XCLIENT LOGIN={}",
    "xclient NAME=x login={}",
    "XCLIENT\tLOGIN={} ADDR=192.0.2.1",
    "x-exps\tNTLM {}",
    "X-EXPS {}",
]
"""What clients say that get AUTH wrong, or are made to look so."""
ANSWERS = {
    "refused": ["535 5.7.8 no"],
    "quoted": ['500 5.5.1 Command unrecognized: "{0}"', '501 5.5.2 cannot decode "{0}"'],
    "asked for more": ["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", "535 no"],
    "out of step": ["250 a\r\n250 b"],
    "none": [],
}


def blunder(session: Watched, words: str, answers: list[str]) -> None:
    """Let a client say this, each secret in its place, and once more if it is asked for more."""
    bad_syntax = b"501 5.5.4 Error: bad command parameter syntax\r\n"
    session.pipeline.allow_upgrades(lambda _: None, lambda _: bad_syntax)
    session.sends("EHLO x")
    session.says("250-mx\r\n250-AUTH PLAIN LOGIN\r\n250 SIZE")
    for secret in (PLAIN, LOGIN, PASSWORD):
        session.sends(words.format(secret))
        for answer in answers:
            if not session.pipeline.ended and session.pipeline.in_flight:
                known = secret.encode() in b"".join(session.backend)
                session.says(answer.format(secret if known else "what"))
                session.sends(secret)
    session.pipeline.backend_lost(session.now)
    session.close()


@pytest.mark.parametrize(
    "trusted",
    [pytest.param(False, id="stranger"), pytest.param(True, id="trusted", marks=pytest.mark.long)],
)
@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("words", BLUNDERS)
def test_no_blunder_lets_a_secret_out(
    tmp_path: Path, words: str, answers: list[str], trusted: bool
) -> None:
    policy = SessionPolicy(trusted=trusted)
    left = all_that_leaves(tmp_path, lambda session: blunder(session, words, answers), policy)
    for name, octets in left.items():
        for secret in SECRETS[:3]:
            assert secret.encode() not in octets, (name, secret)


@pytest.mark.parametrize("only_errors", [True, False])
@pytest.mark.parametrize("dialogue", [talk, sent_ahead])
def test_no_secret_is_in_anything_that_leaves(
    tmp_path: Path, dialogue: object, only_errors: bool
) -> None:
    assert callable(dialogue)
    left = all_that_leaves(tmp_path, dialogue, only_errors=only_errors)
    for name, octets in left.items():
        assert len(octets) > 100, name
        for secret in SECRETS:
            assert secret.encode() not in octets, (name, secret)
    assert json.loads(left["log"].splitlines()[-1])["event"] == "session_closed"


def shown_of_a_watch(lines: list[bytes]) -> dict[str, bytes]:
    """Return what `trace watch` shows, in each of its ways."""
    records = [record for record in map(read_line, lines) if isinstance(record, Record)]
    shown = {"watch in Wireshark": pcapng.Capture().packets(records)}
    for way in (_Sessions(LiveSessions()), _Records(LiveLines())):
        console = way._show._console
        with console.capture() as captured:
            way.write([(record, 100) for record in records])
        shown[f"watch as {type(way).__name__}"] = captured.get().encode()
    return shown


class _Spans:
    """The spans of a session, as they are sent."""

    def __init__(self) -> None:
        self._ended = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._ended))
        self.tracer = provider.get_tracer("test")
        self.lost = 0

    def has_room(self, _spans: int) -> bool:
        return True

    def report(self) -> None:
        pass

    def close(self) -> None:
        pass

    def encoded(self) -> bytes:
        request = encode_spans(self._ended.get_finished_spans())
        return request.SerializeToString()


def all_that_leaves(
    directory: Path,
    dialogue: Callable[[Watched], None],
    policy: SessionPolicy | None = None,
    *,
    only_errors: bool = False,
) -> dict[str, bytes]:
    """Return what everything that may leave says of a session."""
    recent, metrics = RecentSessions(), MetricCounters()
    files = RotatingFiles(directory, 0, 1 << 20, 3)
    trace = TraceRecorder(files, Later(), only_errors=only_errors, kept=CaptureMode.HEADERS)
    watched: list[bytes] = []
    sink = WatchSink(1, lambda _watch, lines, _lost: not watched.extend(map(bytes, lines)), Later())
    watch = TraceRecorder(sink, Later(), only_errors=only_errors, kept=CaptureMode.HEADERS)
    spans = _Spans()
    watchers = (DebugLog(), trace, recent, metrics, watch, SpanRecorder(spans))
    session = Watched(*watchers, level="debug", policy=policy)
    dialogue(session)
    trace.close()
    watch.close()
    recent.look()
    paths = files_of(directory)
    reader = TraceReader(directory)
    found_all = list(reader.closed_sessions())
    assert not reader.problems.count, reader.problems
    ((closed, _),) = found_all
    found = TraceReader(directory).session(closed.session)
    assert not reader.problems.count
    collector = StatisticsCollector()
    for decoded in TraceReader(directory).decoded(DECODER):
        collector.add(decoded)
    statistics = collector.report()
    assert statistics.sessions == 1
    snapshot = MetricsSnapshot()
    metrics.put_into(snapshot)
    return {
        "watch": b"".join(watched),
        "spans": spans.encoded(),
        **shown_of_a_watch(watched),
        "log": session.logged.getvalue(),
        "trace": b"".join(path.read_bytes() for path in paths),
        "capture": pcapng.capture(found),
        "html": html_page.page(found).encode(),
        "statistics": msgspec.json.encode(statistics),
        "statistics page": statistics_page.page(statistics).encode(),
        "metrics": Exposition().render(snapshot, "mx1"),
        "page": msgspec.json.encode(recent.changed()),
    }
