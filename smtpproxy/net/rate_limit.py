"""How many commands a second a session may send; who is faster is read more slowly."""

BURST_S = 1.0
"""So many seconds' worth of commands may come at once: a group is no offence."""
LONGEST_PAUSE_S = 1.0
"""After so long it is looked at again, so that a time limit never takes the pause for silence."""


class RateLimit:
    """Of one session."""

    __slots__ = ("_commands", "_interval", "_until", "paused", "was_slowed")

    def __init__(self, per_second: float, now: float) -> None:
        self._interval = 1 / per_second
        self._commands = 0
        self._until = now  # what has come is spread out to here
        self.paused = self.was_slowed = False

    def pause(self, commands: int, now: float) -> float:
        """Return for how many seconds the session is not to be read, if `commands` have come."""
        self._until = max(self._until, now) + (commands - self._commands) * self._interval
        self._commands = commands
        early = self._until - now - BURST_S
        if early <= 0:
            return 0.0
        self.was_slowed = True
        return min(early, LONGEST_PAUSE_S)
