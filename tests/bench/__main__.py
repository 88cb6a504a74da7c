"""Measure smtpproxy and the alternatives to it: python -m tests.bench --help."""

import functools
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from rich.console import Console
from rich.table import Table

from tests.bench import campaign, core, machine, markdown, report, sizing, tables, trace
from tests.bench.campaign import Campaign, Step
from tests.bench.check import check as check_all
from tests.bench.contenders import Contender, all_contenders, another_smtpproxy
from tests.bench.measure import Bench, RunError
from tests.bench.native import CannotBuildError, build, cache_directory
from tests.bench.results import Results
from tests.bench.scenarios import SCENARIOS, Scenario, named

ROOT = Path(__file__).parents[2]
CONSOLE = Console(stderr=True)
"""For progress and warnings; figures go to standard output."""
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
DIRECTORY = click.Path(file_okay=False, path_type=Path)
WIDE = 120
"""The columns of tables when the output is not a terminal."""


class Options(NamedTuple):
    """How to measure."""

    reps: int
    seconds: float
    quiet: float
    out: Path


def _contenders(only: str, pythons: Sequence[str], *, more: Sequence[str] = ()) -> list[Contender]:
    """Return the contenders named, or those measured by default, and `more`."""
    known = {each.name: each for each in all_contenders()}
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    wanted = wanted or [name for name, each in known.items() if each.by_default]
    for each in pythons:
        name, _, python = each.partition("=")
        if not python:
            raise click.BadParameter(f"NAME=PYTHON is wanted, not {each}", param_hint="--beside")
        known[name] = another_smtpproxy(name, python)
        wanted.append(name)
    if unknown := [name for name in wanted if name not in known]:
        message = f"no {', '.join(unknown)}; there are {', '.join(known)}"
        raise click.BadParameter(message, param_hint="--only")
    return [each for name, each in known.items() if name in (*wanted, *more)]


def _scenarios(names: str) -> list[Scenario]:
    try:
        return [named(name.strip()) for name in names.split(",")] if names else list(SCENARIOS)
    except KeyError as error:
        known = ", ".join(f"{each.short} ({each.name})" for each in SCENARIOS)
        message = f"no {error.args[0]}; there are {known}"
        raise click.BadParameter(message, param_hint="--scenario") from None


def _bench(seconds: float) -> Bench:
    if not machine.isolate():
        CONSOLE.print("[yellow]this machine's loopback is used[/]: a network apart takes root")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended, too
    try:
        return Bench.here(build(), seconds)
    except CannotBuildError as error:
        raise click.ClickException(str(error)) from None


def _measure(steps: Sequence[Step], options: Options) -> Results:
    bench = _bench(options.seconds)
    results = Campaign(bench=bench, console=CONSOLE, quiet_s=options.quiet).measure(steps)
    CONSOLE.print(f"results: {campaign.save(results, options.out)}", highlight=False)
    if not any(not run.error for run in results.runs):
        raise click.ClickException("nothing could be measured")
    return results


def _measure_all(steps: Sequence[Step], options: Options) -> Results:
    """Measure for a document, which is not changed if the measurement is interrupted."""
    results = _measure(steps, options)
    if results.interrupted:
        raise click.ClickException("interrupted: no document is changed")
    tables.show(results, _output())
    return results


def _load(file: Path) -> Results:
    try:
        return campaign.load(file)
    except ValueError as error:
        raise click.ClickException(f"{file} has no results: {error}") from None


def _require_place(file: Path, part: str) -> None:
    """Fail before the measurement if the document has no place for its results."""
    try:
        markdown.require_place(file, part)
    except markdown.NoPlaceError as error:
        raise click.ClickException(str(error)) from None


def _output() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDE)


