"""Credentials of systemd (`LoadCredential=`): files that only the service sees, while it runs.

To every other process, `ExecReload=smtpproxy check` included, their directory is missing or closed.
So `check` cannot examine them; the service itself refuses what is wrong.
"""

import os
from collections.abc import Iterator
from pathlib import Path as FilePath

from smtpproxy.config.certificate_validation import certificates_of
from smtpproxy.config.decoding import BAD
from smtpproxy.config.schema import BACKEND_FILES, CERTIFICATE_FILES, Settings
from smtpproxy.config.toml_lines import KeyPath

DIRECTORY = "/run/credentials/"
"""Has a directory for each unit with credentials."""


def invisible(settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    """Yield the credentials that this process cannot see: the key path of each, and the file.

    Any value may be BAD; its problem has been reported already.
    """
    for key_path, file in _files(settings):
        if (
            isinstance(file, str)
            and file.startswith(DIRECTORY)
            and not os.access(FilePath(file).parent, os.R_OK | os.X_OK)
        ):
            yield key_path, file


def _files(settings: Settings) -> Iterator[tuple[KeyPath, object]]:
    """Yield every setting that names a file to read."""
    for name, listener in ({} if settings.listeners is BAD else settings.listeners).items():
        if listener is BAD:
            continue
        for key_path, served in certificates_of(listener, ("listeners", name)):
            for key in CERTIFICATE_FILES:
                yield (*key_path, key), getattr(served, key)
    for name, backend in ({} if settings.backends is BAD else settings.backends).items():
        for key in BACKEND_FILES:
            yield ("backends", name, key), getattr(backend, key, BAD)
    yield ("admin", "token_file"), getattr(settings.admin, "token_file", BAD)
    yield ("cluster", "password_file"), getattr(settings.cluster, "password_file", BAD)
