"""`smtpproxy trace watch`: recording in the running service, for as long as somebody watches."""

import os
import re
import signal
import smtplib
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from smtpproxy.demo.legacy import LegacyMTA
from tests.support.processes import PreloadedProcess, Process, Workplace, eventually
from tests.support.program import SMTPPROXY, Program, send
from tests.support.programs import command
from tests.support.scrape import scrape, total

Run = Callable[..., Program]
LINE = "a line of the body"


class Watch(PreloadedProcess):
    """The command, until the end of the block; its output is that of both streams."""

    def __init__(self, directory: Path, *arguments: str | Path) -> None:
        self.count = len(list(directory.glob("watch*")))
        super().__init__(
            ["trace", "watch", *arguments],
            directory / f"watch{self.count}",
            {"RUNTIME_DIRECTORY": str(directory / "run0"), "COLUMNS": "160"},
        )

    def begun(self) -> "Watch":
        """Wait until all workers record."""
        eventually(lambda: "Ctrl-C ends it" in self.printed() or None, f"begin: {self.printed()}")
        return self

    def shown(self, text: str) -> str:
        """Wait until a text is printed, and return all that is."""
        eventually(lambda: text in self.printed() or None, f"{text} in {self.printed()}")
        return self.printed()


@pytest.fixture
def settings(tmp_path: Path, mta: LegacyMTA) -> Callable[..., Path]:
    """Write the settings file, with `trace.content` if it is given, and return its path."""

    def write(trace: str = "") -> Path:
        path = tmp_path / "p.toml"
        path.write_text(
            f'workers = 2\n[listeners.smtp]\naddress = "127.0.0.1:0"\n'
            f'[backends.old]\nservers = ["{mta.address}"]\n'
            + (f'[trace]\nwhen = "off"\n{trace}\n' if trace else "")
        )
        return path

    return write


@pytest.fixture
def program(run: Run, settings: Callable[..., Path]) -> Program:
    return run("-c", settings(), "--admin", "127.0.0.1:0")


def relay(port: int, sender: str, client: str = "127.0.0.1") -> None:
    """Relay a message from a client address."""
    with smtplib.SMTP("127.0.0.1", port, timeout=10, source_address=(client, 0)) as connection:
        body = f"Subject: of {sender}\r\n\r\n{LINE}\r\n"
        connection.sendmail(f"{sender}@x.example", ["b@y.example"], body)


def watches(program: Program) -> int:
    """Return how many are on, by the log."""
    events = [each["event"] for each in program.log()]
    return events.count("trace_watch_started") - events.count("trace_watch_ended")


def test_each_session_of_these_clients_is_shown_at_its_end(
    program: Program, tmp_path: Path
) -> None:
    port = program.port()
    with Watch(tmp_path, "--client", "127.0.0.2", "--client", "127.0.0.4/30").begun() as watch:
        for number in range(8):  # both workers get some
            relay(port, f"other{number}")
            relay(port, f"wanted{number}", f"127.0.0.{2 + 2 * (number % 3)}")
        eventually(lambda: watch.printed().count("\nquit after ") == 8 or None, "8 sessions")
        printed = watch.printed()
        assert "│─ MAIL" in printed
        assert printed.count("session ") == 8
        assert set(re.findall(r"^([0-9.]+):\d+ -> ", printed, re.MULTILINE)) == {
            *("127.0.0.2", "127.0.0.4", "127.0.0.6")
        }
        watch._popen.send_signal(signal.SIGINT)
        assert watch.wait() == 0
        assert watch.printed().endswith("\n8 sessions\n")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_however_the_command_ends_nothing_is_recorded_any_more(
    program: Program, tmp_path: Path, how: signal.Signals
) -> None:
    address, port = program.event("admin_listening")["address"], program.port()
    with Watch(tmp_path, "--client", "127.0.0.0/8", "--follow").begun() as watch:
        assert total(scrape(address), "trace_watches") == 1
        started = program.event("trace_watch_started")
        assert (started["uid"], started["pid"]) == (os.getuid(), watch.pid)
        assert started["networks"] == ["127.0.0.0/8"]
        with smtplib.SMTP("127.0.0.1", port, timeout=10) as open_session:
            open_session.ehlo()
            watch.shown("ehlo")
            watch._popen.send_signal(how)
            watch.wait()
            ended = program.event("trace_watch_ended")
            assert ended["records_sent"] >= 4
            assert ended["records_lost"] == 0
            assert total(scrape(address), "trace_watches") == 0
            open_session.noop()
        send(port)
    assert watches(program) == 0


