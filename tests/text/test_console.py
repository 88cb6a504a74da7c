"""Nothing that a stranger has said drives the reader's terminal, in whichever command prints it."""

import ast
import io
import json
import logging
import re
import ssl
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Group as Group_
from rich.table import Table
from rich.text import Text

import smtpproxy
from smtpproxy.cli import main
from smtpproxy.control_socket.service_status import (
    BackendStatus,
    InstanceStatus,
    ServiceStatus,
)
from smtpproxy.demo import demo_run, legacy_session
from smtpproxy.demo.simulated_network import SentGroup
from smtpproxy.demo.timeline_rows import timeline
from smtpproxy.log import log
from smtpproxy.log.debug_log import DebugLog
from smtpproxy.text.console import Terminal
from smtpproxy.trace import records, trace_commands
from smtpproxy.trace.content_capture import CaptureMode
from smtpproxy.trace.recorder import TraceRecorder
from smtpproxy.trace.rotating_files import RotatingFiles
from tests.probe.server import Server
from tests.support.control_service import control_service
from tests.support.hostile_text import (
    FORGED,
    LINE,
    MARKUP,
    OCTETS,
    TEXT,
    check_shown,
    hostile,
    sources,
)
from tests.support.observed_session import Later, Watched

CHOSEN = {
    records.Noted: [{"event": event} for event in ("tls_started", "tls_failed", TEXT)],
    records.Exchanged: [
        {},
        {"command": ""},
        {"verb": "end_of_data", "command": ""},
        {"verb": "greeting"},
        {"steps": [], "sent": 1.0},
        {"steps": [], "flushed": 0.0, "reply": "", "code": 0},
    ],
    records.Transaction: [{}],
}


