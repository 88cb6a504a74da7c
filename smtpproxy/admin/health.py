"""Health and readiness: what is asked at the admin address and at the control socket.

Everybody may ask, so an answer has names of backends and never an address.
"""

from typing import Protocol

_HEALTH, _READINESS = "/healthz", "/readyz"
PATHS = (_HEALTH, _READINESS, f"{_READINESS}/{{backend}}")
"""As the HTTP library writes them."""


class HealthSource(Protocol):
    """Knows how the service is."""

    def why_not_ready(self, backend: str = "") -> str:
        """Return why clients could not be served just now; empty if they could.

        Args:
            backend: The one that is asked about; empty: whichever clients need.

        Raises:
            KeyError: There is no such backend.
        """

    async def wait_for_checks(self) -> None:
        """Wait until each server has been checked once, but no longer than a moment."""


def is_asked_for(path: str) -> bool:
    """Tell whether a path is one of those here."""
    return path in (_HEALTH, _READINESS) or path.startswith(f"{_READINESS}/")


async def answer(path: str, source: HealthSource) -> tuple[int, str]:
    """Return the status and the line of text for one of these paths."""
    if path == _HEALTH:
        return 200, "ok\n"
    backend = path[len(_READINESS) + 1 :]
    try:
        if source.why_not_ready(backend):
            await source.wait_for_checks()
        why_not = source.why_not_ready(backend)
    except KeyError:
        return 404, "there is no such backend\n"
    return (503, f"not ready: {why_not}\n") if why_not else (200, "ready\n")
