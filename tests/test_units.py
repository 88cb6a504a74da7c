"""The units and settings that ship: an operator can use them as they are."""

import configparser
import re
import subprocess
import sys
import time
from pathlib import Path

from smtpproxy import data
from smtpproxy.config.loader import load
from tests.support.programs import command, require_root

DATA = Path(data.__file__).parent


def test_settings_and_units_fit_together() -> None:
    settings = load(DATA / "smtpproxy.toml")
    unit, sockets = (configparser.RawConfigParser(strict=False) for _ in range(2))
    for parser, name in ((unit, "smtpproxy.service"), (sockets, "smtpproxy.socket")):
        parser.read(DATA / name)
    assert (
        str(settings.listeners["smtp"].address) == f"fd:{sockets['Socket']['FileDescriptorName']}"
    )
    assert settings.timeouts.drain + 10 < float(unit["Service"]["TimeoutStopSec"])
    assert settings.limits.sessions * 2 < float(unit["Service"]["LimitNOFILE"])


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    analyze = command("systemd-analyze", "systemd")
    for name in ("smtpproxy.service", "smtpproxy.socket"):
        # The program need not be installed here.
        text = re.sub(
            "^(Exec.*)=smtpproxy ", r"\1=true ", (DATA / name).read_text(), flags=re.MULTILINE
        )
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    reported = [line for line in done.stderr.splitlines() if "smtpproxy" in line]
    assert (done.returncode, reported) == (0, [])


def test_systemd_rates_the_exposure_of_the_service_as_low() -> None:
    analyze = command("systemd-analyze", "systemd")
    argv = [analyze, "security", "--offline=true", "--no-pager", "--threshold=15"]
    done = subprocess.run(
        [*argv, DATA / "smtpproxy.service"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


def test_metrics_of_the_process_are_there_where_the_unit_hides_the_rest_of_proc() -> None:
    require_root("a mount namespace")
    program = (
        "from smtpproxy.metrics.exposition import Exposition\n"
        "from smtpproxy.metrics.snapshot import MetricsSnapshot\n"
        "print(Exposition().render(MetricsSnapshot(), 'mx1').decode())\n"
    )
    hidden = 'mount -t proc -o subset=pid proc /proc && test ! -e /proc/stat && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hidden, "sh", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = dict(re.findall(r"(?m)^(process_\w+)\S* (\S+)$", done.stdout))
    assert time.time() - 60 < float(found["process_start_time_seconds"]) < time.time() + 1
    assert {"process_cpu_seconds_total", "process_open_fds"} <= found.keys()
