"""Notifications to systemd (sd_notify(3)): datagrams to the socket that $NOTIFY_SOCKET names."""

import contextlib
import os
import socket
import time


class Notifier:
    """Tells systemd how the service is; says nothing where nobody asked.

    main: whether this is the process that systemd listens to.
    """

    def __init__(self) -> None:
        self.main = True
        # Taken out, so that no worker speaks for the service.
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]  # a socket in the abstract namespace
        watchdog = os.environ.pop("WATCHDOG_USEC", "")
        for_us = os.environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self.watchdog_s = int(watchdog) / 1e6 if watchdog.isdecimal() and for_us else 0.0
        self._status = ""

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which another process can speak for the service."""
        found = {"NOTIFY_SOCKET": self._address.replace("\0", "@")} if self._address else {}
        if self.watchdog_s:
            found["WATCHDOG_USEC"] = str(int(self.watchdog_s * 1e6))
        return found

    def hand_over(self, pid: int) -> None:
        """Tell that another process is the main one from here on, and say nothing any more."""
        self._send(f"MAINPID={pid}", "READY=1")
        self.main = False

    @property
    def wanted(self) -> bool:
        """Tell whether anybody listens."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Tell that clients are served (again)."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Tell that a reload begins; `ready` tells its end, whatever came of it."""
        now = time.clock_gettime(time.CLOCK_MONOTONIC)
        self._send("RELOADING=1", f"MONOTONIC_USEC={int(now * 1e6)}")

    def stopping(self) -> None:
        """Tell that the service drains or stops."""
        self._send("STOPPING=1", "STATUS=draining")

    def alive(self) -> None:
        """Stroke the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, status: str) -> None:
        """Tell in words how it is, if that has changed."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def _send(self, *fields: str) -> None:
        if not (self._address and self.main):
            return
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out,
            contextlib.suppress(OSError),  # nobody is there any more: no reason to stop the mail
        ):
            out.sendto("\n".join(fields).encode(), self._address)
