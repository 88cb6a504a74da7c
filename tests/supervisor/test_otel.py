"""Spans of a service that runs, as an OpenTelemetry collector receives them."""

import json
import signal
import smtplib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smtpproxy.demo.legacy import LegacyMTA
from tests.support.collector import Collector, attributes, below
from tests.support.processes import eventually
from tests.support.program import Program, send
from tests.support.scrape import scrape, total

Run = Callable[..., Program]


@pytest.fixture
def settings(tmp_path: Path, mta: LegacyMTA) -> Callable[[str], Path]:
    """Write the settings file for a collector, and return its path."""

    def write(endpoint: str) -> Path:
        path = tmp_path / "p.toml"
        path.write_text(
            '[listeners.smtp]\naddress = "127.0.0.1:0"\n'
            f'[backends.old]\nservers = ["{mta.address}"]\n'
            '[admin]\naddress = "127.0.0.1:0"\n'
            f'[otel]\nendpoint = "{endpoint}"\nsample = 1\n'
        )
        return path

    return write


def test_a_session_is_a_trace_and_its_exchanges_are_spans_on_both_connections(
    run: Run, settings: Callable[[str], Path], mta: LegacyMTA
) -> None:
    with Collector() as collector:
        before = time.time()
        program = run("-c", settings(collector.endpoint), "--log-format", "json")
        port = program.port()
        with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
            client.ehlo("client.example")
            client.send(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n")
            assert [client.getreply()[0] for _ in range(3)] == [250, 250, 354]
            client.send(b"Subject: x\r\n\r\ntext\r\n.\r\n")
            assert client.getreply()[0] == 250
        root, *spans = collector.session()
        closed = program.event("session_closed")
    after = time.time()
    exchanges = below(spans, root)
    names = ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "end_of_data", "QUIT"]
    assert [each.name for each in exchanges] == names
    for exchange in exchanges[1:]:
        assert [each.name for each in below(spans, exchange)][-1] == exchange.name
    found = attributes(root)
    assert found["smtp.session.id"] == closed["session"]
    assert (found["client.address"], found["server.port"]) == ("127.0.0.1", port)
    recipient = exchanges[3]
    (to_mta,) = below(spans, recipient)
    assert attributes(recipient)["smtp.recipients"] == ["b@y.example"]
    assert attributes(to_mta)["smtp.command"] == "RCPT TO:<b@y.example>"
    assert attributes(to_mta)["server.port"] == int(mta.address.rpartition(":")[2])
    assert attributes(exchanges[5])["smtp.data.size"] == len("Subject: x\r\n\r\ntext\r\n")
    for each in (root, *spans):
        times = (each.start_time_unix_nano / 1e9, each.end_time_unix_nano / 1e9)
        assert before <= times[0] <= times[1] <= after
    for exchange in exchanges[1:]:
        for each in below(spans, exchange):
            assert exchange.start_time_unix_nano <= each.start_time_unix_nano
            assert each.end_time_unix_nano <= exchange.end_time_unix_nano <= root.end_time_unix_nano


@pytest.mark.parametrize("trouble", ["hangs", "refuses"])
def test_mail_goes_on_and_the_service_stops_if_the_collector_accepts_nothing(
    run: Run, settings: Callable[[str], Path], mta: LegacyMTA, trouble: str
) -> None:
    with Collector(400, hangs=trouble == "hangs") as collector:
        program = run("-c", settings(collector.endpoint), "--log-format", "json")
        admin = program.event("admin_listening")["address"]
        port = program.port()
        send(port)
        assert collector.asked.wait(20)
        for _ in range(5):
            send(port)
        assert len(mta.messages) == 6
        if trouble == "refuses":
            eventually(lambda: total(scrape(admin), "otel_spans_lost_total") or None, "lost spans")
        began = time.monotonic()
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
        assert time.monotonic() - began < 10
        lost = [each for each in program.log() if each["event"] == "otel_spans_lost"]
    assert lost[-1]["level"] == "warning"
    if trouble == "refuses":
        assert "400" in lost[-1]["reason"]
    assert [each for each in program.log() if each["event"] == "library_message"] == []


def test_what_is_off_is_not_imported() -> None:
    code = (
        "import sys; from smtpproxy.worker import main; from smtpproxy.worker.app import App;"
        "from smtpproxy.config.schema import Settings; App(Settings());"
        "print([each for each in sys.modules if each.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == []
