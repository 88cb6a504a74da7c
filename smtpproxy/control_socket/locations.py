"""The path of the control socket, for the service that creates it and for commands that connect.

It is in the first of these directories that can be used: `$RUNTIME_DIRECTORY`, which systemd sets
for a unit with `RuntimeDirectory=`; `/run/smtpproxy`; the user's own `$XDG_RUNTIME_DIR/smtpproxy`.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import click

NAME = "control.sock"
"""The name of the socket in its directory."""
VARIABLE = "SMTPPROXY_CONTROL"
"""The environment variable for the path, as `--control`."""
SYSTEM = Path("/run/smtpproxy")
"""The directory of the system's service, if the environment names none."""

control_option = click.option(
    "--control",
    type=click.Path(path_type=Path),
    metavar="PATH",
    envvar=VARIABLE,
    show_envvar=True,
    help="The path of the service's control socket; by default in $RUNTIME_DIRECTORY, "
    "/run/smtpproxy or $XDG_RUNTIME_DIR.",
)
"""The option of the service, and of the commands that ask it."""


def of_service(environ: Mapping[str, str]) -> Path | None:
    """Return the path at which the service creates its socket; None if no directory can be used.

    The directory is created if it does not exist.
    """
    if given := _runtime_directory(environ):
        return given / NAME
    for directory, mode in ((SYSTEM, 0o755), *((each, 0o700) for each in _of_user(environ))):
        try:
            directory.mkdir(mode, exist_ok=True)
        except OSError:
            continue
        if os.access(directory, os.W_OK | os.X_OK):
            return directory / NAME
    return None


def of_commands(environ: Mapping[str, str]) -> list[Path]:
    """Return the possible paths of the socket, in the order in which they are tried."""
    given = _runtime_directory(environ)
    directories = [*([given] if given else []), SYSTEM, *_of_user(environ)]
    return [each / NAME for each in dict.fromkeys(directories)]


def _runtime_directory(environ: Mapping[str, str]) -> Path | None:
    first = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(first) if first else None


def _of_user(environ: Mapping[str, str]) -> list[Path]:
    own = environ.get("XDG_RUNTIME_DIR", "")
    return [Path(own, "smtpproxy")] if own else []
