"""Secrets never leave: not in any log, trace, capture, page or metric, plain or in base64."""

import base64
import json
from pathlib import Path

import msgspec
import pytest

from smtpproxy.admin.exposition import Exposition
from smtpproxy.figures import Figures
from smtpproxy.observe.captured import Kept
from smtpproxy.observe.exchanges import ExchangeLog
from smtpproxy.observe.files import Files
from smtpproxy.observe.metrics import Metrics
from smtpproxy.observe.recent import Recent
from smtpproxy.observe.trace import Trace
from smtpproxy.tracing import html, pcapng
from smtpproxy.tracing.reader import closed_sessions, files_of, session_of
from tests.observe.stage import Later, Watched

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
    session.says("235 in")
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


@pytest.mark.parametrize("only_errors", [True, False])
@pytest.mark.parametrize("dialogue", [talk, sent_ahead])
def test_no_secret_is_in_anything_that_leaves(
    tmp_path: Path, dialogue: object, only_errors: bool
) -> None:
    recent, metrics = Recent(), Metrics()
    files = Files(tmp_path, 0, 1 << 20, 3)
    trace = Trace(files, Later(), only_errors=only_errors, kept=Kept.HEADERS)
    session = Watched(ExchangeLog(), trace, recent, metrics, level="debug")
    assert callable(dialogue)
    dialogue(session)
    trace.close()
    recent.look()
    paths = files_of(tmp_path)
    (closed,) = closed_sessions(paths, lambda _: None)
    found = session_of(paths, closed.session)
    assert found is not None
    left = {
        "log": session.logged.getvalue(),
        "trace": b"".join(path.read_bytes() for path in paths),
        "capture": pcapng.capture(found),
        "html": html.page(found).encode(),
        "metrics": Exposition().render(Figures(counts=metrics.counts())),
        "page": msgspec.json.encode(recent.changed()),
    }
    for name, octets in left.items():
        assert len(octets) > 100, name
        for secret in SECRETS:
            assert secret.encode() not in octets, (name, secret)
    assert json.loads(left["log"].splitlines()[-1])["event"] == "session_closed"
