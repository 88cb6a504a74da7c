"""The certificate snapshot: certificates and keys, as they were when the settings were read.

A worker that takes the place of one that died may be started much later.  What has come to the disk
meanwhile is for the next reload to judge; it may be half of a new pair, or no good at all.  So the
supervisor reads the files, and each worker gets what was in them.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from smtpproxy.config.schema import BackendSettings, CertificateSettings, ListenerSettings, Settings

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
"""Nobody changes a copy, whoever opens it by its path in /proc."""
Files = dict[str, bytes]
"""Path -> what is in the file."""


def read_files(settings: Settings) -> Files:
    """Read all certificate files that the settings name.

    One that is gone since it was found to be good is left out: the worker's start will fail.
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
        yield from (listener.certificate, listener.key)
        for pair in listener.sni.values():
            yield from (pair.certificate, pair.key)
    yield from (each.ca_file for each in settings.backends.values())


class FileCopies:
    """Makes of files in memory what a TLS library can open: files without a name.

    settings: with the copies' paths, which hold in this process until `close`.  Where there are no
    such copies (Linux has them) it has the files' own.
    """

    def __init__(self, settings: Settings, files: Files) -> None:
        self._files = files
        self._copies: dict[str, int] = {}
        self.settings = replace(
            settings,
            listeners={name: self._listener(each) for name, each in settings.listeners.items()},
            backends={name: self._backend(each) for name, each in settings.backends.items()},
        )

    def close(self) -> None:
        """Throw the copies away."""
        for descriptor in self._copies.values():
            os.close(descriptor)
        self._copies.clear()

    def _listener(self, listener: ListenerSettings) -> ListenerSettings:
        certificate, key = self._copy(listener.certificate), self._copy(listener.key)
        sni = {
            name: CertificateSettings(
                certificate=self._copy(each.certificate), key=self._copy(each.key)
            )
            for name, each in listener.sni.items()
        }
        return replace(listener, certificate=certificate, key=key, sni=sni)

    def _backend(self, backend: BackendSettings) -> BackendSettings:
        return replace(backend, ca_file=self._copy(backend.ca_file))

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
