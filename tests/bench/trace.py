"""The cost of a trace in addition to the log, without sockets: `python -m tests.bench trace`."""

import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from smtpproxy.log import log
from smtpproxy.log.session_log import ServiceLog
from smtpproxy.trace.content_capture import CaptureMode
from smtpproxy.trace.recorder import TraceRecorder
from smtpproxy.trace.rotating_files import RotatingFiles
from smtpproxy.worker.observer_fanout import ObserverFanout
from tests.bench.core import SCENARIOS, best_us, session


def main() -> None:
    """Measure each scenario with every kind of trace; figures are µs of CPU per session."""
    table = Table("scenario", "", "log", "errors", "all", "headers", "full", box=None)
    with open("/dev/null", "wb") as nowhere, tempfile.TemporaryDirectory() as directory:  # noqa: PTH123
        log.configure("error", "json", nowhere)
        files = RotatingFiles(Path(directory), 0, 64 * 1024 * 1024, 2)
        traces = [
            TraceRecorder(
                files, lambda _: None, only_errors=only_errors, kept=kept, most=1024 * 1024
            )
            for only_errors, kept in (
                (True, CaptureMode.NONE),
                (False, CaptureMode.NONE),
                (False, CaptureMode.HEADERS),
                (False, CaptureMode.FULL),
            )
        ]
        for scenario in SCENARIOS:
            cells = [
                best_us(session(scenario, ObserverFanout(ServiceLog(), watchers)))
                for watchers in ([], *([trace] for trace in traces))
            ]
            table.add_row(scenario.short, scenario.name, *(f"{cell:,.0f}" for cell in cells))
        files.close()
    Console().print(table)


if __name__ == "__main__":
    main()
