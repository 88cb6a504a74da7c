"""The whole proxy in one process: settings, mail, and signals."""

import asyncio
import io
import json
import os
import signal
import smtplib
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from smtpproxy.config.loader import from_flags, load
from smtpproxy.demo.legacy import LegacyMTA
from smtpproxy.log import log
from smtpproxy.worker.app import App
from tests.support.processes import free_port
from tests.support.program import SMTPPROXY


@pytest.fixture
async def mta() -> AsyncIterator[LegacyMTA]:
    """A legacy MTA that keeps the messages it accepts."""
    server = LegacyMTA()
    await server.start()
    yield server
    await server.stop()


async def test_mail_goes_through_and_nothing_is_left_open(mta: LegacyMTA) -> None:
    app = App(from_flags(None, ["127.0.0.1:0", "[::1]:0"], [mta.address], None, "error"))
    await app.start()
    for address in app.addresses:
        host, _, port = address.rpartition(":")
        await asyncio.to_thread(_send, host.strip("[]"), int(port))
    await app.stop()
    assert len(mta.messages) == 2
    assert not mta.violations


async def test_ipv4_belongs_to_the_listener_that_names_it(mta: LegacyMTA) -> None:
    """Without another listener it belongs to `[::]`."""
    port = free_port()
    both, other = f"[::]:{port}", f"127.0.0.1:{port}"
    for listen, found in (
        ([both], [both, f"0.0.0.0:{port}"]),
        ([both, other], [both, other]),
        ([other, both], [other, both]),
        ([both, "127.0.0.1:0"], [both, f"0.0.0.0:{port}"]),
    ):
        app = App(from_flags(None, listen, [mta.address], None, "error"))
        await app.start()
        assert app.addresses[: len(found)] == found
        await app.stop()


async def test_settings_of_the_file_reach_the_sessions(mta: LegacyMTA, tmp_path: Path) -> None:
    file = tmp_path / "smtpproxy.toml"
    file.write_text(
        f"""
        hostname = "mx.example"
        [listeners.smtp]
        address = "127.0.0.1:0"
        bare_newlines = "reject"
        capabilities = {{ hide = ["SIZE", "VRFY"] }}
        [backends.old]
        servers = ["{mta.address}"]
        [limits]
        consecutive_errors = 1
        """
    )
    app = App(load(file))
    await app.start()
    host, _, port = app.addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"EHLO x\r\nVRFY a\r\nVRFY b\r\n")
    async with asyncio.timeout(5):
        text = (await reader.read()).decode()
    assert "PIPELINING" in text
    assert "SIZE" not in text
    assert text.count("502 5.5.1") == 2
    assert text.endswith("421 4.7.0 mx.example Error: too many errors\r\n")
    writer.close()
    await writer.wait_closed()
    await app.stop()


async def test_a_client_cannot_fill_the_log(mta: LegacyMTA, tmp_path: Path) -> None:
    """Lines that are left out are counted exactly, in the log and in the metrics."""
    file = tmp_path / "smtpproxy.toml"
    file.write_text(
        f"""
        [listeners.smtp]
        address = "127.0.0.1:0"
        [backends.old]
        servers = ["{mta.address}"]
        [log]
        session_lines_per_second = 1
        [admin]
        address = "127.0.0.1:0"
        """
    )
    stream = io.BytesIO()
    log.configure("info", "json", stream)
    app = App(load(file))
    await app.start()
    host, _, port = app.addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"EHLO x\r\n" + b"MAIL FROM:<a@x>\r\nRSET\r\n" * 200 + b"QUIT\r\n")
    async with asyncio.timeout(10):
        await reader.read()
    writer.close()
    await writer.wait_closed()
    samples = {sample.name: sample.value for sample in app.snapshot().samples}
    await app.stop()
    log.configure("info", "json")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    logged = [line for line in lines if line["event"] in ("message_abandoned", "session_closed")]
    left_out = sum(line["lines"] for line in lines if line["event"] == "log_lines_suppressed")
    assert len(logged) < 20
    assert left_out == samples["log_lines_suppressed"] == 201 - len(logged)


