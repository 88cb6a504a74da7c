"""The name of the instance: in each log line and each series, from the start and after a reload."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

from smtpproxy.config.schema import host_instance
from smtpproxy.demo.legacy import LegacyMTA
from tests.support.program import Program, send
from tests.support.scrape import scrape

Run = Callable[..., Program]


def named(text: str) -> set[str]:
    """Return the names of instances in the series of a scrape; empty for a series without one."""
    series = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(series) > 50
    return {
        found[1] if (found := re.search(r'[{,]smtpproxy_instance="([^"]*)"', line)) else ""
        for line in series
    }


def test_every_line_and_every_series_names_the_instance(
    run: Run, mta: LegacyMTA, tmp_path: Path
) -> None:
    file = tmp_path / "smtpproxy.toml"
    more = f"""workers = 2
        log = {{ level = "debug" }}
        admin = {{ address = "127.0.0.1:0" }}
        [listeners.smtp]
        address = "127.0.0.1:0"
        [backends.old]
        servers = ["{mta.address}"]"""
    file.write_text(more)
    program = run("-c", file)
    admin = program.event("admin_listening")["address"]
    port = program.port()
    send(port)
    program.event("session_closed")
    assert named(scrape(admin)) == {host_instance()}
    assert {line.get("instance") for line in program.log()} == {host_instance()}
    file.write_text(f'instance = "mx1"\n{more}')
    program.signal(signal.SIGHUP)
    assert program.event("reloaded")["instance"] == "mx1"
    seen = len(program.log())
    send(port)
    program.event("session_closed")
    assert named(scrape(admin)) == {"mx1"}
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    later = [line for line in program.log()[seen:] if line["event"] != "session_opened"]
    assert {line.get("instance") for line in later} == {"mx1"}
