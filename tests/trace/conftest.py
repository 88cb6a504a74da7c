"""A directory of trace files, of sessions whose every record is known."""

from pathlib import Path

import pytest

from smtpproxy.core.observer import SessionSummary
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.log.session_log import ServiceLog
from smtpproxy.trace.content_capture import CaptureMode
from smtpproxy.trace.recorder import TraceRecorder
from smtpproxy.trace.rotating_files import RotatingFiles
from smtpproxy.worker.observer_fanout import ObserverFanout
from tests.support.observed_session import Later, Watched


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Return a directory with three sessions: relayed, refused with 550, and with a bare LF."""
    directory = tmp_path / "trace"
    files = RotatingFiles(directory, 0, 1 << 20, 5)
    trace = TraceRecorder(files, Later(), kept=CaptureMode.FULL, most=4096)
    for content, reply in (
        ("text", "250 2.0.0 queued"),
        ("text", "550 5.7.1 spam"),
        ("a\nb", "250 2.0.0 queued"),
    ):
        session = Watched(trace)
        session.sends("EHLO x")
        session.says("250-mx\r\n250 SIZE")
        session.relay(content, reply=reply)
        session.sends("QUIT")
        session.says("221 bye")
        session.close()
    trace.close()
    return directory


@pytest.fixture
def secured(tmp_path: Path) -> Path:
    """Return a directory with a session inside TLS, and one whose client failed at it."""
    return record_secured(tmp_path / "trace")


def record_secured(directory: Path) -> Path:
    """Record such sessions."""
    trace = TraceRecorder(RotatingFiles(directory, 0, 1 << 20, 5), Later())
    for event in ("tls_started", "tls_failed"):
        session = Watched(trace)
        session.sends("EHLO x")
        session.says("250 mx")
        note = session.observer.noted
        note("tls_started", side="backend", version="TLSv1.2", cipher="ECDHE-RSA")
        if event == "tls_started":
            note(event, side="client", version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384")
        else:
            note("content_not_ended", kind="bare_lf")
            note(event, side="client", reason="<b>unknown ca\x1b")
        session.close()
    turned_away = ObserverFanout(ServiceLog(), [trace]).session("smtp", "old", "192.0.2.1:4711")
    turned_away.noted("client_turned_away", kind="bad_proxy_header", reason="cut short")
    turned_away.closed(SessionSummary("bad_proxy_header", 0.1, 0, 0, 0, 0, 0))
    trace.close()
    return directory


@pytest.fixture
def forwarded(tmp_path: Path) -> Path:
    """Return a directory with a session whose client is named by XFORWARD."""
    return record_forwarded(tmp_path / "trace")


def record_forwarded(directory: Path) -> Path:
    """Record such a session."""
    trace = TraceRecorder(RotatingFiles(directory, 0, 1 << 20, 5), Later())
    session = Watched(trace, policy=SessionPolicy(xforward=True))
    session.pipeline.ehlo.xforward.lines = [b"XFORWARD ADDR=192.0.2.1\r\n"]
    session.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "RSET", "QUIT")
    session.says("250 known", "250 a", "250 b", "250 c", "221 bye")
    session.close()
    trace.close()
    return directory