async def test_a_trace_has_the_dialogues_of_both_sides(mta: LegacyMTA, tmp_path: Path) -> None:
    settings = from_flags(None, ["127.0.0.1:0"], [mta.address], None, "error", trace=tmp_path)
    app = App(settings)
    await app.start()
    host, _, port = app.addresses[0].rpartition(":")
    await asyncio.to_thread(_send, host, int(port))
    await app.stop()
    (file,) = tmp_path.iterdir()
    records = [json.loads(line) for line in file.read_text().splitlines()]
    connected = next(each for each in records if each["what"] == "connected")
    assert connected["listener_address"] == app.addresses[0]
    assert connected["server_address"] == mta.address
    assert connected["proxy_address"].startswith("127.0.0.1:")
    content = next(each for each in records if each.get("verb") == "end_of_data")
    assert content["content_bytes"] == len(b"Subject: x\r\n\r\n..text\r\n")
    assert content["framed"] <= content["sent"] < content["replied"] <= content["flushed"]


def _send(host: str, port: int) -> None:
    with smtplib.SMTP(host, port, timeout=5) as client:
        assert client.ehlo()[0] == 250
        assert client.has_extn("PIPELINING")
        client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n.text\r\n")


class Process:
    """`smtpproxy run` as a user starts it."""

    def __init__(self, backend: str) -> None:
        self.process = subprocess.Popen(
            [*SMTPPROXY, "run", "-l", f"127.0.0.1:{free_port()}", "-b", backend],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.address = self.event("listening")["address"]

    def event(self, name: str) -> dict[str, str]:
        """Return the next log line of an event."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            fields: dict[str, str] = json.loads(line)
            if fields["event"] == name:
                return fields
        raise AssertionError(f"no {name}")


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """Return a list of processes that are ended with the test."""
    started: list[Process] = []
    yield started
    for each in started:
        each.process.kill()
        each.process.wait(20)
        assert each.process.stderr is not None
        each.process.stderr.close()


async def test_a_signal_drains_a_second_one_stops(mta: LegacyMTA, processes: list[Process]) -> None:
    proxy = await asyncio.to_thread(Process, mta.address)
    processes.append(proxy)
    host, _, port = proxy.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(40):
        assert (await reader.readline()).startswith(b"220 ")
        writer.write(b"EHLO x\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\n")
        while not (await reader.readline()).startswith(b"250 <b@example.org>"):
            pass
        os.kill(proxy.process.pid, signal.SIGTERM)
        await asyncio.to_thread(proxy.event, "draining")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))
        writer.write(b"NOOP\r\n")  # the transaction is still served
        assert (await reader.readline()).startswith(b"250")
        os.kill(proxy.process.pid, signal.SIGTERM)
        assert await asyncio.to_thread(proxy.process.wait, 20) == 0
    writer.close()


async def test_a_drained_proxy_ends_with_its_last_transaction(
    mta: LegacyMTA, processes: list[Process]
) -> None:
    proxy = await asyncio.to_thread(Process, mta.address)
    processes.append(proxy)
    host, _, port = proxy.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(40):
        writer.write(b"EHLO x\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n")
        while not (await reader.readline()).startswith(b"354"):
            pass
        os.kill(proxy.process.pid, signal.SIGINT)
        await asyncio.to_thread(proxy.event, "draining")
        writer.write(b"text\r\n.\r\n")
        rest = await reader.read()
        writer.close()
        assert await asyncio.to_thread(proxy.process.wait, 20) == 0
    first, second = rest.splitlines()
    assert first.startswith(b"250 ")
    assert second.startswith(b"421 4.3.2 ")
    assert len(mta.messages) == 1
