"""The upgrade of a running service: the new version takes over completely, or not at all.

Real wheels in a virtual environment of their own. Each version names itself in a reply of the
proxy's own, and spells one setting differently.
"""

import os
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import sysconfig
import threading
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.control_socket import control_client
from smtpproxy.demo.legacy import LegacyMTA
from tests.support.processes import eventually
from tests.support.program import SMTPPROXY, Program, children, is_alive, is_worker

ROOT = Path(__file__).parent.parent.parent
NO_BYTECODE = shutil.ignore_patterns("__pycache__")
OLD, NEW, BROKEN = "9.1.0", "9.2.0", "9.3.0"

Run = Callable[..., Program]


def build(directory: Path, version: str, *changes: tuple[str, str, str]) -> Path:
    """Return the wheel of a version, whose files have these changes: name, text, text instead."""
    source = directory / version
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "deploy/man", source / "deploy/man")
    shutil.copy(ROOT / "deploy/compile_hook.py", source / "deploy")
    shutil.copytree(ROOT / "smtpproxy", source / "smtpproxy", ignore=NO_BYTECODE)
    own = ("core/replies.py", "command not implemented", f"version {version}")
    file = source / "smtpproxy/__init__.py"
    file.write_text(re.sub('__version__ = ".*"', f'__version__ = "{version}"', file.read_text()))
    for name, text, instead in (own, *changes):
        file = source / "smtpproxy" / name
        assert text in file.read_text()
        file.write_text(file.read_text().replace(text, instead))
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*build, "--directory", directory], cwd=source, check=True, timeout=120)
    (wheel,) = directory.glob(f"smtpproxy-{version}-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("wheels")
    renamed = [(name, "reply_hold", "held_for") for name in ("config/schema.py", "worker/app.py")]
    broken = ("worker/main.py", "import uvloop\n", "import uvloop_of_tomorrow\n")
    return {
        OLD: build(directory, OLD),
        NEW: build(directory, NEW, *renamed),
        BROKEN: build(directory, BROKEN, broken),
    }


class Installation:
    """A virtual environment with one version, which another may replace."""

    def __init__(self, directory: Path, wheels: dict[str, Path]) -> None:
        self.program = directory / "bin/smtpproxy"
        self._python = directory / "bin/python"
        self._wheels = wheels
        venv.create(directory)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (directory / "lib" / version / "site-packages/dependencies.pth").write_text(
            sysconfig.get_path("purelib") + "\n"
        )

    def install(self, version: str) -> None:
        """Replace the installed version, as `pip install -U` does."""
        options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "--python", self._python, "install"),
                *(*options, "--no-compile", "--force-reinstall", self._wheels[version]),
            ],
            check=True,
            timeout=120,
        )


class Session:
    """A client that checks which version serves it."""

    def __init__(self, port: int) -> None:
        self._client = smtplib.SMTP("127.0.0.1", port, timeout=20)
        self._client.ehlo()

    def version(self) -> str:
        return self._client.docmd("TURN")[1].split()[-1].decode()

    def send(self) -> None:
        self._client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\ntext\r\n")

    def reply(self) -> tuple[int, bytes]:
        """Return an unsolicited reply, and close."""
        reply = self._client.getreply()
        self._client.close()
        return reply

    def quit(self) -> None:
        assert self._client.quit()[0] == 221


class Load:
    """Clients that connect and close, until `stop`."""

    def __init__(self, port: int, clients: int) -> None:
        self.failed: list[Exception] = []
        self.served: list[str] = []
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                session = Session(self._port)
                version = session.version()
                session.send()
                assert session.version() == version
                session.quit()
                self.served.append(version)
            except (OSError, smtplib.SMTPException, AssertionError) as error:
                self.failed.append(error)

    def more(self) -> None:
        """Wait until all current sessions have ended, and as many new ones."""
        count = len(self.served) + 3 * len(self._threads)
        eventually(lambda: len(self.served) >= count or self.failed or None, "sessions")

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


class Systemd:
    """The notifications that it gets."""

    def __init__(self, path: Path) -> None:
        self.reported: list[str] = []
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while message := self._socket.recv(4096):
            self.reported.append(message.decode())

    def close(self) -> None:
        self._socket.sendto(b"", self.address)
        self._thread.join()
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(tmp_path / "notify")
    yield systemd
    systemd.close()


def workers_of(supervisor: int) -> list[int]:
    return [each for server in children(supervisor) for each in children(server) if is_worker(each)]