def every_record(session: str) -> Iterator[Any]:
    """Yield records of each kind, every text in them hostile, of one session."""
    for kind in records.Record.__args__:
        for chosen in CHOSEN.get(kind, [{}]):
            yield hostile(kind, session=session, **chosen)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A directory with a session of which nothing is harmless but how its id begins."""
    written = records.HEADER + b"".join(
        records.encode(each) + b"\n" for each in every_record("s1" + TEXT)
    )
    (tmp_path / "trace-1.jsonl").write_bytes(written)
    return tmp_path


@pytest.fixture(params=[False, True], ids=["piped", "terminal"])
def run(request: pytest.FixtureRequest) -> Callable[..., Result]:
    """Return what runs a command, and looks at all that it prints."""

    def run_command(*arguments: str | Path, columns: int = 5000) -> Result:
        environment = {"COLUMNS": str(columns)} | ({"FORCE_COLOR": "1"} if request.param else {})
        result = CliRunner().invoke(main, list(map(str, arguments)), env=environment)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert result.output.strip()
        for shown in (result.stdout, result.stderr):
            check_shown(shown, terminal=request.param)
        return result

    return run_command


def test_trace_list(trace: Path, run: Callable[..., Result]) -> None:
    assert MARKUP in run("trace", "list", "-d", trace).stdout


@pytest.mark.parametrize("columns", [40, 80, 5000])
def test_trace_stats(trace: Path, run: Callable[..., Result], columns: int) -> None:
    shown = run("trace", "stats", "-d", trace, columns=columns).stdout
    assert "\\x1b]0;title\\x07" in shown
    assert ("[bold red]x[/bold red]" in shown) == (columns > 40)


def test_trace_stats_as_json(trace: Path, run: Callable[..., Result]) -> None:
    """Texts are escaped in it as they are on a terminal."""
    (line,) = run("trace", "stats", "-d", trace, "--json").stdout.splitlines()
    texts: list[str] = []
    json.loads(line, object_hook=lambda each: texts.extend(map(str, each.values())))
    assert any("[bold red]x[/bold red]" in text for text in texts)
    for text in texts:
        check_shown(text)


def test_trace_stats_as_html(trace: Path, tmp_path: Path) -> None:
    """The page holds no markup but its own, and its texts are printable as they are."""
    page = tmp_path / "x"
    CliRunner().invoke(main, ["trace", "stats", "-d", str(trace), "--html", str(page)])
    shown = page.read_text()
    check_shown(shown)
    assert "[bold red]x[/bold red]" in shown
    assert shown.count("<title>") == shown.count("</title>") == 1
    assert not re.search(r"<b>|</?script|<a\b", shown)


def test_trace_show(trace: Path, run: Callable[..., Result]) -> None:
    shown = run("trace", "show", "-d", trace, "s1").stdout
    assert "violation by the \\x1b]0;title\\x07" in shown
    assert MARKUP in shown


def test_trace_show_of_no_session(trace: Path, run: Callable[..., Result]) -> None:
    assert run("trace", "show", "-d", trace, "s2" + TEXT.replace("\0", "")).exit_code == 1


def test_trace_follow(
    trace: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trace_commands, "wait", interrupt)
    monkeypatch.setattr(trace_commands, "files_of", Directory(trace / "trace-1.jsonl"))
    assert MARKUP in run("trace", "follow", "-d", trace).stdout


@pytest.mark.parametrize("options", [[], ["--follow"]], ids=["sessions", "follow"])
def test_trace_watch(
    trace: Path, run: Callable[..., Result], tmp_path: Path, options: list[str]
) -> None:
    lines = (trace / "trace-1.jsonl").read_bytes()
    control = ("--control", tmp_path / "sock", "--client", "192.0.2.1")
    with control_service(tmp_path / "sock", b"HTTP/1.0 200 OK\r\n\r\n" + lines):
        result = run("trace", "watch", *control, *options)
    assert MARKUP in result.stdout
    assert "the service has ended the watch" in result.stderr


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.0 403 " + LINE, OCTETS, b"HTTP/1.0 200 OK\r\n\r\n" + OCTETS + b"\n"],
    ids=["refusal", "other", "no record"],
)
def test_trace_watch_of_another_program(
    run: Callable[..., Result], tmp_path: Path, answer: bytes
) -> None:
    with control_service(tmp_path / "sock", answer):
        control = ("--control", tmp_path / "sock", "--client", "192.0.2.1")
        assert run("trace", "watch", *control).exit_code == 1


def test_health_of_another_program(run: Callable[..., Result], tmp_path: Path) -> None:
    with control_service(tmp_path / "sock", b"HTTP/1.0 503 x\r\n\r\n" + OCTETS):
        assert run("health", "--control", tmp_path / "sock").exit_code == 1


def test_status_of_another_program(run: Callable[..., Result], tmp_path: Path) -> None:
    with control_service(tmp_path / "sock", b"HTTP/1.0 200 OK\r\n\r\n" + OCTETS):
        assert run("status", "--control", tmp_path / "sock").exit_code == 1


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_status(run: Callable[..., Result], tmp_path: Path, options: list[str]) -> None:
    """Replicas of another version may report anything."""
    backends = [hostile(BackendStatus)]
    instance = hostile(InstanceStatus, backends=backends)
    status = msgspec.json.encode(hostile(ServiceStatus, instances=[instance], problems=[TEXT]))
    with control_service(tmp_path / "sock", b"HTTP/1.0 200 OK\r\n\r\n" + status):
        result = run("status", "--control", tmp_path / "sock", *options)
    assert result.exit_code == 3
    assert MARKUP in result.stdout


class Directory:
    """A directory that is empty when it is first looked at."""

    def __init__(self, file: Path) -> None:
        self._found: list[list[Path]] = [[], [file]]

    def __call__(self, _: Path) -> list[Path]:
        return self._found.pop(0)


def test_trace_replay(trace: Path, run: Callable[..., Result]) -> None:
    with Server({b"": b""}, greeting=b"220-%s\r\n220 %s\r\n" % (LINE, LINE)) as server:
        result = run("trace", "replay", "-d", trace, "s1", "--full-speed", "--to", server.address)
    assert result.exit_code == 1


def test_trace_replay_to_what_is_no_server(trace: Path, run: Callable[..., Result]) -> None:
    with Server(greeting=OCTETS + b"\r\n") as server:
        result = run("trace", "replay", "-d", trace, "s1", "--full-speed", "--to", server.address)
    assert "stopped: the server sent an invalid reply" in result.stderr


def test_trace_export(trace: Path, run: Callable[..., Result], tmp_path: Path) -> None:
    """The page holds no markup but its own, and its texts are printable as they are."""
    assert run("trace", "export", "-d", trace, "s1", "--html", tmp_path / "none" / "x").exit_code
    CliRunner().invoke(
        main, ["trace", "export", "-d", str(trace), "s1", "--html", str(tmp_path / "x")]
    )
    page = (tmp_path / "x").read_text()
    assert page.count("<title>") == page.count("</title>") == 1
    assert page.count("</script>") == 2
    title = page[page.index("<title>") : page.index("</title>")]
    check_shown(title)
    assert "<b>" not in title
    data = page[page.index('id="records">') :]
    check_shown(data[: data.index("</script>")])


def hostile_session(*watchers: Any) -> io.BytesIO:
    """Let both sides be hostile in all that they may say; return what was logged of it."""
    session = Watched(*watchers, level="debug")
    hears, says = session.pipeline.client_received, session.pipeline.backend_received
    for line in (LINE, b"FOO " + LINE, b"EHLO " + LINE, b"MAIL FROM:<" + LINE + b">"):
        hears(line + b"\r\n", session.now)
        says(b"250-" + LINE + b"\r\n250 " + LINE + b"\r\n", session.now)
    hears(b"\0" + LINE + b"\r\n", session.now)
    hears(b"RCPT TO:<" + LINE + b">\r\nDATA\r\n", session.now)
    session.says("250 b", "354 go")
    hears(OCTETS + b"\r\n.\r\n", session.now)
    says(b"550 " + LINE + b"\r\n", session.now)
    says(OCTETS + b"\r\n", session.now)
    session.close()
    return session.logged


def test_a_client_gets_no_terminal_escape_into_a_trace_file(tmp_path: Path) -> None:
    """As `cat` does."""
    trace = TraceRecorder(
        RotatingFiles(tmp_path, 0, 1 << 20, 5), Later(), kept=CaptureMode.FULL, most=1 << 16
    )
    hostile_session(trace)
    trace.close()
    (file,) = tmp_path.glob("*.jsonl")
    written = file.read_text()
    assert "backend" in written
    check_shown(written)


def test_nor_into_the_log() -> None:
    written = hostile_session(DebugLog()).getvalue().decode()
    assert {"backend_violation", "client_violation", "message_refused"} <= {
        json.loads(line)["event"] for line in written.splitlines()
    }
    check_shown(written)


VALUES = [TEXT, OCTETS, [TEXT, OCTETS], (TEXT,), {TEXT: TEXT}, ValueError(TEXT), Path(TEXT)]


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_nor_by_any_field_of_a_line(form: str, value: object) -> None:
    stream = io.BytesIO()
    log.configure("debug", form, stream)
    log.get().error("event", field=value)
    try:
        raise ValueError(TEXT)
    except ValueError:
        log.get().error(TEXT, exc_info=True)
    logging.getLogger("library").error(TEXT)
    shown = stream.getvalue().decode()
    assert FORGED in shown
    check_shown(shown)


def certificate() -> ssl.SSLContext:
    """Return a server's TLS, whose certificate has hostile names."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, TEXT[:60])])
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, TEXT[-60:])])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(issuer, name, key.public_key(), 1, now, now + timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def test_probe(run: Callable[..., Result]) -> None:
    replies = dict.fromkeys((b"MAIL", b"DATA", b"NOOP"), b"550-%s\r\n550 %s\r\n" % (LINE, LINE))
    with Server(
        replies,
        greeting=b"220-%s\r\n220 %s\r\n" % (LINE, LINE),
        capabilities=(LINE, b"SIZE " + LINE, b"AUTH=" + LINE),
        context=certificate(),
    ) as server:
        shown = run("probe", "--relay-test", "a@b.example", server.address).stdout
    assert "certificate" in shown
    assert "\\x1b]0;title" in shown


@pytest.mark.parametrize("said", [OCTETS + b"\r\n", b"554 " + LINE + b"\r\n"])
def test_probe_of_what_does_not_serve(run: Callable[..., Result], said: bytes) -> None:
    with Server(greeting=said) as server:
        assert run("probe", server.address).exit_code == 1


def test_check(run: Callable[..., Result], tmp_path: Path) -> None:
    quoted, other = (json.dumps("unix:/" + TEXT.replace("\0", "")[:size]) for size in (50, 49))
    file = tmp_path / "p.toml"
    file.write_text(f"[listeners.smtp]\naddress = {quoted}\n[backends.mta]\nservers = [{other}]\n")
    assert run("check", "-c", file).exit_code == 0
    file.write_text(f"{json.dumps(TEXT)} = 1\n[backends.{json.dumps(TEXT)}]\ntls = {quoted}\n")
    assert run("check", "-c", file).exit_code == 1


def test_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its MTA is its own, and says what that pleases."""
    original = legacy_session._reply

    def reply(code: int, *words: bytes) -> bytes:
        return original(code, *words, LINE)

    monkeypatch.setattr(legacy_session, "_reply", reply)
    demo_run.main(rtt=0.0, recipients=2, serve=False, failing="none")
    check_shown(capsys.readouterr().out)


def test_a_time_line_of_any_session() -> None:
    """As `demo --serve` draws those of whoever talks to it."""
    said = [
        SentGroup(True, OCTETS + b"\r\n", 0.0, 0.0),
        SentGroup(False, b"250-" + OCTETS + b"\r\n250 " + OCTETS + b"\r\n", 0.1, 0.1),
    ]
    console = Terminal(width=100)
    with console.capture() as captured:
        console.print(timeline(said, 0.0))
    check_shown(captured.get())


@given(st.text(), st.text())
def test_whatever_is_printed_is_printable(first: str, second: str) -> None:
    console = Terminal(width=80)
    table = Table(first, second)
    table.add_row(second, Text.assemble(first, (second, "red")))
    with console.capture() as captured:
        for each in (first, Text(second), Group_(first, Text(second)), table):
            console.print(each)
    check_shown(captured.get())


def test_styles_stay_where_they_were() -> None:
    console = Terminal(width=80)
    text = Text.assemble("a", ("\x1bb", "red"), "c")
    (line,) = console.render_lines(text, pad=False)
    assert [(each.text, str(each.style)) for each in line if each.text] == [
        ("a", "none"),
        ("\\x1b", "red"),
        ("b", "red"),
        ("c", "none"),
    ]


def test_no_other_place_prints() -> None:
    """What `Terminal` and `say` are given is safe; so is what `click` prints of its own."""
    package = Path(smtpproxy.__file__).parent
    found = {
        (name, node.func.id)
        for name, source in sources(package)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in {"Console", "print"}
    }
    assert found == set()


def test_a_dumb_terminal_has_the_width_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TERM": "dumb", "FORCE_COLOR": "1", "COLUMNS": "60"}.items():
        monkeypatch.setenv(name, value)
    assert Terminal().is_dumb_terminal
    assert Terminal().width == 60
    assert Terminal(width=50).width == 50