def test_a_worker_that_starts_later_records_too(
    program: Program, tmp_path: Path, settings: Callable[..., Path]
) -> None:
    port = program.port()
    with Watch(tmp_path, "--client", "127.0.0.1", "--follow").begun() as watch:
        os.kill(program.workers()[0], signal.SIGKILL)
        program.event("worker_lost")
        eventually(lambda: len(program.workers()) == 2 or None, "another worker")
        old = program.workers()
        settings()
        program.signal(signal.SIGHUP)
        program.event("reloaded")
        eventually(lambda: not set(old) & set(program.workers()) or None, "new workers only")
        for number in range(4):
            relay(port, f"new{number}")
            watch.shown(f"mail FROM:<new{number}@x.example>")
        assert watches(program) == 1


def test_only_sessions_with_a_problem(program: Program, tmp_path: Path) -> None:
    port = program.port()
    options = ("--client", "127.0.0.1", "--problems", "--count", "2")
    with Watch(tmp_path, *options).begun() as watch:
        for number in range(2):
            relay(port, f"fine{number}")
            with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
                client.ehlo()
                assert client.docmd("WHO")[0] == 500
        assert watch.wait() == 0
        printed = watch.printed()
        assert printed.count("quit after ") == 2
        assert printed.count("▶ 500") == 2
        assert "content" not in printed


class TestContent:
    """The settings are the ceiling of what may be shown."""

    def test_no_more_than_the_settings_allow(self, program: Program, tmp_path: Path) -> None:
        program.port()
        with Watch(tmp_path, "--client", "127.0.0.0/8", "--content", "headers") as watch:
            assert watch.wait() == 1
            message = 'smtpproxy: the settings do not allow it: trace.content is "none"\n'
            assert watch.printed() == message
        assert not [each for each in program.log() if each["event"] == "trace_watch_started"]

    @pytest.mark.parametrize("wanted", ["headers", "full"])
    def test_as_much_as_is_asked_for_until_the_settings_change(
        self, run: Run, tmp_path: Path, settings: Callable[..., Path], wanted: str
    ) -> None:
        program = run("-c", settings('content = "full"'))
        port = program.port()
        content = ["--content", wanted]
        with Watch(tmp_path, "--client", "127.0.0.1", *content).begun() as watch:
            relay(port, "one")
            printed = watch.shown("quit after ")
            assert "Subject: of one" in printed
            assert (LINE in printed) == (wanted == "full")
            settings()
            program.signal(signal.SIGHUP)
            program.event("reloaded")
            relay(port, "two")
            eventually(lambda: watch.printed().count("quit after ") == 2 or None, "the second")
            assert "MAIL" in watch.printed()
            assert "Subject: of two" not in watch.printed()


def test_a_reader_that_leaves_ends_it(program: Program, tmp_path: Path) -> None:
    program.port()
    words = [*SMTPPROXY, "trace", "watch", "--client", "127.0.0.1", "--follow"]
    script = f'{" ".join(words)} | true; echo "${{PIPESTATUS[0]}}"'
    env = {"RUNTIME_DIRECTORY": str(tmp_path / "run0")}
    with Process(["bash", "-c", script], tmp_path / "printed", env) as shell:
        program.event("trace_watch_ended")
        assert shell.wait() == 0
        assert shell.printed().endswith("0 sessions\n0\n")


def test_the_end_of_the_service_is_reported(program: Program, tmp_path: Path) -> None:
    port = program.port()
    with Watch(tmp_path, "--client", "127.0.0.1").begun() as watch:
        relay(port, "last")
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
        assert watch.wait() == 1
        assert "quit after" in watch.printed()
        assert "the service has ended the watch" in watch.printed()
    events = [each["event"] for each in program.log()]
    assert events[-2:] == ["trace_watch_ended", "stopped"]


