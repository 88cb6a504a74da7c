"""Certificates in memory."""

import os
from pathlib import Path

import pytest
from msgspec import Struct
from msgspec.structs import fields, replace

from smtpproxy.config.loader import from_flags
from smtpproxy.config.schema import (
    BACKEND_FILES,
    CERTIFICATE_FILES,
    BackendSettings,
    CertificateSettings,
    File,
    ListenerSettings,
)
from smtpproxy.net import shared_counters
from smtpproxy.worker.certificate_snapshot import FileCopies


def test_a_copy_cannot_be_changed() -> None:
    settings = from_flags(None, ["127.0.0.1:0"], ["127.0.0.1:25"])
    (name, backend), *_ = settings.backends.items()
    settings = replace(settings, backends={name: replace(backend, ca_file="/ca.pem")})
    copies = FileCopies(settings, {"/ca.pem": b"good"})
    copy = Path(copies.settings.backends[name].ca_file)
    for mode in ("r+b", "wb"):
        with pytest.raises(PermissionError), copy.open(mode) as file:
            file.write(b"evil")
    assert copy.read_bytes() == b"good"
    copies.close()


@pytest.mark.parametrize(
    ("kind", "listed"),
    [
        (ListenerSettings, CERTIFICATE_FILES),
        (CertificateSettings, CERTIFICATE_FILES),
        (BackendSettings, BACKEND_FILES),
    ],
)
def test_each_setting_that_names_a_file_is_copied(
    kind: type[Struct], listed: tuple[str, ...]
) -> None:
    """Else a worker that replaces a crashed one would read a file that has changed since."""
    assert {each.name for each in fields(kind) if each.type is File} == {*listed}


def test_the_files_of_both_certificates_are_copied() -> None:
    files = {f"/{name}": name.encode() for name in CERTIFICATE_FILES}
    by_name = CertificateSettings(**{name: f"/{name}" for name in CERTIFICATE_FILES})
    settings = from_flags(None, ["127.0.0.1:0"], ["127.0.0.1:25"])
    (name, listener), *_ = settings.listeners.items()
    listener = replace(listener, sni={"mx.example": by_name})
    copies = FileCopies(replace(settings, listeners={name: listener}), files)
    copied = copies.settings.listeners[name].sni["mx.example"]
    for each in CERTIFICATE_FILES:
        assert Path(getattr(copied, each)).read_bytes() == each.encode()
    copies.close()


def test_the_shared_counters_cannot_be_truncated() -> None:
    """Reading a truncated mapping would kill the process."""
    descriptor = shared_counters.create()
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)
