"""Where the control socket is, for the service that makes it and for the commands that ask there.

The first of these that can be used: `$RUNTIME_DIRECTORY`, which systemd sets for a unit with
`RuntimeDirectory=`; `/run/smtpproxy`; `$XDG_RUNTIME_DIR/smtpproxy`, which is the user's own.
"""

import os
from collections.abc import Mapping
from pathlib import Path

NAME = "control.sock"
VARIABLE = "SMTPPROXY_CONTROL"
"""The environment variable in which a path can be given, as by `--control`."""
SYSTEM = Path("/run/smtpproxy")


def of_service(environ: Mapping[str, str]) -> Path | None:
    """Return where the service makes its socket; None if there is no directory for it.

    The directory is made if need be.
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
    """Return where a service may be found, the first that answers being the one."""
    given = _runtime_directory(environ)
    directories = [*([given] if given else []), SYSTEM, *_of_user(environ)]
    return [each / NAME for each in dict.fromkeys(directories)]


def _runtime_directory(environ: Mapping[str, str]) -> Path | None:
    first = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(first) if first else None


def _of_user(environ: Mapping[str, str]) -> list[Path]:
    own = environ.get("XDG_RUNTIME_DIR", "")
    return [Path(own, "smtpproxy")] if own else []
