"""Results as tables for a terminal, and the format of figures."""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.bench.results import (
    CPU_US,
    IDLE_CPU,
    MAIN_FIGURE,
    MESSAGES_PER_S,
    PEAK_MIB,
    RESIDENT_MIB,
    SESSION_KIB,
    SESSION_MS,
    Figure,
    Results,
    Spread,
)
from tests.bench.scenarios import Kind, Scenario

TIMES = "\N{MULTIPLICATION SIGN}"

COLUMNS: dict[Kind, tuple[Figure, ...]] = {
    Kind.PASSING: (CPU_US, MESSAGES_PER_S, SESSION_MS, PEAK_MIB),
    Kind.HELD: (CPU_US, MESSAGES_PER_S, RESIDENT_MIB, SESSION_KIB),
    Kind.IDLE: (SESSION_KIB, RESIDENT_MIB, IDLE_CPU),
    Kind.DISTANT: (SESSION_MS,),
}


def written(value: float | None) -> str:
    """Return a figure with three significant digits; "-" for None."""
    if value is None:
        return "-"
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def with_range(spread: Spread | None) -> str:
    """Return a median with the smallest and the largest value."""
    if spread is None:
        return "-"
    median, low, high = map(written, spread)
    return median if low == high else f"{median} [dim]({low} to {high})[/]"


def show(results: Results, console: Console) -> None:
    """Print a table for each scenario, one of all scenarios, and the footnotes."""
    for scenario in results.scenarios:
        console.print(_of_scenario(results, scenario), "")
    if len(results.scenarios) > 1 and len(results.labels) > 1:
        console.print(_of_all(results), "")
    for line in footnotes(results):
        console.print(escape(line), style="dim", highlight=False)


def footnotes(results: Results) -> Iterator[str]:
    """Yield the machine, how much repetitions differ, versions, and contenders left out."""
    yield measured_on(results)
    for name, version in results.versions.items():
        if version:
            yield f"{name}: {version}"
    for name, reason in results.skipped.items():
        yield f"{name} was left out: {reason}"


def made_by(results: Results) -> str:
    """Return the date and the command, for the note in every picture."""
    return f"{results.date.partition(' ')[0]}: {results.command}"


def measured_on(results: Results) -> str:
    """Return date, machine and noise in a line."""
    machine = results.machine
    text = (
        f"{results.date.partition(' ')[0]}, {machine['cpu']}, {machine['cpus']} CPUs, "
        f"{machine['kernel']}, Python {machine['python']}; "
        f"medians of {results.repetitions} interleaved runs of {results.seconds:g} s"
    )
    if results.repetitions > 1 and (noise := results.noise()):
        text += f", which are {noise.median:.0%} apart ({noise.high:.0%} at most)"
    return text


def _of_scenario(results: Results, scenario: Scenario) -> Table:
    snapshot = COLUMNS[scenario.kind]
    main = MAIN_FIGURE[scenario.kind]
    table = Table(
        title=f"{scenario.short} {scenario.name}: {scenario.sentence}",
        title_justify="left",
        box=None,
    )
    table.add_column("contender", no_wrap=True)
    for figure in snapshot:
        table.add_column(figure.title, justify="right")
    table.add_column(f"{results.reference} = 1", justify="right")
    table.add_column("failed", justify="right")
    for contender in results.measured(scenario):
        runs = results.good(scenario, contender)
        if not runs:
            reason = results.error(scenario, contender).partition("\n")[0]
            table.add_row(contender, f"[red]{escape(reason)}[/]")
            continue
        cells = [with_range(results.spread(scenario, contender, figure)) for figure in snapshot]
        ratio = with_range(results.ratio(scenario, contender, main))
        failed = sum(run.failed + run.violations for run in runs)
        table.add_row(contender, *cells, ratio, f"[red]{failed}[/]" if failed else "")
    return table


def _of_all(results: Results) -> Table:
    table = Table(title=f"all scenarios, {results.reference} = 1", title_justify="left", box=None)
    table.add_column("contender", no_wrap=True)
    for scenario in results.scenarios:
        table.add_column(f"{scenario.short}\n{scenario.name}", justify="right")
    for contender in results.labels:
        cells = (
            results.ratio(scenario, contender, MAIN_FIGURE[scenario.kind])
            for scenario in results.scenarios
        )
        table.add_row(contender, *(written(cell.median if cell else None) for cell in cells))
    return table