def test_several_at_once_up_to_a_limit(program: Program, tmp_path: Path) -> None:
    program.port()
    path = tmp_path / "run0" / "control.sock"
    opened = []
    for _ in range(8):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        connection.sendall(b"GET /trace/watch?client=127.0.0.1 HTTP/1.0\r\n\r\n")
        program.event("trace_watch_started")
        opened.append(connection)
    with Watch(tmp_path, "--client", "127.0.0.1") as watch:
        assert watch.wait() == 1
        assert watch.printed() == "smtpproxy: 8 watches are on already\n"
    opened.pop().close()
    program.event("trace_watch_ended")
    with Watch(tmp_path, "--client", "127.0.0.1").begun():
        pass
    for connection in opened:
        connection.close()


def test_a_client_that_does_not_read_loses_records_and_delays_no_mail(
    run: Run, tmp_path: Path, settings: Callable[..., Path], mta: LegacyMTA
) -> None:
    program = run("-c", settings('content = "full"'))
    port = program.port()
    with socket.socket(socket.AF_UNIX) as sleeper:
        sleeper.connect(str(tmp_path / "run0" / "control.sock"))
        sleeper.sendall(b"GET /trace/watch?client=127.0.0.1&content=full HTTP/1.0\r\n\r\n")
        program.event("trace_watch_started")
        body = b"Subject: long\r\n\r\n" + (b"y" * 76 + b"\r\n") * 4_000
        with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
            for _ in range(40):
                client.sendmail("a@x.example", ["b@y.example"], body)
        assert len(mta.messages) == 40
        sleeper.settimeout(10)
        found = b""
        with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
            while b'"records_lost"' not in found:
                found += sleeper.recv(1 << 20)
                client.noop()
    assert program.event("trace_watch_ended")["records_lost"] > 0


@pytest.mark.long
@pytest.mark.parametrize("follow", [False, True])
def test_wireshark_shows_both_connections(program: Program, tmp_path: Path, follow: bool) -> None:
    port = program.port()
    script = " ".join(
        [
            *(*SMTPPROXY, "trace", "watch", "--client", "127.0.0.1", "--pcapng", "-"),
            *(["--follow"] if follow else []),
            *("|", command("tshark"), "-l", "-i", "-", "-Y", "smtp.req.command"),
            *("-T", "fields", "-e", "tcp.stream", "-e", "smtp.req.command"),
        ]
    )
    env = {"RUNTIME_DIRECTORY": str(tmp_path / "run0")}
    with Process(["sh", "-c", script], tmp_path / "printed", env) as shell:
        for text in ("Ctrl-C ends it", "Capturing on"):
            eventually(lambda text=text: text in shell.printed() or None, text)  # type: ignore[misc]

        def both(verb: str) -> bool | None:
            return shell.printed().count(f"\t{verb}") == 2 or None

        with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
            client.ehlo()
            client.mail("a@x.example")
            if follow:
                eventually(lambda: both("mail"), "both, while it is open")
        eventually(lambda: both("QUIT"), "the end, on both")
        lines = [line for line in shell.printed().splitlines() if "\t" in line]
        verbs = ("ehlo", "mail", "QUIT")
        assert sorted(lines) == sorted(f"{leg}\t{verb}" for leg in (0, 1) for verb in verbs)


def test_any_http_client_gets_the_lines_but_of_no_other_user(
    run: Run, settings: Callable[..., Path], tmp_path: Path
) -> None:
    """Not even if the socket's mode lets others ask for the health."""
    with Workplace("watch") as work:
        path = work.path / "control.sock"
        program = run("-c", settings(), "--control", path)
        port = program.port()
        path.chmod(0o666)
        argv = [command("curl"), "-sN", "--unix-socket", str(path)]
        watch = "http://localhost/trace/watch?client=127.0.0.1"
        with Process([*argv, watch], tmp_path / "lines") as curl:
            eventually(lambda: '{"what":"watching"}' in curl.printed() or None, "the begin")
            relay(port, "one")
            eventually(lambda: '"what":"closed"' in curl.printed() or None, "the session")
            assert curl.printed().startswith('{"what":"trace_file","version":1}\n')
        program.event("trace_watch_ended")
        for target, answer in (
            ("http://localhost/healthz", "ok\n"),
            (watch, "no permission to watch: be root, or the service's user\n"),
        ):
            done = subprocess.run(
                [*argv, target],
                user="nobody",
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
            assert done.stdout == answer
        assert watches(program) == 0
