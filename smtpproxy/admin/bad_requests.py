"""Bad requests to the admin address: the log shows their number, and nothing of their content.

The HTTP library logs each request that it cannot parse, with a traceback that quotes the request
and its token.  So a client could fill the log, and the token would be in it.
"""

import asyncio
import logging

from aiohttp.http_exceptions import HttpProcessingError

from smtpproxy.log import events, log

LOGGED_EVERY_S = 1.0
"""The time of which a line has the number of requests."""


class BadRequests(logging.Handler):
    """Counts bad requests; logs a bug in the proxy with its traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._kind = ""
        self._requests = 0
        self.logger = logging.Logger("smtpproxy.admin")
        """The logger for the HTTP library."""
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Count what the HTTP library logs, or log it as a bug."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            self._count(type(error).__name__)
        elif record.levelno >= logging.ERROR:
            events.ADMIN_ERROR.log(log.get(), exc_info=error)

    def _count(self, kind: str) -> None:
        if not self._requests:
            asyncio.get_running_loop().call_later(LOGGED_EVERY_S, self.report)
        self._requests += 1
        self._kind = kind

    def report(self) -> None:
        """Log the number of requests since the last report, if there were any."""
        if self._requests:
            events.ADMIN_BAD_REQUEST.log(log.get(), kind=self._kind, requests=self._requests)
            self._requests = 0
