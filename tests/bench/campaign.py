"""A measurement: every contender in every scenario, one after the other, repeatedly."""

import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.bench import machine
from tests.bench.contenders import REFERENCE, Contender
from tests.bench.measure import Bench, RunError
from tests.bench.results import MAIN_FIGURE, Results, Run
from tests.bench.scenarios import Scenario
from tests.bench.tables import written
from tests.bench.usage import wait_until_quiet

OTHERS_MOST = 0.08
"""A run is made again if other programs have used more of one CPU than this."""
TRIES = 3


class Step(Struct):
    """Some contenders in some scenarios, `repetitions` times."""

    scenarios: Sequence[Scenario]
    contenders: Sequence[Contender]
    repetitions: int


class Campaign(Struct, frozen=True, kw_only=True):
    """How to measure."""

    bench: Bench
    console: Console
    quiet_s: float
    """How long to wait before each run until other programs are idle, in seconds; 0: not at all."""

    def measure(self, steps: Sequence[Step]) -> Results:
        """Make all runs and return the results; after Ctrl-C, those of the runs made until then."""
        steps, skipped = _leave_out_missing(steps)
        results = _blank(steps, skipped, self.bench.seconds)
        for name, reason in skipped.items():
            self.console.print(f"[yellow]{name} is left out:[/] {escape(reason)}", highlight=False)
        os.sched_setaffinity(0, self.bench.cpus[-1:])  # away from the contender
        runs = list(_runs(steps))
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        shown = [TextColumn(each) if isinstance(each, str) else each for each in columns]
        with Progress(*shown, console=self.console, transient=True) as progress:
            task = progress.add_task("", total=len(runs))
            try:
                for scenario, contender, repetition in runs:
                    progress.update(task, description=f"{scenario.name}: {contender.name}")
                    run = self._run_quietly(scenario, contender)
                    run.repetition = repetition
                    results.runs.append(run)
                    self.console.print(_line(scenario, run), highlight=False, soft_wrap=True)
                    progress.advance(task)
            except KeyboardInterrupt:
                results.interrupted = True
        return results

    def _run_quietly(self, scenario: Scenario, contender: Contender) -> Run:
        """Repeat a run, at most TRIES times, until other programs are quiet; return the last."""
        for _ in range(TRIES):
            if self.quiet_s:
                wait_until_quiet(self.quiet_s)
            try:
                run = self.bench.measure(contender, scenario)
            except RunError as error:
                return Run(scenario=scenario.name, contender=contender.name, error=str(error))
            if not self.quiet_s or run.others < OTHERS_MOST:
                break
        return run


def save(results: Results, directory: Path) -> Path:
    """Write results as JSON into a directory, which is created if missing; return the file."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{stem(results)}.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    return file


def stem(results: Results) -> str:
    """Return the name of the files written about results, without the extension."""
    return results.date.replace(":", "").replace(" ", "-")


def load(file: Path) -> Results:
    """Read results that `save` has written.

    Raises:
        ValueError: the file holds no results.
    """
    return msgspec.json.decode(file.read_bytes(), type=Results)


def _leave_out_missing(steps: Sequence[Step]) -> tuple[list[Step], dict[str, str]]:
    skipped: dict[str, str] = {}
    for step in steps:
        for contender in step.contenders:
            if reason := contender.missing():
                skipped[contender.name] = reason
    there = [
        Step(
            step.scenarios,
            [each for each in step.contenders if each.name not in skipped],
            step.repetitions,
        )
        for step in steps
    ]
    return there, skipped


def _blank(steps: Sequence[Step], skipped: dict[str, str], seconds: float) -> Results:
    contenders = {each.name: each for step in steps for each in step.contenders}
    return Results(
        command=shlex.join(["python", *sys.orig_argv[1:]]),
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
        machine={**machine.describe(), "commit": machine.commit()},
        versions={name: each.read_version() for name, each in contenders.items()},
        skipped=skipped,
        seconds=seconds,
        repetitions=max((step.repetitions for step in steps), default=0),
        reference=REFERENCE if REFERENCE in contenders else next(iter(contenders), ""),
        scenarios=list({each.name: each for step in steps for each in step.scenarios}.values()),
        labels={name: each.label for name, each in contenders.items()},
    )


def _runs(steps: Sequence[Step]) -> Iterator[tuple[Scenario, Contender, int]]:
    """Yield all runs; each repetition has every contender, so that drift affects all alike."""
    for step in steps:
        for scenario in step.scenarios:
            for repetition in range(step.repetitions):
                for contender in step.contenders:
                    yield scenario, contender, repetition


def _line(scenario: Scenario, run: Run) -> str:
    what = f"{time.strftime('%H:%M:%S')} {scenario.name:12} {run.contender:20}"
    if run.error:
        return f"{what} [red]{escape(run.error)}[/]"
    figure = MAIN_FIGURE[scenario.kind]
    value = figure.of(run)
    shown = f"{figure.title} {written(value)}" if value is not None else ""
    failed = f", [red]{run.failed} sessions failed[/]" if run.failed else ""
    violations = f", [red]{run.violations} commands sent too early[/]" if run.violations else ""
    noisy = (
        f", [yellow]others used {run.others:.0%} of a CPU[/]" if run.others >= OTHERS_MOST else ""
    )
    return f"{what} {shown}{failed}{violations}{noisy}"