def versions_after_the_loss_of_all_workers(
    program: Program, supervisor: int, port: int
) -> set[str]:
    """Return which versions serve then."""
    for worker in workers_of(supervisor):
        os.kill(worker, signal.SIGKILL)
        program.event("worker_lost")
    eventually(lambda: len(workers_of(supervisor)) == 2 or None, "other workers")
    return {served_by(port) for _ in range(10)}


def served_by(port: int) -> str:
    """Return which version serves a new client."""
    session = Session(port)
    version = session.version()
    session.quit()
    return version


def logged(program: Program, event: str) -> dict[str, Any]:
    """Wait for a log line anywhere in the output, since two processes write it."""

    def look() -> dict[str, Any] | None:
        return next((fields for fields in program.log() if fields["event"] == event), None)

    return eventually(look, f"event {event}")


@pytest.mark.long
def test_a_service_hands_over_to_the_new_version_under_load(
    mta: LegacyMTA, run: Run, wheels: dict[str, Path], systemd: Systemd, tmp_path: Path
) -> None:
    installation = Installation(tmp_path / "venv", wheels)
    installation.install(OLD)
    file = tmp_path / "p.toml"
    text = f"""
        workers = 2
        [listeners.in]
        address = "127.0.0.1:0"
        [backends.old]
        servers = ["{mta.address}"]
        [timeouts]
        NAME = 0.1
        """
    file.write_text(text.replace("NAME", "reply_hold"))
    program = run(
        *("-c", file),
        argv=[str(installation.program)],
        env={"NOTIFY_SOCKET": systemd.address, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    listening = program.event("listening")
    assert listening["version"] == OLD
    port = int(listening["address"].rpartition(":")[2])

    # What is installed is not what runs, whatever happens to the workers.
    load = Load(port, 3)
    load.more()
    installation.install(NEW)
    load.stop()
    assert (load.failed, set(load.served)) == ([], {OLD})
    assert versions_after_the_loss_of_all_workers(program, program.pid, port) == {OLD}

    # A version that does not take the file, and one that does not start, change nothing.
    long = Session(port)
    load = Load(port, 3)
    try:
        program.signal(signal.SIGHUP)
        assert "timeouts.reply_hold" in program.event("reload_failed")["problems"][0]
        installation.install(BROKEN)
        program.signal(signal.SIGHUP)
        problems = program.event("reload_failed")["problems"]
        assert "ModuleNotFoundError: No module named 'uvloop_of_tomorrow'" in problems
        load.more()
        assert (load.failed, set(load.served)) == ([], {OLD})

        # The new version takes over as a whole.
        installation.install(NEW)
        file.write_text(text.replace("NAME", "held_for"))
        program.signal(signal.SIGHUP)
        handed_over = logged(program, "handed_over")
        assert (handed_over["version"], handed_over["new_version"]) == (OLD, NEW)
        assert logged(program, "reloaded")["version"] == NEW
        begun = len(load.served) + len(load._threads)
        load.more()
    finally:
        load.stop()
    assert (load.failed, set(load.served[begun:])) == ([], {NEW})
    new = handed_over["pid"]
    assert f"MAINPID={new}\nREADY=1" in systemd.reported
    assert versions_after_the_loss_of_all_workers(program, new, port) == {NEW}

    # The sessions of the old one go on; then it ends, and the new one stays.
    assert long.version() == OLD
    long.send()
    long.quit()
    assert program.wait() == 0
    assert served_by(port) == NEW
    os.kill(new, signal.SIGTERM)
    eventually(lambda: not is_alive(new) or None, "the end")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, whose files may be changed."""
    return Path(shutil.copytree(ROOT / "smtpproxy", tmp_path / "copy/smtpproxy"))


def run_copy(run: Run, copy: Path, *arguments: str) -> Program:
    return run(*arguments, argv=SMTPPROXY, env={"PYTHONPATH": str(copy.parent)})


def run_with_control(run: Run, copy: Path, mta: LegacyMTA, path: Path) -> Program:
    """Run it with a control socket at this path."""
    return run_copy(run, copy, "-l", "127.0.0.1:0", "-b", mta.address, "--control", str(path))


def hand_over(program: Program, copy: Path) -> int:
    """Change a file, reload, and return the process id of the new supervisor."""
    (copy / "__init__.py").touch()
    program.signal(signal.SIGHUP)
    pid: int = logged(program, "handed_over")["pid"]
    logged(program, "reloaded")
    return pid


@pytest.mark.long
def test_the_new_supervisor_drains_the_old_one_with_it(
    mta: LegacyMTA, run: Run, copy: Path
) -> None:
    program = run_copy(run, copy, "-l", "127.0.0.1:0", "-b", mta.address)
    idle = Session(program.port())
    new = hand_over(program, copy)
    os.kill(new, signal.SIGTERM)
    assert idle.reply()[0] == 421
    assert program.wait() == 0
    eventually(lambda: not is_alive(new) or None, "the end")


@pytest.mark.long
def test_the_path_of_a_unix_socket_stays_when_the_old_supervisor_ends(
    mta: LegacyMTA, run: Run, copy: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    program = run_copy(run, copy, "-l", f"unix:{path}", "-b", mta.address)
    program.event("listening")
    new = hand_over(program, copy)
    assert program.wait() == 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert client.recv(100).startswith(b"220 ")
    os.kill(new, signal.SIGTERM)
    eventually(lambda: not path.exists() or None, "the end")


@pytest.mark.long
def test_the_control_socket_answers_all_the_while(
    mta: LegacyMTA, run: Run, copy: Path, tmp_path: Path
) -> None:
    """Queried without a pause, it is always ready, and never starting."""
    path = tmp_path / "control"
    program = run_with_control(run, copy, mta, path)
    session = Session(program.port())
    answers: set[tuple[int, str]] = set()
    over = threading.Event()

    def keep_asking() -> None:
        while not over.is_set():
            answers.add(control_client.ask("/readyz", [path]))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    new = hand_over(program, copy)
    session.quit()
    assert program.wait() == 0
    over.set()
    asking.join()
    assert answers == {(200, "ready")}
    assert control_client.ask("/readyz", [path]) == (200, "ready")
    os.kill(new, signal.SIGTERM)
    eventually(lambda: not path.exists() or None, "the end")


def test_a_watch_ends_and_may_begin_again(
    mta: LegacyMTA, run: Run, copy: Path, tmp_path: Path
) -> None:
    """The old supervisor would not see the sessions of the new workers."""
    path = tmp_path / "control"
    program = run_with_control(run, copy, mta, path)
    port = program.port()
    session = Session(port)

    def watched(connection: socket.socket) -> str:
        connection.settimeout(20)
        with connection, connection.makefile() as lines:
            return next((line for line in lines if '"what":"opened"' in line), "")

    target = "/trace/watch?client=127.0.0.1"
    old = control_client.Stream(target, [path])
    program.event("trace_watch_started")
    new = hand_over(program, copy)
    assert watched(old.connection) == ""
    assert "trace_watch_ended" in [each["event"] for each in program.log()]
    again = control_client.Stream(target, [path])
    begin = again.received
    while b"watching" not in begin:
        begin += again.connection.recv(4096)
    Session(port).quit()
    assert watched(again.connection)
    session.quit()
    assert program.wait() == 0
    os.kill(new, signal.SIGTERM)
    eventually(lambda: not path.exists() or None, "the end")


@pytest.mark.long
def test_injected_faults_are_kept(mta: LegacyMTA, run: Run, copy: Path) -> None:
    flags = ("-l", "127.0.0.1:0", "-b", mta.address, "--fault", "NOOP 450", "--fault-seed", "7")
    program = run_copy(run, copy, *flags)
    port = program.port()
    first = program.event("faults_wanted")
    new = hand_over(program, copy)
    again = program.event("faults_wanted")
    assert (again["faults"], again["seed"]) == (first["faults"], 7)
    with smtplib.SMTP("127.0.0.1", port) as client:
        assert client.noop()[0] == 450
    assert program.wait() == 0
    os.kill(new, signal.SIGTERM)


def test_without_its_fork_server_a_supervisor_hands_over(
    mta: LegacyMTA, run: Run, copy: Path
) -> None:
    program = run_copy(run, copy, "-l", "127.0.0.1:0", "-b", mta.address)
    port = program.port()
    session = Session(port)
    (server,) = children(program.pid)
    os.kill(server, signal.SIGKILL)
    program.event("fork_server_lost")
    new = logged(program, "handed_over")["pid"]
    logged(program, "reloaded")
    session.send()
    session.quit()
    assert program.wait() == 0
    assert served_by(port)
    os.kill(new, signal.SIGTERM)
    eventually(lambda: not is_alive(new) or None, "the end")


def test_a_reload_without_another_version_stays_with_the_supervisor(
    mta: LegacyMTA, run: Run, copy: Path
) -> None:
    program = run_copy(run, copy, "-l", "127.0.0.1:0", "-b", mta.address)
    program.port()
    program.signal(signal.SIGHUP)
    program.event("reloaded")
    assert "handed_over" not in [fields["event"] for fields in program.log()]
