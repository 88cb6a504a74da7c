"""The certificate snapshot: certificates and keys as they were when the settings were read.

A worker that replaces a crashed one may start much later.  By then the files on disk may be half of
a new pair, or invalid, and must not be used before the next reload.  So the supervisor reads the
files, and sends their contents to each worker.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from smtpproxy.config.schema import (
    BACKEND_FILES,
    CERTIFICATE_FILES,
    BackendSettings,
    CertificateSettings,
    ListenerSettings,
    Settings,
)

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
"""The seals that make a copy read-only, also if it is opened by its path in /proc."""
Files = dict[str, bytes]
"""The contents of files by path."""


def read_files(settings: Settings) -> Files:
    """Read all certificate files that the settings name.

    A file that has been removed since it was checked is left out; then the worker's start fails.
    """
    found = {}
    for path in {*_paths(settings)} - {""}:
        try:
            found[path] = Path(path).read_bytes()
        except OSError:
            continue
    return found


def _paths(settings: Settings) -> Iterator[str]:
    for listener in settings.listeners.values():
        for served in (listener, *listener.sni.values()):
            yield from (getattr(served, name) for name in CERTIFICATE_FILES)
    for backend in settings.backends.values():
        yield from (getattr(backend, name) for name in BACKEND_FILES)


class FileCopies:
    """Copies of files in memory, with paths that OpenSSL can open (memfd_create).

    Args:
        settings: The settings, with the original paths.
        files: The contents of the files.
    """

    def __init__(self, settings: Settings, files: Files) -> None:
        self._files = files
        self._copies: dict[str, int] = {}
        self.settings = replace(
            settings,
            listeners={name: self._listener(each) for name, each in settings.listeners.items()},
            backends={name: self._backend(each) for name, each in settings.backends.items()},
        )
        """The settings with the paths of the copies, which are valid in this process until `close`.

        Without memfd_create, outside Linux, they have the original paths.
        """

    def close(self) -> None:
        """Delete the copies."""
        for descriptor in self._copies.values():
            os.close(descriptor)
        self._copies.clear()

    def _listener(self, listener: ListenerSettings) -> ListenerSettings:
        sni = {name: replace(each, **self._copies_of(each)) for name, each in listener.sni.items()}
        return replace(listener, sni=sni, **self._copies_of(listener))

    def _copies_of(self, served: ListenerSettings | CertificateSettings) -> dict[str, str]:
        return {name: self._copy(getattr(served, name)) for name in CERTIFICATE_FILES}

    def _backend(self, backend: BackendSettings) -> BackendSettings:
        return replace(
            backend, **{name: self._copy(getattr(backend, name)) for name in BACKEND_FILES}
        )

    def _copy(self, path: str) -> str:
        if path not in self._files or not hasattr(os, "memfd_create"):
            return path
        if path not in self._copies:
            flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
            self._copies[path] = os.memfd_create("smtpproxy", flags)
            with open(self._copies[path], "wb", closefd=False) as file:
                file.write(self._files[path])
            fcntl.fcntl(self._copies[path], fcntl.F_ADD_SEALS, SEALS)
        return f"/proc/self/fd/{self._copies[path]}"
