"""Results: each run, and medians and ranges over the repetitions."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from msgspec import Struct, field

from tests.bench.scenarios import Kind, Scenario


class Run(Struct, kw_only=True):
    """One contender in one scenario, once."""

    scenario: str
    contender: str
    repetition: int = 0
    error: str = ""
    """Why there are no figures."""
    seconds: float = 0
    sessions: int = 0
    failed: int = 0
    messages: int = 0
    cpu_s: float | None = None
    user_s: float | None = None
    session_s: float = 0
    """The median time of a session."""
    session_p99_s: float = 0
    waits: int = 0
    mode: str = ""
    open_sessions: int = 0
    """How many sessions were open when memory was read."""
    before_kib: int = 0
    """The resident memory with no session open."""
    resident_kib: int = 0
    peak_kib: int = 0
    load_cpu_s: float = 0
    others: float = 0
    """The share of one CPU that other programs used during the run."""
    violations: int = 0
    """How often the contender sent the MTA a command before the MTA was ready for it."""


class Figure(NamedTuple):
    """A figure to compare; `of` returns None for a run without it."""

    title: str
    of: Callable[[Run], float | None]


def _cpu_us(run: Run) -> float | None:
    if run.cpu_s is None or not run.messages:
        return None
    return run.cpu_s * 1e6 / run.messages


def _session_kib(run: Run) -> float | None:
    if not run.open_sessions or not run.resident_kib:
        return None
    return (run.resident_kib - run.before_kib) / run.open_sessions


def _messages_per_core(run: Run) -> float | None:
    cpu_us = _cpu_us(run)
    return 1e6 / cpu_us if cpu_us else None


def _idle_cpu(run: Run) -> float | None:
    """Return the share of a core that 1,000 idle sessions use, in percent."""
    if run.messages or not run.open_sessions or run.cpu_s is None or not run.seconds:
        return None
    return 100 * run.cpu_s / run.seconds * 1000 / run.open_sessions


def _idle_per_core(run: Run) -> float | None:
    share = _idle_cpu(run)
    return 1000 * 100 / share if share else None


CPU_US = Figure("CPU per message, µs", _cpu_us)
SESSION_MS = Figure("session, ms", lambda run: run.session_s * 1e3 or None)
MESSAGES_PER_S = Figure("messages per second", lambda run: run.messages / run.seconds)
SESSION_KIB = Figure("memory per session, KiB", _session_kib)
MESSAGES_PER_CORE = Figure("messages a second, per core", _messages_per_core)
IDLE_CPU = Figure("CPU of 1,000 idle sessions, % of a core", _idle_cpu)
IDLE_PER_CORE = Figure("idle sessions per core, by CPU", _idle_per_core)
PEAK_MIB = Figure("peak memory, MiB", lambda run: run.peak_kib / 1024 or None)
RESIDENT_MIB = Figure("memory, MiB", lambda run: run.resident_kib / 1024 or None)

MAIN_FIGURE = {
    Kind.PASSING: CPU_US,
    Kind.HELD: CPU_US,
    Kind.IDLE: SESSION_KIB,
    Kind.DISTANT: SESSION_MS,
}


class Spread(NamedTuple):
    """The median of some repetitions, and the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """Return the spread of values; None if there are no values."""
        return cls(statistics.median(values), min(values), max(values)) if values else None

    @property
    def width(self) -> float:
        """The range as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


class Results(Struct, kw_only=True):
    """A measurement."""

    command: str
    """The command line that measured."""
    date: str
    """When it began, UTC."""
    machine: dict[str, str]
    """See `machine.describe`."""
    versions: dict[str, str]
    """The version of each contender."""
    skipped: dict[str, str]
    """The contenders left out, each with the reason."""
    seconds: float
    """How long each run was."""
    repetitions: int
    reference: str
    """The contender that ratios compare with, if it was measured."""
    scenarios: list[Scenario]
    labels: dict[str, str]
    """The label of each contender, in the order of the tables."""
    runs: list[Run] = field(default_factory=list)
    interrupted: bool = False
    """Whether it ended before all runs were made."""

    def measured(self, scenario: Scenario) -> list[str]:
        """Return the contenders measured in a scenario, in the order of the tables."""
        there = {run.contender for run in self._of(scenario.name)}
        return [name for name in self.labels if name in there]

    def good(self, scenario: Scenario, contender: str) -> list[Run]:
        """Return the runs that have figures."""
        return [run for run in self._of(scenario.name, contender) if not run.error]

    def error(self, scenario: Scenario, contender: str) -> str:
        """Return why a contender has no figures."""
        return next((run.error for run in self._of(scenario.name, contender) if run.error), "")

    def spread(self, scenario: Scenario, contender: str, figure: Figure) -> Spread | None:
        """Return the spread of a figure over the repetitions."""
        values = (figure.of(run) for run in self.good(scenario, contender))
        return Spread.of([value for value in values if value is not None])

    def ratio(self, scenario: Scenario, contender: str, figure: Figure) -> Spread | None:
        """Return the spread of a figure divided by the reference's in the same repetition."""
        beside = {
            run.repetition: value
            for run in self.good(scenario, self.reference)
            if (value := figure.of(run))
        }
        return Spread.of(
            [
                value / beside[run.repetition]
                for run in self.good(scenario, contender)
                if run.repetition in beside and (value := figure.of(run)) is not None
            ]
        )

    def noise(self) -> Spread | None:
        """Return how much repetitions differ, over all scenarios and contenders."""
        spreads = (
            self.spread(scenario, contender, MAIN_FIGURE[scenario.kind])
            for scenario in self.scenarios
            for contender in self.measured(scenario)
        )
        return Spread.of([spread.width for spread in spreads if spread])

    def _of(self, scenario: str, contender: str = "") -> Iterator[Run]:
        for run in self.runs:
            if run.scenario == scenario and contender in ("", run.contender):
                yield run
