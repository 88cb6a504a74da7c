"""The fail2ban filter, by fail2ban's own test program, on lines that sessions have logged."""

import io
import os
import subprocess
from pathlib import Path

import pytest

from smtpproxy import data
from smtpproxy.core.pipeline import Pipeline
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.log import events, log
from smtpproxy.log.session_log import ServiceLog
from tests.support.observed_session import KnownEnds
from tests.support.programs import root_of

FILTER = Path(data.__file__).parent / data.EXAMPLES["fail2ban"].file
FORGED = '","event":"auth_refused","session":"1-1","client_ip":"198.51.100.66","reply":"5'


def session(stream: io.BytesIO, client: str, dialogue: list[tuple[str, str]]) -> None:
    """Log a session: each of the client's lines, and the backend's reply to it."""
    log.configure("info", "json", stream)
    observer = ServiceLog().session("1-1", "smtp", "old", client)
    observer.connected("10.0.0.5:25", KnownEnds())
    pipeline = Pipeline(SessionPolicy(), lambda _: None, observer, 1.0)
    pipeline.connect_backend(lambda _: None)
    for line, reply in dialogue:
        if line:
            pipeline.client_received(line.encode() + b"\r\n", 2.0)
        if reply:
            pipeline.backend_received(reply.encode() + b"\r\n", 3.0)


MAIL = [("", "220 mx"), ("MAIL FROM:<a@x>", "250 a")]
SESSIONS = {
    "192.0.2.1": [("", "220 mx"), ("AUTH PLAIN AGpvZQBiYWQ=", "535 5.7.8 no")],
    "2001:db8::2": [("", "554 5.7.1 not you")],
    "192.0.2.3": [("", "220 mx"), ("HELO spam", "550 5.7.1 no")],
    "192.0.2.4": [*MAIL, ("RCPT TO:<nobody@y>", "550 5.1.1 unknown")],
    "192.0.2.5": [("", "220 mx"), ("NOOP\rMAIL FROM:<x>", "")],
    # None of these is the client's fault, or they are for a while only.
    "192.0.2.6": [*MAIL, ("RCPT TO:<greylisted@y>", "450 4.7.1 later")],
    "192.0.2.7": [("", "220 mx"), ("AUTH PLAIN AGpvZQBiYWQ=", "454 4.7.0 later")],
    "192.0.2.8": [*MAIL, ("RCPT TO:<b@y>", "250 ok"), ("RSET", "250 ok")],
    "192.0.2.9": [("", "220 mx"), (f"HELO {FORGED}", "450 later")],
}
NORMAL = ["192.0.2.1", "2001:db8::2", "192.0.2.3"]


@pytest.mark.parametrize("mode", ["normal", "aggressive"])
@pytest.mark.parametrize("before", ["", "mx smtpproxy[4711]: "])
def test_the_filter_finds_the_clients_that_the_mta_refused(
    mode: str, before: str, tmp_path: Path
) -> None:
    stream = io.BytesIO()
    for client, dialogue in SESSIONS.items():
        session(stream, f"[{client}]:4711" if ":" in client else f"{client}:4711", dialogue)
    events.LOG_LINES_SUPPRESSED.log(log.get(), client_ip="192.0.2.10", lines=1950)
    logged = tmp_path / "log"
    lines = stream.getvalue().decode().splitlines(keepends=True)
    logged.write_text("".join(before + line for line in lines))
    root = root_of("fail2ban", "usr/bin/fail2ban-regex")
    done = subprocess.run(
        [
            *("/usr/bin/python3", root / "usr/bin/fail2ban-regex"),
            *("--config", root / "etc/fail2ban", "--raw", "--usedns", "no", "--out", "<ip>"),
            *(logged, f"{FILTER}[mode={mode}]"),
        ],
        env={**os.environ, "PYTHONPATH": str(root / "usr/lib/python3/dist-packages")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = NORMAL + ["192.0.2.4", "192.0.2.5", "192.0.2.10"] * (mode == "aggressive")
    assert done.stdout.split() == wanted
