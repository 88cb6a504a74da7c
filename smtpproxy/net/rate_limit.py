"""How many commands a second a session may send; who is faster is read more slowly."""

BURST_S = 1.0
"""So many seconds' worth of commands may come at once: a group is no offence."""
LONGEST_PAUSE_S = 1.0
"""After so long it is looked at again, so that a time limit never takes the pause for silence."""


class RateLimit:
    """For all sessions of a worker; `slowed` is how many of them were slowed down."""

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self.slowed = 0


class SessionRateLimit:
    """Of one session."""

    __slots__ = ("_commands", "_interval", "_rate_limit", "_until", "paused", "was_slowed")

    def __init__(self, rate_limit: RateLimit, now: float) -> None:
        self._rate_limit = rate_limit
        self._interval = 1 / rate_limit.per_second
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
        if not self.was_slowed:
            self.was_slowed = True
            self._rate_limit.slowed += 1
        return min(early, LONGEST_PAUSE_S)
