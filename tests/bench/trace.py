"""What a trace costs beside the log, without sockets: `python -m tests.bench trace`."""

import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from smtpproxy.log import log
from smtpproxy.log.session_log import ServiceLog
from smtpproxy.trace.content_capture import Kept
from smtpproxy.trace.recorder import Trace
from smtpproxy.trace.rotating_files import Files
from smtpproxy.worker.observer_fanout import Fanout
from tests.bench.core import SCENARIOS, best_us, session


def main() -> None:
    """Measure each scenario with every kind of trace; figures are CPU µs of a whole session."""
    table = Table("scenario", "", "log", "errors", "all", "headers", "full", box=None)
    with open("/dev/null", "wb") as nowhere, tempfile.TemporaryDirectory() as directory:  # noqa: PTH123
        log.configure("error", "json", nowhere)
        files = Files(Path(directory), 0, 64 * 1024 * 1024, 2)
        traces = [
            Trace(files, lambda _: None, only_errors=only_errors, kept=kept, most=1024 * 1024)
            for only_errors, kept in (
                (True, Kept.NONE),
                (False, Kept.NONE),
                (False, Kept.HEADERS),
                (False, Kept.FULL),
            )
        ]
        for scenario in SCENARIOS:
            cells = [
                best_us(session(scenario, Fanout(ServiceLog(), watchers)))
                for watchers in ([], *([trace] for trace in traces))
            ]
            table.add_row(scenario.short, scenario.name, *(f"{cell:,.0f}" for cell in cells))
        files.close()
    Console().print(table)


if __name__ == "__main__":
    main()
