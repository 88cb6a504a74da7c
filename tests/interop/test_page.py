"""The live page in a real browser.

Covers running sessions, drawings, the keyboard, a phone's screen, hostile clients, many sessions,
and a proxy that restarts.
"""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import msgspec
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from smtpproxy import __version__
from smtpproxy.trace import html_page
from smtpproxy.trace.reader import RecordedSession, add
from smtpproxy.trace.records import Noted, Record
from tests.interop.peers import smtp_sink
from tests.support.hostile_text import TEXT, hostile
from tests.support.processes import free_port
from tests.support.program import Program


@contextmanager
def proxy(backend: int, admin: int) -> Iterator[int]:
    """Run the proxy with two workers and the page at a port; give the port for clients."""
    argv = [sys.executable, "-m", "smtpproxy", "run", "-l", "127.0.0.1:0", "-w", "2"]
    argv += ["-b", f"127.0.0.1:{backend}", "--admin", f"127.0.0.1:{admin}"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while True:
            line = json.loads(process.stderr.readline())
            if line["event"] == "listening":
                break
        reading = threading.Thread(target=process.stderr.read)
        reading.start()
        try:
            yield int(line["address"].rpartition(":")[2])
        finally:
            process.terminate()
            reading.join()


@pytest.fixture
def backend() -> Iterator[int]:
    with smtp_sink("-p") as found:
        yield found.port


@pytest.fixture
def admin() -> int:
    return free_port()


class Client:
    """A client that sends what it likes, in one write."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        self._replies = self._socket.makefile("rb")
        self.reply()

    def reply(self) -> bytes:
        """Wait for a reply."""
        while (line := self._replies.readline())[3:4] == b"-":
            pass
        return line

    def say(self, *lines: str, replies: int) -> None:
        """Send lines, and wait for as many replies."""
        self._socket.sendall("".join(f"{line}\r\n" for line in lines).encode())
        for _ in range(replies):
            self.reply()

    def close(self) -> None:
        self._replies.close()
        self._socket.close()


TO_TWO = ("MAIL FROM:<joe@x.example>", "RCPT TO:<a@y.example>", "RCPT TO:<b@y.example>", "DATA")


@pytest.mark.long
def test_a_session_is_seen_while_it_runs_and_drawn(
    browser: webdriver.Chrome, backend: int, admin: int
) -> None:
    with proxy(backend, admin) as port:
        browser.get(f"http://127.0.0.1:{admin}/")
        until(
            browser, lambda: shown(browser, "#none code", f"swaks --server 127.0.0.1 --port {port}")
        )
        client = Client(port)
        client.say("EHLO client.example", replies=1)
        client.say(*TO_TWO, replies=4)
        row = until(browser, lambda: shown(browser, "#sessions tr", "joe@x.example"))
        assert "open" in row
        client.say("Subject: x", "", "text", ".", "QUIT", replies=2)
        client.close()
        row = until(browser, lambda: shown(browser, "#sessions tr", "250 relayed"))
        assert "joe@x.example \u2192 a@y.example +1" in row
        body = browser.find_element(By.TAG_NAME, "body")
        body.send_keys(Keys.ARROW_DOWN)
        picture = until(browser, lambda: shown(browser, "#picture", "4 round trips saved"))
        for part in (
            "MAIL · RCPT \u00d72 · DATA",
            "250 \u00d73 · 354",
            "end of data · QUIT",
            "connect",
        ):
            assert part in picture
        assert shown(browser, "#servers .server", f"127.0.0.1:{backend}")
        assert shown(browser, "#messages", "relayed 1")
        browser.switch_to.active_element.send_keys("/")
        browser.switch_to.active_element.send_keys("nobody")
        until(browser, lambda: shown(browser, "#none", "No session matches"))
        browser.switch_to.active_element.send_keys(Keys.ESCAPE)
        until(browser, lambda: shown(browser, "#sessions tr", "joe@x.example"))
        body.send_keys("e")
        until(browser, lambda: shown(browser, "#none", "No session matches"))
        body.send_keys("e", "p")
        assert browser.find_element(By.ID, "pause").get_attribute("aria-pressed") == "true"
        assert until(browser, lambda: shown(browser, "#state", "paused"))
        assert width_on_a_phone(browser) == 390, "nothing to be scrolled sideways"
        assert browser.get_log("browser") == []


@pytest.mark.long
def test_an_introduced_client_causes_no_error(
    browser: webdriver.Chrome, backend: int, admin: int
) -> None:
    ask = "return outcomeOf({reason: arguments[0], transactions: [], records: []})[0]"
    with proxy(backend, admin):
        browser.get(f"http://127.0.0.1:{admin}/")
        assert browser.execute_script(ask, "introduced") == "soft"
        assert browser.execute_script(ask, "client_lost") == "bad"


@pytest.mark.long
def test_what_a_hostile_client_sends_is_text(
    browser: webdriver.Chrome, backend: int, admin: int
) -> None:
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>\u202e\u05d0\u0007\x1b[2J"
    with proxy(backend, admin) as port:
        browser.get(f"http://127.0.0.1:{admin}/")
        client = Client(port)
        client.say(f"EHLO {hostile}", replies=1)
        client.say(f"MAIL FROM:<{hostile}@x>", f"RCPT TO:<{hostile}@y>", "RSET", replies=3)
        client.say("NOOP </svg><style>*{display:none}</style>", replies=1)
        client.say("FOO\0<b>", "QUIT", replies=2)
        client.close()
        until(browser, lambda: shown(browser, "#sessions .client", "127.0.0.1"))
        browser.find_element(By.TAG_NAME, "body").send_keys("j")
        picture = until(browser, lambda: shown(browser, "#picture", "QUIT"))
        assert (
            "EHLO <img src=x onerror=alert(1)><script>alert(2)</script>\\xe2\\x80\\xae" in picture
        )
        assert "client: bare cr or nul in command" in picture
        script = (
            "return document.body.querySelectorAll('img, script, style, b:not(.figure b)').length"
        )
        assert browser.execute_script(script) == 0
        text = browser.execute_script("return document.body.textContent")
        assert not set("\u202e\u0007\x1b\0") & set(text)
        assert browser.get_log("browser") == []


@pytest.mark.long
def test_nothing_in_a_trace_file_becomes_markup_of_the_page(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    """Every text of every record is hostile; the page shows the escapes, also in its tooltips."""
    session = RecordedSession("s1" + TEXT)
    noted = ("proxy_header_read", "tls_started", "tls_failed", TEXT)
    for kind in Record.__args__:  # type: ignore[attr-defined]  # a union
        for event in noted if kind is Noted else ("",):
            add(session, hostile(kind, **({"event": event} if event else {})))
    file = tmp_path / "page.html"
    for page in (html_page.page(session), raw_page(session)):
        file.write_text(page)
        browser.get(file.as_uri())
        text = until(browser, lambda: shown(browser, "#picture", "round trips saved"))
        text += browser.execute_script("return document.title")
        assert "\\x1b]0;title\\x07" in text
        assert "</script>" in text
        for line in text.split("\n"):
            assert line.isprintable(), repr(line)
        assert browser.execute_script("return document.querySelectorAll('#picture b').length") == 0
        assert browser.get_log("browser") == []


def raw_page(session: RecordedSession) -> str:
    """Return the page with its records as in the file, which are those of the live page."""
    page = html_page.page(session)
    data = msgspec.json.encode(session.records).decode().replace("<", "\\u003c")
    begin, _, rest = page.partition('id="records">')
    return begin + 'id="records">' + data + rest[rest.index("</script>") :]


@pytest.mark.long
def test_many_sessions_leave_the_page_small(
    browser: webdriver.Chrome, backend: int, admin: int
) -> None:
    script = """
        const sizes = [];
        source.addEventListener("message", (message) => sizes.push(message.data.length));
        window.sizes = sizes;
    """
    with proxy(backend, admin) as port:
        browser.get(f"http://127.0.0.1:{admin}/")
        browser.execute_script(script)
        began, count = monotonic(), 0
        while monotonic() < began + 4 or count < 400:
            client = Client(port)
            client.say("EHLO x", replies=1)
            client.say(*TO_TWO, replies=4)
            client.say("text", ".", "QUIT", replies=2)
            client.close()
            count += 1
        passed = monotonic() - began
        snapshot = f"relayed {count:,}"
        until(browser, lambda: shown(browser, "#messages", snapshot))
        sizes = browser.execute_script("return sizes")
        assert len(sizes) <= passed + 20, "one event a second, and a few while it was waited for"
        assert max(sizes) < 1024 * 1024
        assert browser.execute_script("return sessions.size") <= 300
        assert (
            browser.execute_script("return document.querySelectorAll('#sessions tr').length") <= 100
        )
        assert browser.execute_script("return document.querySelectorAll('*').length") < 3000


@pytest.mark.long
def test_the_page_reconnects_to_a_restarted_proxy(
    browser: webdriver.Chrome, backend: int, admin: int
) -> None:
    with proxy(backend, admin) as port:
        browser.get(f"http://127.0.0.1:{admin}/")
        client = Client(port)
        client.say("EHLO x", replies=1)
        client.say("MAIL FROM:<old@x.example>", replies=1)
        until(browser, lambda: shown(browser, "#sessions tr", "old@x.example"))
        client.close()
    until(browser, lambda: shown(browser, "#state", "no answer since"))
    assert browser.execute_script("return document.body.className") == "gone"
    with proxy(backend, admin) as port:
        until(browser, lambda: shown(browser, "#state", "live"))
        client = Client(port)
        client.say("EHLO x", replies=1)
        client.say("MAIL FROM:<new@x.example>", replies=1)
        until(browser, lambda: shown(browser, "#sessions tr", "new@x.example"))
        client.close()
        assert browser.execute_script("return document.body.className") == ""


@pytest.mark.long
def test_a_token_can_be_set_and_removed(
    browser: webdriver.Chrome, backend: int, admin: int, tmp_path: Path
) -> None:
    file = tmp_path / "p.toml"

    def write(token: str) -> Path:
        file.write_text(f'admin = {{ address = "127.0.0.1:{admin}", token = "{token}" }}\n')
        return file

    arguments = ("-c", write("0123456789abcdef"), "-l", "127.0.0.1:0", "-b", f"127.0.0.1:{backend}")
    with Program(tmp_path, *arguments) as program:
        program.port()
        browser.get(f"http://127.0.0.1:{admin}/")
        assert "a token is needed" in shown(browser, "body", "")
        browser.get(f"http://127.0.0.1:{admin}/?token=0123456789abcdef")
        assert browser.current_url == f"http://127.0.0.1:{admin}/"
        until(browser, lambda: shown(browser, "#state", "live"))
        write("fedcba9876543210")
        program.signal(signal.SIGHUP)
        until(browser, lambda: shown(browser, "#state", "the token is no longer good"))


LONG = "x" * 60 + "@" + "y" * 60 + ".example"


@pytest.fixture(scope="module")
def busy() -> Iterator[str]:
    """Give the page's URL, of a proxy with three sessions: fine, with a refusal, abandoned."""
    admin = free_port()
    with smtp_sink("-p") as backend, proxy(backend.port, admin) as port:
        for lines, replies in (
            ((*TO_TWO, "text", ".", "QUIT"), 6),
            (("SPURIOUS command", "QUIT"), 2),
            ((f"MAIL FROM:<{LONG}>", f"RCPT TO:<{LONG}>", "RSET", "QUIT"), 4),
        ):
            client = Client(port)
            client.say("EHLO client.example", replies=1)
            client.say(*lines, replies=replies)
            client.close()
        yield f"http://127.0.0.1:{admin}/"


def opened(browser: webdriver.Chrome, url: str) -> None:
    """Open the page, and wait until it shows the three sessions."""
    browser.get("about:blank")
    browser.get(url)
    until(browser, lambda: "3" if rows(browser) == 3 else "")


def rows(browser: webdriver.Chrome) -> int:
    return len(browser.find_elements(By.CSS_SELECTOR, "#sessions tr"))


def press(browser: webdriver.Chrome, *keys: str) -> str:
    """Press keys one after the other, wherever the focus is; return where it is then."""
    for key in keys:
        ActionChains(browser).send_keys(key).perform()
    script = "const on = document.activeElement; return on.id || on.dataset.id || on.tagName"
    return str(browser.execute_script(script))


@pytest.mark.long
def test_the_page_names_the_instance_and_links_its_metrics(
    browser: webdriver.Chrome, busy: str
) -> None:
    opened(browser, busy)
    assert browser.title == f"smtpproxy {socket.gethostname()}"
    assert browser.find_element(By.ID, "host").text == socket.gethostname()
    about = browser.find_element(By.ID, "about").text
    assert re.fullmatch(rf"version {re.escape(__version__)} · up \d+ (s|min) · 2 workers", about)
    link = browser.find_element(By.LINK_TEXT, "metrics").get_attribute("href")
    assert link == f"{busy}metrics"


@pytest.mark.long
def test_plots_have_a_time_axis_and_a_span_that_the_reader_chooses(
    browser: webdriver.Chrome, busy: str
) -> None:
    opened(browser, busy)
    # An hour ago three messages a second for a minute; now one end of data in 20 ms.
    browser.execute_script("""
        source.close();
        const row = (ago, relayed, replies) => [1e6 - ago, 5, relayed, 0, 0, 0, 1, replies];
        const old = Array.from({length: 12}, (_, at) => row(3500 - 5 * at, 3, {RCPT: [9, 0.5, 2]}));
        const replies = {end_of_data: [1, 0.02, 0.024]};
        isFirst = true;
        take({...latest, clock: 1e6, uptime_s: 1e5, rows: old, lately: row(0, 0, replies)});
        pause();
    """)
    for span, text, most in (("300", "\u22125 min", ""), ("3600", "\u22121 hour", "3.0")):
        Select(browser.find_element(By.ID, "span")).select_by_value(span)
        axis = shown(browser, "#messages .axis", text)
        assert "now" in axis
        assert re.search(r"\d\d:\d\d", axis)
        assert browser.find_element(By.CSS_SELECTOR, "#messages .top").text == most
    replies = browser.find_element(By.ID, "replies")
    assert "20 ms" in replies.text, "the end of data, unless another verb is chosen"
    assert "95 % under 24 ms" in replies.text.replace("\n", " ")
    Select(browser.find_element(By.ID, "verb")).select_by_value("RCPT")
    assert "500 ms" in replies.text
    assert "95 % under 2.0 s" in replies.text.replace("\n", " ")
    Select(browser.find_element(By.ID, "span")).select_by_value("300")
    assert "no reply in this time" in replies.text
    for name, keys in (
        ("messages", ["relayed", "refused"]),
        ("replies", ["average", "95 % under"]),
    ):
        found = browser.find_elements(By.CSS_SELECTOR, f"#{name} .key")
        assert [
            each.is_displayed() and each.text[: len(key)]
            for each, key in zip(found, keys, strict=True)
        ] == keys


@pytest.mark.long
def test_a_link_opens_its_session(browser: webdriver.Chrome, busy: str) -> None:
    opened(browser, busy)
    body = browser.find_element(By.TAG_NAME, "body")
    assert shown(browser, "#link", "Link")
    body.send_keys("j", "j")
    session = browser.execute_script("return chosen")
    assert browser.current_url == f"{busy}#{session}"
    assert browser.find_element(By.ID, "link").get_attribute("href") == browser.current_url
    opened(browser, f"{busy}#{session}")
    until(browser, lambda: shown(browser, "#opened:not([hidden]) .facts", f"session {session}"))
    browser.find_element(By.ID, "close").click()
    assert browser.current_url == busy
    assert not browser.find_element(By.ID, "opened").is_displayed()


@pytest.mark.long
@pytest.mark.parametrize("name", ["gone-1", "%3Cb%3E%E2%80%AE", "%"])
def test_a_link_to_a_session_that_is_gone_says_so(
    browser: webdriver.Chrome, busy: str, name: str
) -> None:
    opened(browser, f"{busy}#{name}")
    assert shown(browser, "#missing", "Looking for session")
    browser.execute_script("for (let event = 0; event < 6; event++) take({...latest, rows: []})")
    text = browser.find_element(By.ID, "missing").text
    shown_name = {"%3Cb%3E%E2%80%AE": "<b>\\u{202e}"}.get(name, name)
    assert text.startswith(f"Session {shown_name} is not on this page any more")
    assert f"session={shown_name};" in text
    browser.find_element(By.TAG_NAME, "body").send_keys("j")
    assert shown(browser, "#opened:not([hidden]) .facts", "session ")
    assert browser.get_log("browser") == []


@pytest.mark.long
def test_the_keyboard_alone_opens_and_closes_a_session(
    browser: webdriver.Chrome, busy: str
) -> None:
    opened(browser, busy)
    ids = browser.execute_script(
        "return [...document.querySelectorAll('#sessions tr')].map((row) => row.dataset.id)"
    )
    outline = "const style = getComputedStyle(document.activeElement); return style.outlineStyle"
    assert press(browser, Keys.TAB) == "skip"
    assert browser.find_element(By.ID, "skip").location["x"] >= 0, "seen with the focus"
    assert press(browser, Keys.ENTER) == ids[0], "the first session"
    assert browser.execute_script(outline) == "solid"
    assert press(browser, Keys.ARROW_DOWN) == ids[1]
    assert press(browser, Keys.ENTER) == "picture"
    assert browser.execute_script(outline) == "solid"
    assert shown(browser, "#sessions [aria-selected=true]", "") == shown(
        browser, f"#sessions [data-id='{ids[1]}']", ""
    )
    reached = [press(browser, Keys.TAB) for _ in range(3)]
    assert reached == ["link", "close", "SUMMARY"]
    assert press(browser, Keys.ESCAPE) == ids[1], "back to its row"
    assert not browser.find_element(By.ID, "opened").is_displayed()
    browser.execute_script("document.getElementById('span').focus()")
    assert press(browser, Keys.ARROW_DOWN, "e") == "span", "a list of choices keeps its keys"
    assert browser.execute_script("return [chosen, onlyWrong]") == [None, False]
    names = "return [...document.querySelectorAll('input, select, button, a')].filter((each) => "
    names += "!(each.getAttribute('aria-label') || each.textContent.trim() || each.labels[0]))"
    assert browser.execute_script(names) == [], "each control has a name"


@pytest.mark.long
def test_each_row_says_what_is_wrong_and_fits(browser: webdriver.Chrome, busy: str) -> None:
    opened(browser, busy)
    body = browser.find_element(By.TAG_NAME, "body")
    heights = "return [...document.querySelectorAll('#sessions tr')].map((row) => row.offsetHeight)"
    senders = (
        "return [...document.querySelectorAll('#sessions .who')].map((each) => each.offsetWidth)"
    )
    line = "return parseFloat(getComputedStyle(document.querySelector('#sessions td')).lineHeight)"
    for width, lines in ((1280, 1), (390, 2)):
        screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        for problems in (False, True):
            if problems:
                body.send_keys("e")
            room = browser.execute_script(line) * (lines + 0.8)
            assert all(height < room for height in browser.execute_script(heights)), width
            assert min(browser.execute_script(senders)) > 140, "there is room for who writes"
            assert browser.execute_script("return document.documentElement.scrollWidth") == width
        found = [each.text for each in browser.find_elements(By.CSS_SELECTOR, "#sessions .problem")]
        assert "message abandoned" in found
        assert any(re.match(r"5\d\d .+ · \w+$", text) for text in found)
        assert "" not in found
        body.send_keys("e")


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "a refused recipient": (
        {
            "records": [
                {"verb": "RCPT", "command": "RCPT TO:<a@y> X", "code": 550, "reply": "550 no"}
            ]
        },
        "550 no · RCPT a@y",
    ),
    "its address is in the reply": (
        {
            "records": [
                {"verb": "RCPT", "command": "RCPT TO:<a@y>", "code": 550, "reply": "550 a@y"}
            ]
        },
        "550 a@y · RCPT",
    ),
    "a violation before all else": (
        {
            "records": [
                {"verb": "NOOP", "code": 500, "reply": "500 x"},
                {"violation": {"side": "client", "kind": "bare_lf", "rewritten": True}},
            ]
        },
        "client: bare lf, rewritten",
    ),
    "a message whose exchange was not kept": (
        {"transactions": [{"outcome": "refused", "refused": 0, "reply": "554 spam"}]},
        "message refused: 554 spam",
    ),
    "recipients whose exchanges were not kept": (
        {"transactions": [{"outcome": "relayed", "refused": 2, "reply": "250 ok"}]},
        "2 recipients refused",
    ),
    "a message before the last": (
        {
            "transactions": [
                {"outcome": "refused", "refused": 0, "reply": "554 spam"},
                {"outcome": "relayed", "refused": 0, "reply": "250 ok"},
            ]
        },
        "an earlier message, or recipients of it, were refused",
    ),
    "how it ended": ({"reason": "client_lost"}, "client lost"),
}


@pytest.mark.long
def test_whatever_was_wrong_has_words(browser: webdriver.Chrome, busy: str) -> None:
    browser.get(busy)
    fine = {"reason": "quit", "transactions": [], "records": []}
    ask = "return problemsOf(arguments[0])"
    assert browser.execute_script(ask, fine) == []
    for name, (session, words) in WRONG.items():
        assert browser.execute_script(ask, {**fine, **session})[0] == words, name


def width_on_a_phone(browser: webdriver.Chrome) -> int:
    """Return how wide the page is on a screen of 390 pixels."""
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    return int(browser.execute_script("return document.documentElement.scrollWidth"))


def until(browser: webdriver.Chrome, found: Callable[[], str]) -> str:
    return WebDriverWait(browser, 20).until(lambda _: found())


def shown(browser: webdriver.Chrome, selector: str, text: str) -> str:
    """Return the text of the first element that has this text in it, else nothing."""
    script = (
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        ".find((t) => t.includes(arguments[1])) || ''"
    )
    return str(browser.execute_script(script, selector, text))
