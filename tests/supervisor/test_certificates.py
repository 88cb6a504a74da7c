"""Certificate files: a near expiry is logged, and changed files are used."""

import datetime
import signal
import smtplib
import ssl
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from smtpproxy.config.certificate_validation import doubtful_certificates, expiries
from smtpproxy.config.loader import load
from smtpproxy.demo.legacy import LegacyMTA
from tests.support.program import Program
from tests.support.scrape import scrape, total

Run = Callable[..., Program]
NOW = datetime.datetime(2030, 6, 15, tzinfo=datetime.UTC)
SOON = """
from smtpproxy.supervisor import supervisor
supervisor.CERTIFICATE_INTERVAL_S = 0.1
from smtpproxy.cli import main
main()
"""


@pytest.mark.parametrize(
    ("days", "why"),
    [
        ((-90, -1), "has expired on 2030-06-14"),
        ((-90, 13), "expires on 2030-06-28"),
        ((1, 90), "is not valid before 2030-06-16"),
        ((-90, 15), ""),
    ],
)
def test_a_certificate_that_clients_may_refuse_is_reported(
    tmp_path: Path, days: tuple[int, int], why: str
) -> None:
    begin, end = (NOW + datetime.timedelta(days=each) for each in days)
    pem = tmp_path / "mx.pem"
    issued = trustme.CA().issue_cert("mx.example", not_before=begin, not_after=end)
    issued.private_key_and_cert_chain_pem.write_to_path(pem)
    settings = load(write(tmp_path, "127.0.0.1:25", pem))
    found = list(doubtful_certificates(settings, NOW.timestamp()))
    assert found == ([("in", "default", f"{pem} {why}")] if why else [])
    assert list(expiries(settings)) == [("in", "default", end.timestamp())]


def test_a_certificate_of_sni_for_other_names_is_reported(tmp_path: Path) -> None:
    pem = tmp_path / "mx.pem"
    issued = trustme.CA().issue_cert("mx.example", "*.all.example")
    issued.private_key_and_cert_chain_pem.write_to_path(pem)
    names = ("mx.example", "a.all.example", "*.all.example", "a.b.all.example", "other.example")
    more = "".join(f'sni."{each}" = {{ certificate = "{pem}" }}\n' for each in names)
    settings = load(write(tmp_path, "127.0.0.1:25", pem, more))
    now = datetime.datetime.now(datetime.UTC).timestamp()
    assert [name for _, name, _ in doubtful_certificates(settings, now)] == [
        "a.b.all.example",
        "other.example",
    ]


def write(directory: Path, mta: str, pem: Path, more: str = "", key: str = "") -> Path:
    file = directory / "p.toml"
    file.write_text(
        f'[listeners.in]\naddress = "127.0.0.1:0"\ntls = "starttls"\ncertificate = "{pem}"\n'
        f'{key}{more}[backends.old]\nservers = ["{mta}"]\n'
    )
    return file


def shown(port: int) -> bytes:
    """Return the certificate that a client gets."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        client.starttls(context=context)
        return client.sock.getpeercert(binary_form=True) or b""


def expiry(admin: str) -> float | None:
    """Return the metric of the certificate."""
    metric = "certificate_expiry_timestamp_seconds"
    return total(scrape(admin), metric, listener="in")


def test_a_changed_certificate_is_used_once_its_key_matches(
    mta: LegacyMTA, run: Run, tmp_path: Path
) -> None:
    pem, key = tmp_path / "mx.pem", tmp_path / "mx.key"
    authority = trustme.CA()
    ends = [datetime.datetime(year, 1, 2, tzinfo=datetime.UTC) for year in (2097, 2098)]
    first, second = (authority.issue_cert("mx.example", not_after=end) for end in ends)
    first.cert_chain_pems[0].write_to_path(pem)
    first.private_key_pem.write_to_path(key)
    more = '[admin]\naddress = "127.0.0.1:0"\n'
    file = write(tmp_path, mta.address, pem, more, key=f'key = "{key}"\n')
    program = run("-c", file, argv=(sys.executable, "-c", SOON))
    admin = program.event("admin_listening")["address"]
    port = program.port()
    assert expiry(admin) == ends[0].timestamp()
    old = shown(port)
    second.cert_chain_pems[0].write_to_path(pem)
    refused = program.event("certificates_refused")["problems"]
    assert refused == ["listeners.in.certificate: does not belong to the key"]
    assert shown(port) == old
    second.private_key_pem.write_to_path(key)
    program.event("certificates_changed")
    program.event("reloaded")
    assert shown(port) == ssl.PEM_cert_to_DER_cert(second.cert_chain_pems[0].bytes().decode())
    assert old != shown(port)
    assert expiry(admin) == ends[1].timestamp()


def test_an_expired_certificate_is_logged_at_the_start_and_at_a_reload(
    mta: LegacyMTA, run: Run, tmp_path: Path
) -> None:
    pem = tmp_path / "mx.pem"
    end = datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)
    trustme.CA().issue_cert(
        "mx.example", not_after=end
    ).private_key_and_cert_chain_pem.write_to_path(pem)
    program = run("-c", write(tmp_path, mta.address, pem))
    expected = ("in", "default", f"{pem} has expired on 2020-01-02")
    for _ in range(2):
        found = program.event("doubtful_certificate")
        assert (found["listener"], found["name"], found["reason"]) == expected
        program.signal(signal.SIGHUP)
