"""A stage: an MTA, the proxy in front of it as an operator runs it, and a tap between the two."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from tests.interop.peers import Backend
from tests.interop.tap import Tap
from tests.support.processes import PreloadedProcess, Process, Workplace, eventually

WAYS = ("off", "starttls", "implicit")
"""How clients come: in plaintext, by STARTTLS, by TLS from the start; as `listener.tls` has it."""


@dataclass(frozen=True)
class Stage:
    """`ports` are the proxy's, by the way that clients come there; `tap` shows what the MTA sees.

    The proxy reaches the MTA by STARTTLS if that is `sealed`; then the tap shows records only.
    """

    backend: Backend
    tap: Tap
    ports: Mapping[str, int]
    proxy: Process
    sealed: bool

    @property
    def port(self) -> int:
        """The one for plaintext."""
        return self.ports["off"]

    def relayed(self, sender: str) -> dict[str, Any]:
        """Wait for the proxy's log line of a sender's message, and return it."""

        def look() -> dict[str, Any] | None:
            entries = lines_of(self.proxy, "message_relayed")
            return next((entry for entry in entries if entry["sender"] == sender), None)

        return eventually(look, f"the event message_relayed of {sender}")


@contextmanager
def keys() -> Iterator[Path]:
    """Make an authority's `ca.pem`, and `mx.pem` for mx.example and 127.0.0.1, for all to read."""
    authority = trustme.CA()
    issued = authority.issue_cert("mx.example", "127.0.0.1")
    with Workplace("keys") as work:
        work.write("ca.pem", authority.cert_pem.bytes().decode())
        work.write("mx.pem", issued.private_key_and_cert_chain_pem.bytes().decode())
        yield work.path


@contextmanager
def stage(
    backend: Callable[[], AbstractContextManager[Backend]], keys: Path, *, sealed: bool
) -> Iterator[Stage]:
    """Run the proxy in front of a tap in front of an MTA."""
    certificate = f'certificate = "{keys}/mx.pem"'
    listeners = [f'tls = "{way}"\n{certificate if way != "off" else ""}' for way in WAYS]
    trust = f'tls = "starttls"\nca_file = "{keys}/ca.pem"\nserver_name = "mx.example"'
    with backend() as mta, Tap(mta.port) as tap:
        settings = f'servers = ["127.0.0.1:{tap.port}"]\n{trust if sealed else ""}'
        with _configured(listeners, settings) as (ports, proxy):
            yield Stage(mta, tap, dict(zip(WAYS, ports, strict=True)), proxy, sealed)
            _assert_both_workers_served(proxy)


def _assert_both_workers_served(proxy: Process) -> None:
    """Fail if of many sessions all were one worker's: an id begins with its worker's."""
    sessions = [str(entry["session"]) for entry in lines_of(proxy, "session_closed")]
    workers = {session.partition("-")[0] for session in sessions}
    assert len(workers) == 2 or len(sessions) < 30, f"{len(sessions)} sessions of {workers}"


@contextmanager
def configured(listener: str, backend: str) -> Iterator[tuple[int, Process]]:
    """Run the proxy with a file of these settings; yield its port and the process."""
    with _configured([listener], backend) as ([port], process):
        yield port, process


@contextmanager
def _configured(listeners: list[str], backend: str) -> Iterator[tuple[list[int], Process]]:
    tables = "".join(
        f'[listeners.l{number}]\naddress = "127.0.0.1:0"\n{each}\n'
        for number, each in enumerate(listeners)
    )
    with Workplace("settings") as work:
        file = work.write("smtpproxy.toml", f"{tables}[backends.mta]\n{backend}\n")
        with _running(len(listeners), "-c", str(file)) as running:
            yield running


@contextmanager
def _running(listeners: int, *flags: str) -> Iterator[tuple[list[int], Process]]:
    """Run the proxy with two workers; at the end it must stop on a signal, without an error."""
    argv = ["run", *flags, "-w", "2"]
    with Workplace("proxy") as work, PreloadedProcess(argv, work.path / "log") as process:
        yield eventually(lambda: _ports(process, listeners), "the events `listening`"), process
        code = process.terminate()
        printed = process.printed()
        assert code == 0, f"the proxy ended with {code}:\n{printed}"
        assert "Traceback" not in printed, printed


def _ports(process: Process, listeners: int) -> list[int] | None:
    process.check_alive()
    addresses = [str(entry["address"]) for entry in lines_of(process, "listening")]
    ports = [int(address.rpartition(":")[2]) for address in addresses]
    return ports if len(ports) == listeners else None


def lines_of(process: Process, event: str) -> list[dict[str, Any]]:
    """Return the log lines of an event so far."""
    lines = re.findall(r"^\{.*\}$", process.printed(), re.MULTILINE)
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]
