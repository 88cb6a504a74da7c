"""Health and readiness, for requests to the admin address and to the control socket.

No token is needed, so an answer has names of backends and never an address.
"""

from typing import Protocol

_HEALTH, _READINESS = "/healthz", "/readyz"
PATHS = (_HEALTH, _READINESS, f"{_READINESS}/{{backend}}")
"""The paths, in the syntax of the HTTP library."""


class HealthSource(Protocol):
    """The health of the service."""

    def why_not_ready(self, backend: str = "") -> str:
        """Return why clients cannot be served now; empty if they can.

        Args:
            backend: The name of one backend; empty for all that clients need.

        Raises:
            KeyError: There is no such backend.
        """

    async def wait_for_checks(self) -> None:
        """Wait until each server has been checked once, for a short time at most."""


def is_asked_for(path: str) -> bool:
    """Return whether a path is one of `PATHS`."""
    return path in (_HEALTH, _READINESS) or path.startswith(f"{_READINESS}/")


async def answer(path: str, source: HealthSource) -> tuple[int, str]:
    """Return the HTTP status and the line of text for one of `PATHS`."""
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
