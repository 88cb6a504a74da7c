"""What one core does, and how the cost grows with sessions, recipients and message size.

Measured with one worker and with two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench import markdown
from tests.bench.campaign import Step
from tests.bench.contenders import Contender
from tests.bench.machine import most_sessions
from tests.bench.plots import Panel, Point, Series, lines
from tests.bench.results import (
    CPU_US,
    IDLE_CPU,
    IDLE_PER_CORE,
    MESSAGES_PER_CORE,
    PEAK_MIB,
    RESIDENT_MIB,
    SESSION_KIB,
    Figure,
    Results,
)
from tests.bench.scenarios import Kind, Scenario, named
from tests.bench.tables import TIMES, made_by, measured_on, written

PART = "figures"
WORKERS = {"smtpproxy": "1 worker", "smtpproxy-2-workers": "2 workers"}
STYLES = {"smtpproxy": "ours", "smtpproxy-2-workers": "second"}
SESSIONS_MOST = 10_000
IDLE = Scenario(
    short="idle",
    name="idle-sessions",
    sentence=f"{SESSIONS_MOST:,} sessions, or as many as can be open, that send nothing",
    kind=Kind.IDLE,
    at_once=SESSIONS_MOST,
)
OF_A_CORE = (
    ("messages a second, one in each session", named("small"), MESSAGES_PER_CORE),
    ("messages a second, 20 in each session", named("many"), MESSAGES_PER_CORE),
    ("messages a second to 50 recipients", named("recipients"), MESSAGES_PER_CORE),
    ("memory of an idle session, KiB", IDLE, SESSION_KIB),
    ("CPU of 1,000 idle sessions, %", IDLE, IDLE_CPU),
    ("idle sessions, as far as CPU goes", IDLE, IDLE_PER_CORE),
)
"""What one core does: the name of each figure, and where it comes from."""


def size(size_bytes: float) -> str:
    """Return a size in MB, KB or bytes, as text."""
    for unit, scale in (("MB", 1e6), ("KB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:,.3g} {unit}"
    return f"{size_bytes:g} bytes"


@dataclass(frozen=True)
class Sweep:
    """Scenarios that differ in one quantity."""

    name: str
    title: str
    axis: str
    """The label of the axis."""
    values: Callable[[], Sequence[int]]
    """Returns the values of the quantity to measure."""
    scenario: Callable[[int], Scenario]
    """Returns the scenario of a value."""
    value: Callable[[Scenario], int]
    """Returns the value of a scenario."""
    more_work: bool
    """Whether a message takes more work with a larger value, so that its CPU may grow."""
    memory: Figure
    """The figure by which a machine's memory is chosen."""
    write: Callable[[float], str] = "{:,g}".format
    """Formats a value."""

    def scenarios(self) -> list[Scenario]:
        """Return one scenario for each value."""
        return [self.scenario(value) for value in self.values()]

    def points(self, results: Results, contender: str, figure: Figure) -> list[Point]:
        """Return a contender's medians over the values that were measured."""
        found = []
        for scenario in results.scenarios:
            if scenario.name.startswith(f"{self.name}-"):
                spread = results.spread(scenario, contender, figure)
                found += [(float(self.value(scenario)), spread.median)] if spread else []
        return found


def _session_counts() -> list[int]:
    most = min(SESSIONS_MOST, most_sessions())
    return [*(count for count in (1, 10, 100, 1000) if count < most), most]


def _held(sessions: int) -> Scenario:
    name = f"sessions-{sessions}"
    sentence = f"{sessions:,} sessions open, and each sends message after message"
    return Scenario(short=name, name=name, sentence=sentence, kind=Kind.HELD, at_once=sessions)


def _to(recipients: int) -> Scenario:
    name = f"recipients-{recipients}"
    sentence = f"a message to {recipients:,} recipients, 20 sessions at once"
    return Scenario(short=name, name=name, sentence=sentence, at_once=20, recipients=recipients)


def _of_size(size_bytes: int) -> Scenario:
    name = f"size-{size_bytes}"
    sentence = f"a message of {size(size_bytes)}, 4 sessions at once"
    return Scenario(short=name, name=name, sentence=sentence, at_once=4, message_bytes=size_bytes)


