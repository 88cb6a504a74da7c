"""Notifications to systemd, sd_notify(3): datagrams to the socket in $NOTIFY_SOCKET."""

import contextlib
import os
import socket
import time


class Notifier:
    """Sends the state of the service to systemd, if the environment asks for it."""

    def __init__(self) -> None:
        self._main = True  # whose messages systemd accepts
        # Removed from the environment, so that no child sends notifications.
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]  # a socket in the abstract namespace
        watchdog = os.environ.pop("WATCHDOG_USEC", "")
        for_us = os.environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self.watchdog_s = int(watchdog) / 1e6 if watchdog.isdecimal() and for_us else 0.0
        """The watchdog's timeout; 0 if it is off."""
        self._status = ""

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables for another process that will be the main process."""
        found = {"NOTIFY_SOCKET": self._address.replace("\0", "@")} if self._address else {}
        if self.watchdog_s:
            found["WATCHDOG_USEC"] = str(int(self.watchdog_s * 1e6))
        return found

    def become_standby(self) -> None:
        """Send nothing from now on: another process is the main process."""
        self._main = False

    def become_main(self) -> None:
        """Send notifications again: this is the main process now."""
        self._main = True

    def hand_over(self, pid: int) -> None:
        """Make another process the main process, and send nothing from now on."""
        self._send(f"MAINPID={pid}", "READY=1")
        self.become_standby()

    @property
    def wanted(self) -> bool:
        """Whether notifications are enabled."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Report that the service is ready, after the start or a reload."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Report the start of a reload; `ready` reports its end, even if it fails."""
        now = time.clock_gettime(time.CLOCK_MONOTONIC)
        self._send("RELOADING=1", f"MONOTONIC_USEC={int(now * 1e6)}")

    def stopping(self) -> None:
        """Report that the service drains or stops."""
        self._send("STOPPING=1", "STATUS=draining")

    def alive(self) -> None:
        """Reset the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, status: str) -> None:
        """Set the status line of `systemctl status`, if it has changed."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def _send(self, *fields: str) -> None:
        if not (self._address and self._main):
            return
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out,
            contextlib.suppress(OSError),  # mail service must not depend on notifications
        ):
            out.sendto("\n".join(fields).encode(), self._address)
