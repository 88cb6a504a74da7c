"""Certificates in memory."""

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from smtpproxy.config.loader import from_flags
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


def test_the_shared_counters_cannot_be_truncated() -> None:
    """Reading a truncated mapping would kill the process."""
    descriptor = shared_counters.create()
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)
