"""Credentials of systemd, which `check` cannot always see."""

import json
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner, Result

from smtpproxy.cli import main
from smtpproxy.config import credentials
from smtpproxy.config.decoding import ConfigError
from smtpproxy.config.loader import load

UNIT = "/run/credentials/smtpproxy-not-running.service"
SETTINGS = """\
[listeners.smtp]
address = "127.0.0.1:2525"
tls = "starttls"
certificate = "{certificate}"
key = "{unit}/smtp.key"
sni."b.example" = {{ certificate = "{unit}/b.pem" }}
[backends.old]
servers = ["10.0.0.5:25"]
server_name = "mta.example"
tls = "implicit"
ca_file = "{unit}/ca.pem"
[admin]
address = "0.0.0.0:8025"
token_file = "{unit}/token"
"""
KEYS = [
    'listeners.smtp.sni."b.example".certificate',
    "listeners.smtp.key",
    "backends.old.ca_file",
    "admin.token_file",
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A settings file whose secrets are credentials of a unit that does not run."""
    return write(tmp_path, UNIT)


def write(directory: Path, unit: str) -> Path:
    certificate = directory / "a.pem"
    trustme.CA().issue_cert("a.example").cert_chain_pems[0].write_to_path(certificate)
    file = directory / "smtpproxy.toml"
    file.write_text(SETTINGS.format(certificate=certificate, unit=unit))
    return file


def check(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


def test_check_warns_of_credentials_that_only_the_service_sees(file: Path) -> None:
    done = check(file)
    assert done.exit_code == 0, done.stderr
    assert sorted(line.split(": ")[2] for line in done.stderr.splitlines()) == sorted(KEYS)
    assert (
        f"smtpproxy: warning: admin.token_file: {UNIT}/token was not checked: systemd shows a "
        "credential only to the service, while it runs" in done.stderr
    )
    assert len(json.loads(check("--json", file).stdout)["warnings"]) == len(KEYS)


def test_the_service_itself_needs_its_credentials(file: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load(file)
    assert sorted(problem.key for problem in raised.value.problems) == sorted(KEYS)


def test_what_is_missing_in_a_directory_that_can_be_read_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "DIRECTORY", f"{tmp_path}/")
    (tmp_path / "smtpproxy.service").mkdir()
    done = check(write(tmp_path, f"{tmp_path}/smtpproxy.service"))
    assert done.exit_code == 1
    assert all(f": {key}: " in done.stderr for key in KEYS)


def test_what_else_is_wrong_stays_a_problem(file: Path) -> None:
    file.write_text(file.read_text() + 'tokn = "x"\n')
    done = check(file)
    assert done.exit_code == 1
    assert "admin.tokn: is not a known setting" in done.stderr
    assert "token_file" not in done.stderr
