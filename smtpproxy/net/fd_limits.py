"""File descriptors: the limit of this worker, and whether it is almost reached.

A new connection gets the lowest free descriptor, so its number shows how many are in use.  When
fewer than `SPARE` are left, new clients are refused, while there are still descriptors to send the
refusal.  If none is left (the limit was lowered, or the machine has no more), accepting would fail
in a busy loop; then the listeners pause until there are some again, and clients wait.
"""

import os
import resource

SPARE = 32
"""The descriptors reserved for backend connections, trace files and name look-ups."""


class FdLimits:
    """The file descriptors of a worker; call `look` regularly."""

    def __init__(self) -> None:
        self.limit = 0
        """The limit of the process."""
        self.exhausted = False
        """Whether no descriptor is left."""
        self.look()

    def look(self) -> None:
        """Read the limit, which may have been changed from outside, and try to open a file."""
        self.limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            self.exhausted = True
        else:
            self.exhausted = False

    def short_at(self, descriptor: int, sessions: int) -> bool:
        """Return whether descriptors are short.

        Args:
            descriptor: The descriptor of a new connection.
            sessions: The number of sessions; each may still need a second descriptor for its
                backend connection.
        """
        room = self.limit - min(SPARE, self.limit // 4)
        return descriptor >= room or 2 * sessions >= room
