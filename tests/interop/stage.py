"""A stage: an MTA, the proxy in front of it as an operator runs it, and a tap between the two."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tests.interop.peers import Backend
from tests.interop.processes import Process, Workplace, eventually
from tests.interop.tap import Tap


@dataclass(frozen=True)
class Stage:
    """`port` is the proxy's; `tap` shows what the MTA sees."""

    backend: Backend
    tap: Tap
    port: int


@contextmanager
def stage(backend: Callable[[], AbstractContextManager[Backend]]) -> Iterator[Stage]:
    """Run an MTA behind a tap behind the proxy."""
    with backend() as mta, Tap(mta.port) as tap, _proxy(tap.port) as port:
        yield Stage(mta, tap, port)


@contextmanager
def _proxy(backend_port: int) -> Iterator[int]:
    """Run the proxy by flags."""
    with _running("-l", "127.0.0.1:0", "-b", f"127.0.0.1:{backend_port}") as (port, _):
        yield port


@contextmanager
def configured(listener: str, backend: str) -> Iterator[tuple[int, Process]]:
    """Run the proxy by a file with these settings; give its port, and the process."""
    with Workplace("settings") as work:
        text = f'[[listener]]\naddress = "127.0.0.1:0"\n{listener}\n[backends.mta]\n{backend}\n'
        with _running("-c", str(work.write("smtpproxy.toml", text))) as running:
            yield running


@contextmanager
def _running(*flags: str) -> Iterator[tuple[int, Process]]:
    """Run the proxy with two workers; at the end it must go when told to, without an error."""
    argv = [sys.executable, "-m", "smtpproxy", "run", *flags, "-w", "2"]
    with Workplace("proxy") as work, Process(argv, work.path / "log") as process:
        address = eventually(lambda: _listening(process), "the proxy's event `listening`")
        yield int(address.rpartition(":")[2]), process
        code = process.terminate()
        printed = process.printed()
        assert code == 0, f"the proxy ended with {code}:\n{printed}"
        assert "Traceback" not in printed, printed


def _listening(process: Process) -> str | None:
    process.check_alive()
    for line in process.printed().splitlines(keepends=True):
        if line.startswith("{") and line.endswith("}\n"):
            entry = json.loads(line)
            if entry.get("event") == "listening":
                return str(entry["address"])
    return None
