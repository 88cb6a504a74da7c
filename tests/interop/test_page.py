"""The live page in a real browser: a session while it runs, its picture, the keyboard, a phone."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.interop.peers import smtp_sink
from tests.interop.programs import command

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--window-size=1280,860"
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = command("chromium")
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(command("chromedriver", "chromium-driver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def addresses() -> Iterator[dict[str, str]]:
    """Run the proxy with two workers; give the addresses of page and proxy."""
    with smtp_sink("-p") as backend:
        argv = [sys.executable, "-m", "smtpproxy", "run", "-l", "127.0.0.1:0", "-w", "2"]
        argv += ["-b", f"127.0.0.1:{backend.port}", "--admin", "127.0.0.1:0"]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            found: dict[str, str] = {}
            while "listening" not in found:
                line = json.loads(process.stderr.readline())
                found[line["event"]] = line.get("address", "")
            yield found
            process.terminate()


def test_a_session_is_seen_while_it_runs_and_drawn(
    browser: webdriver.Chrome, addresses: dict[str, str]
) -> None:
    host, _, port = addresses["listening"].rpartition(":")
    with (
        socket.create_connection((host, int(port)), 10) as client,
        client.makefile("rb") as replies,
    ):
        replies.readline()
        client.sendall(b"EHLO x\r\n")
        while replies.readline()[3:4] != b" ":
            pass
        client.sendall(b"MAIL FROM:<joe@x.example>\r\nRCPT TO:<a@y.example>\r\nDATA\r\n")
        for _ in range(3):
            replies.readline()
        browser.get(f"http://{addresses['admin_listening']}/")
        row = until(browser, lambda: shown(browser, "#sessions tr", "joe@x.example"))
        assert "open" in row
        client.sendall(b"Subject: x\r\n\r\ntext\r\n.\r\nQUIT\r\n")
        replies.read()
    until(browser, lambda: shown(browser, "#sessions tr", "relayed 250"))
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_DOWN)
    picture = until(browser, lambda: shown(browser, "#picture", "3 round trips saved"))
    assert "MAIL · RCPT · DATA" in picture
    assert "250 \u00d72 · 354" in picture
    assert shown(browser, "#servers .server", "127.0.0.1:")
    filter_box = browser.find_element(By.ID, "filter")
    filter_box.send_keys("nobody")
    assert until(browser, lambda: shown(browser, "#none", "No session matches"))
    pause = browser.find_element(By.ID, "pause")
    pause.click()
    assert pause.get_attribute("aria-pressed") == "true"
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width == 390, "nothing to be scrolled sideways"
    assert browser.get_log("browser") == []


def until(browser: webdriver.Chrome, found: Callable[[], str]) -> str:
    return WebDriverWait(browser, 20).until(lambda _: found())


def shown(browser: webdriver.Chrome, selector: str, text: str) -> str:
    """Return the text of the first element that has this text in it, else nothing."""
    script = (
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        ".find((t) => t.includes(arguments[1])) || ''"
    )
    return str(browser.execute_script(script, selector, text))
