"""The certificate snapshot: certificates and keys, as they were when the settings were read.

A worker that takes the place of one that died may be started much later.  What has come to the disk
meanwhile is for the next reload to judge; it may be half of a new pair, or no good at all.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from smtpproxy.config.schema import BackendSettings, CertificateSettings, ListenerSettings, Settings


class CertificateSnapshot:
    """Keeps a copy of each file in memory, without a name.

    settings: with the copies' paths, which hold in this process and in each that inherits the
    `descriptors`.  Where there are no such copies (Linux has them) it has the files' own.
    """

    def __init__(self, settings: Settings) -> None:
        self._copies: dict[str, int] = {}
        self.settings = replace(
            settings,
            listeners={name: self._listener(each) for name, each in settings.listeners.items()},
            backends={name: self._backend(each) for name, each in settings.backends.items()},
        )

    @property
    def descriptors(self) -> Iterable[int]:
        """Return the copies' descriptors."""
        return self._copies.values()

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
        if not path or not hasattr(os, "memfd_create"):
            return path
        if path not in self._copies:
            try:
                octets = Path(path).read_bytes()
            except OSError:
                return path  # gone since it was found to be good: the worker's start will fail
            self._copies[path] = os.memfd_create("smtpproxy")
            with open(self._copies[path], "wb", closefd=False) as file:
                file.write(octets)
        return f"/proc/self/fd/{self._copies[path]}"
