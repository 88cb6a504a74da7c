"""File descriptors: how many this worker may have, and whether it is short of them.

A client's connection takes the lowest free number, so its number tells how many are in use, by
whomever.  Below SPARE of them new clients are turned away, while there is still one for each of
them to be told so with.  If not one is left (somebody has lowered the limit, or the machine has no
more) accepting would fail over and over and take all of the CPU: then nobody accepts until there
are some again, and clients wait.
"""

import os
import resource

SPARE = 32
"""So many are kept for backend connections that are under way, for traces and for names."""


class FdLimits:
    """Made once for a worker; `look` is to be called now and then.

    limit: how many there may be.  exhausted: not one is left.
    """

    def __init__(self) -> None:
        self.limit = 0
        self.exhausted = False
        self.look()

    def look(self) -> None:
        """Find out how things stand; the limit may have been changed from outside."""
        self.limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            self.exhausted = True
        else:
            self.exhausted = False

    def short_at(self, descriptor: int, sessions: int) -> bool:
        """Tell whether a connection with this descriptor is one too many, beside so many sessions.

        Each of those takes one for its backend, too, which it may not have yet.
        """
        room = self.limit - min(SPARE, self.limit // 4)
        return descriptor >= room or 2 * sessions >= room
