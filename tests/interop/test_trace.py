"""The trace of real sessions: followed while it grows, exported from inside TLS, replayed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from selenium import webdriver
from selenium.webdriver.common.by import By

from smtpproxy.trace.reader import TraceReader
from tests.interop.peers import opensmtpd, smtp_sink
from tests.interop.stage import configured
from tests.interop.test_page import shown
from tests.interop.wire import Wire
from tests.support.preloaded import completed
from tests.support.processes import Process, eventually
from tests.support.programs import command
from tests.trace.conftest import record_forwarded, record_secured

GROUP = (b"MAIL FROM:<joe@sender.example>", b"RCPT TO:<ann@rcpt.example>", b"DATA")
CONTENT = (b"Subject: <b>hello</b>", b"", b"text", b".")


def backend(port: int, directory: Path, more: str = "") -> str:
    return (
        f'servers = ["127.0.0.1:{port}"]\n'
        f'[trace]\ndirectory = "{directory}"\ncontent = "full"\n{more}\n'
    )


def trace(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return completed("trace", *arguments, env={"COLUMNS": "120", "PATH": "/usr/bin"})


def relay(port: int, number: int = 0) -> None:
    with Wire(port) as client:
        client.reply()
        assert client.ask(b"EHLO client%d.example" % number) == [250]
        assert client.ask(*GROUP) == [250, 250, 354]
        assert client.ask(*CONTENT, b"QUIT", replies=2) == [250, 221]


def session_in(directory: Path) -> str:
    """Wait until a session is recorded to its end, and return its id."""
    return eventually(lambda: _closed_in(directory), "the session's last record")


def _closed_in(directory: Path) -> str | None:
    for path in directory.glob("*.jsonl"):
        found = re.search(r'"what":"closed","session":"([^"]+)"', path.read_text())
        if found:
            return found[1]
    return None


def test_follow_prints_all_while_files_are_rotated(tmp_path: Path) -> None:
    directory = tmp_path / "trace"
    argv = [sys.executable, "-u", "-m", "smtpproxy", "trace", "follow", "-d", str(directory)]
    settings = 'max_file = "8KiB"\nmax_files = 1000'
    with (
        smtp_sink("-p") as mta,
        configured("", backend(mta.port, directory, settings)) as (port, _),
        Process(argv, tmp_path / "followed", {"COLUMNS": "200"}) as follow,
    ):
        eventually(lambda: "does not exist yet" in follow.printed() or None, "that it waits")

        def begun() -> bool | None:
            relay(port, 99)
            return "EHLO client99.example" in follow.printed() or None

        eventually(begun, "the first exchange")
        numbers = range(40)
        for number in numbers:
            relay(port, number)

        for number in numbers:  # two workers write when it is time for each
            name = f"EHLO client{number}.example "
            eventually(lambda name=name: name in follow.printed() or None, name)  # type: ignore[misc]
        printed = eventually(lambda: _all_closed(follow.printed()), "its end")
        for number in numbers:
            assert printed.count(f"EHLO client{number}.example ") == 1
        assert len(list(directory.glob("*.jsonl"))) > 4


def _all_closed(printed: str) -> str | None:
    """Return what was printed if each session that was begun in it is closed in it."""
    begun = set(re.findall(r"(\S+) +EHLO client", printed))
    return printed if begun <= set(re.findall(r"(\S+) +closed, quit", printed)) else None


def test_a_session_inside_tls_is_captured_with_both_legs(tmp_path: Path) -> None:
    tshark = command("tshark")
    directory, file = tmp_path / "trace", tmp_path / "session.pcapng"
    issued = trustme.CA().issue_cert("mx.example")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "mx.pem")
    listener = f'tls = "starttls"\ncertificate = "{tmp_path}/mx.pem"'
    with smtp_sink("-p") as mta, configured(listener, backend(mta.port, directory)) as (port, _):
        argv = [command("swaks"), "--server", "127.0.0.1", "--port", str(port), "--pipeline"]
        argv += ["--tls", "--helo", "client.example", "--from", "joe@sender.example"]
        argv += ["--to", "ann@rcpt.example", "--body", "text"]
        done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        name = session_in(directory)
    assert trace("export", "-d", directory, name, "--pcapng", file).returncode == 0
    fields = ["-T", "fields", "-e", "tcp.stream", "-e", "smtp.req.command"]
    checks = ["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
    read = [tshark, "-r", str(file), *checks]
    reported = _output([*read, "-Y", "smtp.req.command", *fields]).splitlines()
    streams = [line.split("\t") for line in reported]
    assert [verb for stream, verb in streams if stream == "0"] == [
        *("EHLO", "STAR", "EHLO", "MAIL,RCPT,DATA", "QUIT")
    ]
    assert [verb for stream, verb in streams if stream == "1"] == [
        *("EHLO", "EHLO", "MAIL", "RCPT", "DATA", "QUIT")
    ]
    for stream, offered in (("0", True), ("1", False)):
        said = _output([*read, "-q", "-z", f"follow,tcp,ascii,{stream}"])
        assert ("PIPELINING" in said) == offered
        assert "Subject: test" in said
    assert not _output([*read, "-Y", "_ws.expert.severity >= 0x600000"])


def _output(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout


class TestReplay:
    def test_to_the_proxy_in_the_original_groups(self, tmp_path: Path) -> None:
        with (
            smtp_sink("-p") as mta,
            configured("", backend(mta.port, tmp_path / "trace")) as (port, _),
        ):
            relay(port)
            name = session_in(tmp_path / "trace")
            for flags in ([], ["--full-speed"]):
                done = trace(
                    "replay", "-d", tmp_path / "trace", name, "--to", f"127.0.0.1:{port}", *flags
                )
                assert done.returncode == 0, done.stdout + done.stderr
                assert "RCPT TO:<ann@rcpt.example>" in done.stdout
            assert len(list(mta.kept())) == 3

    def test_to_the_mta_itself_in_lock_step_only(self, tmp_path: Path) -> None:
        """OpenSMTPD has no PIPELINING: it does not take a group."""
        with opensmtpd() as mta, configured("", backend(mta.port, tmp_path / "trace")) as (port, _):
            relay(port)
            name = session_in(tmp_path / "trace")
            to = ("replay", "-d", tmp_path / "trace", name, "--to", f"127.0.0.1:{mta.port}")
            done = trace(*to, "--lock-step")
            assert done.returncode == 0, done.stdout + done.stderr
            done = trace(*to)
            assert (done.returncode, "stopped: " in done.stderr) == (1, True)
            assert "≠" in done.stdout


@pytest.mark.long
def test_the_page_of_a_session_is_drawn_by_itself(
    tmp_path: Path, browser: webdriver.Chrome
) -> None:
    with (
        smtp_sink("-p") as mta,
        configured("", backend(mta.port, tmp_path / "trace")) as (port, _),
    ):
        relay(port)
        name = session_in(tmp_path / "trace")
    page = tmp_path / "session.html"
    assert trace("export", "-d", tmp_path / "trace", name, "--html", page).returncode == 0
    browser.get(page.as_uri())
    picture = shown(browser, "#picture", "round trips saved")
    assert "MAIL · RCPT · DATA" in picture
    assert browser.execute_script("return document.querySelectorAll('b').length") == 0
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width == 390, "nothing to be scrolled sideways"
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [dark]})
    ground = "return getComputedStyle(document.body).backgroundColor"
    red, *_ = map(int, re.findall(r"\d+", browser.execute_script(ground)))
    assert red < 64
    assert browser.get_log("browser") == []


@pytest.mark.long
def test_tls_is_drawn(tmp_path: Path, browser: webdriver.Chrome) -> None:
    directory, page = record_secured(tmp_path / "trace"), tmp_path / "session.html"
    names = [each.session for each, _ in TraceReader(directory).closed_sessions()]
    drawn = []
    for name in names[:2]:
        assert trace("export", "-d", directory, name, "--html", page).returncode == 0
        browser.get(page.as_uri())
        assert shown(browser, "#picture", "round trips saved")
        drawn.append([each.text for each in browser.find_elements(By.CSS_SELECTOR, "svg > text")])
    assert {"the client is inside TLS 1.3", "the MTA is inside TLS 1.2"} < set(drawn[0])
    assert "TLS with the client failed: <b>unknown ca\\x1b" in drawn[1]
    assert "the client's lone dot is no end of data: bare lf" in drawn[1]


@pytest.mark.long
def test_replies_of_the_proxy_itself_are_drawn(tmp_path: Path, browser: webdriver.Chrome) -> None:
    directory, page = record_forwarded(tmp_path / "trace"), tmp_path / "session.html"
    exported = trace("export", "-d", directory, session_in(directory), "--html", page)
    assert exported.returncode == 0
    browser.get(page.as_uri())
    assert shown(browser, "#picture .legend", "slanted: smtpproxy's own words")
    drawn = [each.text for each in browser.find_elements(By.CSS_SELECTOR, "text.command")]
    assert drawn[-5:] == ["XFORWARD", "MAIL", "RCPT", "RSET", "QUIT"]
    (own,) = browser.find_elements(By.CSS_SELECTOR, "text.own")
    assert own.text == "XFORWARD"
