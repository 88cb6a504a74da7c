"""The rate limit of a session's commands: a client that exceeds it is read more slowly."""

BURST_S = 1.0
"""The burst that is allowed, in seconds at the full rate, so that groups are not slowed."""
LONGEST_PAUSE_S = 1.0
"""The longest single pause, so that no time limit is reached because of a pause."""


class RateLimit:
    """The rate limit of one session.

    Args:
        per_second: The allowed rate of commands.
        now: The time.
    """

    __slots__ = ("_commands", "_interval", "_until", "paused", "was_slowed")

    def __init__(self, per_second: float, now: float) -> None:
        self._interval = 1 / per_second
        self._commands = 0
        self._until = now  # the end of the commands received, at the allowed rate
        self.paused = self.was_slowed = False
        """Whether reading is paused now, and whether it ever was."""

    def pause(self, commands: int, now: float) -> float:
        """Return for how many seconds to pause reading from the client, and set `paused`.

        Args:
            commands: The number of commands received since the start of the session.
            now: The time.
        """
        self._until = max(self._until, now) + (commands - self._commands) * self._interval
        self._commands = commands
        early = self._until - now - BURST_S
        self.paused = early > 0
        if not self.paused:
            return 0.0
        self.was_slowed = True
        return min(early, LONGEST_PAUSE_S)
