"""Bad requests to the admin address: the log shows their number, and nothing of their content.

The HTTP library logs each request that it cannot parse, with a traceback that quotes the request
and its token.  So a client could fill the log, and the token would be in it.
"""

import logging
from time import monotonic

from aiohttp.http_exceptions import HttpProcessingError

from smtpproxy.log import events, log

LOGGED_EVERY_S = 1.0
"""The shortest time between two lines; a line has the number of requests since the last."""


def logger() -> logging.Logger:
    """Return the logger for the HTTP library."""
    made = logging.Logger("smtpproxy.admin")
    made.addHandler(_BadRequests())
    return made


class _BadRequests(logging.Handler):
    """Counts bad requests; logs a bug in the proxy with its traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._requests = 0
        self._logged_at = -LOGGED_EVERY_S

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            self._count(type(error).__name__)
        elif record.levelno >= logging.ERROR:
            events.ADMIN_ERROR.log(log.get(), exc_info=error)

    def _count(self, kind: str) -> None:
        self._requests += 1
        now = monotonic()
        if now - self._logged_at >= LOGGED_EVERY_S:
            events.ADMIN_BAD_REQUEST.log(log.get(), kind=kind, requests=self._requests)
            self._requests, self._logged_at = 0, now
