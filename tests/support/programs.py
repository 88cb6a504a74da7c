"""Finds the real programs on this machine, and reports how to install a missing one.

MTAs are looked for as installed packages and in the directory that `.ci/install-peers` fills:
`$SMTPPROXY_PEERS`, or `smtpproxy-peers` in the user's cache. A missing program skips the test with
the package's name; with `SMTPPROXY_REQUIRE_PEERS=1`, as in CI, it fails the test instead.
"""

import os
import pwd
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def peers_directory() -> Path:
    """Return where `.ci/install-peers` unpacks the MTAs."""
    chosen = os.environ.get("SMTPPROXY_PEERS")
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "smtpproxy-peers"


def unavailable(reason: str) -> NoReturn:
    """Skip the running test, or fail it if every peer is required."""
    if os.environ.get("SMTPPROXY_REQUIRE_PEERS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def root_of(package: str, program: str) -> Path:
    """Return the root directory of a package: `/`, or its directory among the peers.

    `program` is the path of one of its programs, relative to that root.
    """
    for root in (Path("/"), peers_directory() / package):
        if os.access(root / program, os.X_OK):
            return root
    unavailable(f"package {package} is missing (see .ci/install-peers)")


def command(name: str, package: str | None = None) -> str:
    """Return the path of a program found by PATH."""
    path = shutil.which(name)
    if path is None:
        unavailable(f"package {package or name} is missing (see .ci/install-peers)")
    return path


def node_modules(package: str) -> Path:
    """Return the directory from which node can require a Debian package's module."""
    directory = Path("/usr/share/nodejs")
    if not (directory / package.removeprefix("node-") / "package.json").exists():
        unavailable(f"package {package} is missing (see .ci/install-peers)")
    return directory


def require_root(what: str) -> None:
    """Skip, or fail, unless the tests run as root."""
    if os.geteuid() != 0:
        unavailable(f"{what} must be started as root")


def require_account(name: str) -> None:
    """Skip, or fail, unless this account exists."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        unavailable(f"account {name} is missing (see .ci/install-peers)")