def _measuring(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of commands that measure; the command gets them as `options`."""

    @click.option(
        "--reps", type=click.IntRange(1), default=5, show_default=True, help="Repetitions."
    )
    @click.option(
        "--seconds",
        type=click.FloatRange(0.05),
        default=2.0,
        show_default=True,
        help="How long each run is.",
    )
    @click.option(
        "--quiet",
        type=click.FloatRange(0),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="Wait so long for a quiet machine before each run, and repeat runs that other "
        "programs disturb; 0: measure in any case.",
    )
    @click.option(
        "--out",
        type=DIRECTORY,
        default=cache_directory() / "results",
        show_default="the user's cache",
        metavar="DIR",
        help="Where results go.",
    )
    @functools.wraps(command)
    def with_options(reps: int, seconds: float, quiet: float, out: Path, **others: object) -> None:
        command(options=Options(reps, seconds, quiet, out), **others)

    return with_options


_FROM = click.option(
    "--from",
    "file",
    type=FILE,
    metavar="FILE",
    help="Measure nothing: take the results of an earlier run.",
)
_ONLY = click.option(
    "--only", default="", metavar="NAME,...", help="These contenders; `list` shows all."
)
_BESIDE = click.option(
    "--beside",
    multiple=True,
    metavar="NAME=PYTHON",
    help="Measure another Python's smtpproxy too: an earlier version, another build.",
)
_PAGE = click.option(
    "--page",
    type=FILE,
    default=ROOT / "deploy" / "sizing.md",
    show_default="the handbook's",
    metavar="FILE",
    help="The document whose generated part is written.",
)


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""
    \b
    Examples:
      python -m tests.bench list
      python -m tests.bench check --only haproxy,smtpproxy
      python -m tests.bench --only haproxy,smtpproxy,postfix-filter
      python -m tests.bench --scenario S1,S3 --reps 3 --only haproxy,smtpproxy
      python -m tests.bench --only haproxy,smtpproxy --beside before=/srv/old/.venv/bin/python
      python -m tests.bench core
      python -m tests.bench report

    A quiet machine with two CPUs makes the best figures: one for the contender, one for the load.
    """,
)
@_ONLY
@_BESIDE
@click.option(
    "--scenario", default="", metavar="NAME,...", help="These scenarios; `list` shows all."
)
@_measuring
@click.pass_context
def main(
    context: click.Context, options: Options, only: str, beside: tuple[str, ...], scenario: str
) -> None:
    """Measure smtpproxy and others before the same MTA, which lacks PIPELINING.

    Every contender is run in every scenario, one after the other, --reps times. Figures are medians
    over the repetitions, and ratios to HAProxy in the same repetition. CPU is that of all of a
    contender's processes. Results are printed as tables, and written as JSON and as a picture.
    """
    machine.raise_limits()
    if context.invoked_subcommand:
        return
    step = Step(_scenarios(scenario), _contenders(only, beside), options.reps)
    results = _measure([step], options)
    tables.show(results, _output())
    picture = options.out / f"{campaign.stem(results)}.svg"
    picture.write_text(report.run_picture(results))
    CONSOLE.print(f"picture: {picture}", highlight=False)


@main.command("list")
def show_list() -> None:
    """Show all scenarios, and all contenders with their versions, if installed."""
    table = Table("scenario", "", "", title="Scenarios", title_justify="left", box=None)
    for scenario in SCENARIOS:
        table.add_row(scenario.short, scenario.name, scenario.sentence)
    console = _output()
    console.print(table, "")
    table = Table("contender", "", "here", title="Contenders", title_justify="left", box=None)
    for contender in all_contenders():
        reason = contender.missing()
        here = f"[yellow]no: {reason}[/]" if reason else contender.read_version() or "yes"
        name = contender.name if contender.by_default else f"[dim]{contender.name}[/]"
        table.add_row(name, contender.note, here)
    console.print(table)
    console.print("[dim]Those in grey are measured only when they are named.[/]")


@main.command()
@_ONLY
@_BESIDE
@click.pass_context
def check(context: click.Context, only: str, beside: tuple[str, ...]) -> None:
    """Check that contenders are correct: replies, content, order; exit code 1 if one is not."""
    bench = _bench(seconds=1.0)
    context.exit(0 if check_all(bench, _contenders(only, beside), _output()) else 1)


@main.command("report")
@_FROM
@_ONLY
@_BESIDE
@click.option(
    "--readme",
    type=FILE,
    default=ROOT / "README.md",
    show_default="the project's",
    metavar="FILE",
    help="The document whose generated part is written; pictures go to deploy/ beside it.",
)
@_measuring
def make_report(
    options: Options, file: Path | None, only: str, beside: tuple[str, ...], readme: Path
) -> None:
    """Measure, and write the README's table and its two pictures."""
    _require_place(readme, report.PART)
    if file:
        results = _load(file)
    else:
        contenders = _contenders(only, beside, more=(report.ALONE,))
        results = _measure_all(report.steps(contenders, options.reps), options)
    for path in report.write(results, readme, readme.parent / "deploy"):
        click.echo(path)


@main.command("sizing")
@_FROM
@_PAGE
@_measuring
def make_sizing(options: Options, file: Path | None, page: Path) -> None:
    """Measure how the cost grows with the work, and write the sizing page, with its pictures."""
    _require_place(page, sizing.PART)
    if file:
        results = _load(file)
    else:
        contenders = _contenders(",".join(sizing.WORKERS), ())
        results = _measure_all(sizing.steps(contenders, options.reps), options)
    for path in sizing.write(results, page):
        click.echo(path)


@main.command("lease")
@_PAGE
@_measuring
def make_lease(options: Options, page: Path) -> None:
    """Measure what leases of a cluster cost, simulate a full store, and write their part.

    Needs the extra `cluster`, and redis-server or the package redis-tools.
    """
    from tests.bench import lease  # needs the extra

    _require_place(page, lease.PART)
    bench = _bench(options.seconds)
    try:
        costs = lease.measure(bench.cpus, options.seconds)
    except (RunError, pytest.skip.Exception) as error:  # skip: there is no server
        raise click.ClickException(str(error)) from None
    lease.show(costs, _output())
    with (
        tempfile.TemporaryDirectory() as directory,
        lease.server(Path(directory), bench.cpus) as store,
    ):
        step = lease.step(_contenders("smtpproxy", ())[0], store, options.reps)
        results = _measure_all([step], options)
    click.echo(lease.write(results, costs, page))


@main.command("core")
def measure_core() -> None:
    """Measure the protocol core and the log alone, without sockets."""
    core.main()


@main.command("trace")
def measure_trace() -> None:
    """Measure the cost of a trace in addition to the log, without sockets."""
    trace.main()


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m tests.bench"))
