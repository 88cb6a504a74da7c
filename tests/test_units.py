"""The units and settings that ship: an operator can use them as they are."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from smtpproxy import data
from smtpproxy.config import load

DATA = Path(data.__file__).parent


def test_settings_and_units_fit_together() -> None:
    settings = load(DATA / "smtpproxy.toml")
    unit, sockets = (configparser.RawConfigParser(strict=False) for _ in range(2))
    for parser, name in ((unit, "smtpproxy.service"), (sockets, "smtpproxy.socket")):
        parser.read(DATA / name)
    assert str(settings.listener[0].address) == f"fd:{sockets['Socket']['FileDescriptorName']}"
    assert settings.timeouts.drain + 10 < float(unit["Service"]["TimeoutStopSec"])
    assert settings.limits.sessions * 2 < float(unit["Service"]["LimitNOFILE"])


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not on this machine")
    for name in ("smtpproxy.service", "smtpproxy.socket"):
        # Where the program will be, there may be none here.
        text = (DATA / name).read_text().replace("/usr/local/bin/smtpproxy", "/bin/true")
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = [line for line in done.stderr.splitlines() if "smtpproxy" in line]
    assert (done.returncode, told) == (0, [])