SWEEPS = (
    Sweep(
        name="sessions",
        title="Sessions at once",
        axis="sessions at once, each sending messages of 2 KB",
        values=_session_counts,
        scenario=_held,
        value=lambda scenario: scenario.at_once,
        more_work=False,
        memory=RESIDENT_MIB,
    ),
    Sweep(
        name="recipients",
        title="Recipients of a message",
        axis="recipients of a message, 20 sessions at once",
        values=lambda: (1, 10, 100, 1000),
        scenario=_to,
        value=lambda scenario: scenario.recipients,
        more_work=True,
        memory=PEAK_MIB,
    ),
    Sweep(
        name="size",
        title="Size of a message",
        axis="size of a message, 4 sessions at once",
        values=lambda: [10**power for power in range(3, 9)],
        scenario=_of_size,
        value=lambda scenario: scenario.message_bytes,
        more_work=True,
        memory=PEAK_MIB,
        write=size,
    ),
)


def steps(contenders: Sequence[Contender], repetitions: int) -> list[Step]:
    """Return what is to be measured."""
    # So many that their CPU can be measured at all.
    contenders = [replace(each, idle_most=_session_counts()[-1]) for each in contenders]
    of_a_core = list(dict.fromkeys(scenario for _, scenario, _ in OF_A_CORE))
    sweeps = [Step(sweep.scenarios(), contenders, repetitions) for sweep in SWEEPS]
    return [Step(of_a_core, contenders, repetitions), *sweeps]


def write(results: Results, page: Path) -> list[Path]:
    """Write a picture for each sweep beside the page, and the page's figures.

    Returns:
        All files that were written.
    """
    parts, files = ["### One core", _of_a_core(results)], []
    for sweep in SWEEPS:
        file = page.parent / f"sizing-{sweep.name}.svg"
        file.write_text(picture(results, sweep))
        files.append(file)
        image = f"![CPU per message, and memory, by {sweep.axis}]({file.name})"
        parts += [f"### {sweep.title}", image, _table(results, sweep), _growth(results, sweep)]
    version = results.versions.get("smtpproxy", "")
    parts.append(f"Measured by `{results.command}` on {measured_on(results)}. {version}.")
    markdown.replace_part(page, PART, "\n\n".join(parts))
    return [*files, page]


def picture(results: Results, sweep: Sweep) -> str:
    """Return the two panels of a sweep: CPU per message, and memory."""
    panels = [
        Panel(
            figure.title,
            sweep.axis,
            [
                Series(workers, sweep.points(results, contender, figure), STYLES[contender])
                for contender, workers in WORKERS.items()
            ],
            logarithmic_x=True,
            logarithmic_y=figure is CPU_US and sweep.more_work,
            write_x=sweep.write,
        )
        for figure in (CPU_US, sweep.memory)
    ]
    return lines(sweep.title, [made_by(results)], panels, panel_width=280)


def _table(results: Results, sweep: Sweep) -> str:
    snapshot = (CPU_US, sweep.memory)
    columns = [
        (f"{figure.title}, {workers}", dict(sweep.points(results, contender, figure)))
        for contender, workers in WORKERS.items()
        for figure in snapshot
    ]
    values = sorted({value for _, points in columns for value in points})
    head = [sweep.title.lower(), *(title for title, _ in columns)]
    rows = [
        [sweep.write(value), *(written(points.get(value)) for _, points in columns)]
        for value in values
    ]
    return markdown.table(head, rows)


def _of_a_core(results: Results) -> str:
    rows = []
    for name, scenario, figure in OF_A_CORE:
        spreads = [results.spread(scenario, contender, figure) for contender in WORKERS]
        rows.append([name, *(written(each.median if each else None) for each in spreads)])
    return markdown.table(["of one core", *WORKERS.values()], rows)


def _growth(results: Results, sweep: Sweep) -> str:
    """Return how CPU and memory grow from the smallest value to the largest."""
    texts = []
    for contender, workers in WORKERS.items():
        cpu = sweep.points(results, contender, CPU_US)
        memory = sweep.points(results, contender, sweep.memory)
        if len(cpu) > 1:
            (least, _), (most, _) = cpu[0], cpu[-1]
            texts.append(
                f"{workers}, from {sweep.write(least)} to {sweep.write(most)} "
                f"({most / least:,.0f} times as much): CPU per message {TIMES} {_times(cpu)}, "
                f"memory {TIMES} {_times(memory)}."
            )
    return "  \n".join(texts)


def _times(points: Sequence[Point]) -> str:
    return written(points[-1][1] / points[0][1])
