"""Sockets passed by systemd's socket activation, sd_listen_fds(3)."""

import os
import socket

from smtpproxy.net.binding import keep_alive

FIRST_DESCRIPTOR = 3
"""The first descriptor that systemd passes: SD_LISTEN_FDS_START of sd_listen_fds(3)."""


def take() -> dict[str, list[socket.socket]]:
    """Return the listening sockets from systemd by name; several may have the same name.

    The environment variables are removed, so that no child process uses them.
    """
    for_us = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    if not for_us or not count.isdecimal():
        return found
    for index in range(int(count)):
        descriptor = FIRST_DESCRIPTOR + index
        os.set_inheritable(descriptor, False)
        name = names[index] if index < len(names) and names[index] else "unknown"
        try:
            listening = socket.socket(fileno=descriptor)
        except OSError:  # a FIFO or the like, which the same unit may open, too
            continue
        listening.setblocking(False)
        keep_alive(listening)
        found.setdefault(name, []).append(listening)
    return found
