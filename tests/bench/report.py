"""The README's generated part: a table, a picture of the cost, and one of the time saved."""

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from tests.bench import markdown
from tests.bench.campaign import Step
from tests.bench.contenders import Contender
from tests.bench.plots import Panel, Row, Series, bars, lines
from tests.bench.results import CPU_US, MAIN_FIGURE, SESSION_MS, Results
from tests.bench.scenarios import ROUND_TRIP_MS, SCENARIOS, Kind, Scenario, named
from tests.bench.tables import TIMES, made_by, measured_on, written

OURS = "smtpproxy"
COMPILED = "smtpproxy-compiled"
"""The label of the compiled build, if it is measured with `--beside`."""
ALONE = "direct"
PART = "benchmark"
COST_FILE, SAVING_FILE = "benchmark-cost.svg", "benchmark-saving.svg"
ADDING = "✓"

COSTS = tuple(scenario for scenario in SCENARIOS if scenario.kind is Kind.PASSING)
TITLE = "Time of a session with one message, by recipients"
HEADINGS = {
    "small": ("one small", "message"),
    "recipients": ("one message to", "50 recipients"),
    "many": ("20 messages", "in a session"),
    "large": ("one message", "of 10 MB"),
    "alone": ("one session", "at a time"),
}
IDLE, FAR = named("idle"), named("distant-100")
RECIPIENTS = (1, 10, 25, 50, 100)


def distant(recipients: int) -> Scenario:
    """Return the scenario of a distant client whose message has `recipients` recipients."""
    name = f"distant-{recipients}"
    return replace(FAR, short=name, name=name, recipients=recipients)


def steps(contenders: Sequence[Contender], repetitions: int) -> list[Step]:
    """Return what is to be measured.

    Args:
        contenders: All whose cost is compared; must include `direct` and `smtpproxy`, whose
            sessions over a long link are compared.
        repetitions: How often each is measured.
    """
    costly = [each for each in contenders if each.name != ALONE]
    both = [each for each in contenders if each.name in (ALONE, OURS)]
    others = [each for each in costly if each.name != OURS]
    links = [distant(recipients) for recipients in RECIPIENTS]
    return [
        Step([*COSTS, IDLE], costly, repetitions),
        Step(links, both, repetitions),
        Step([distant(RECIPIENTS[-1])], others, 1),  # the link's time is the same every time
    ]


def write(results: Results, readme: Path, pictures: Path) -> list[Path]:
    """Write both pictures and the generated part of the README; return all files."""
    cost, saving = pictures / COST_FILE, pictures / SAVING_FILE
    cost.write_text(cost_picture(results))
    saving.write_text(saving_picture(results))
    markdown.replace_part(readme, PART, readme_part(results, cost, saving, readme.parent))
    return [cost, saving, readme]


def readme_part(results: Results, cost: Path, saving: Path, root: Path) -> str:
    """Return the generated part of the README."""
    saving_text = f"Seconds of a session over a link of {ROUND_TRIP_MS} ms, by recipients"
    cost_text = f"CPU per message, {_reference(results)} = 1, of each contender in each scenario"
    return "\n\n".join(
        (
            f"![{saving_text}]({saving.relative_to(root)})",
            f"![{cost_text}]({cost.relative_to(root)})",
            _table(results),
            _beneath(results),
        )
    )


def _table(results: Results) -> str:
    head = ["", "adds PIPELINING", *(" ".join(HEADINGS[each.name]) for each in COSTS)]
    head += ["an idle session", f"100 recipients, {ROUND_TRIP_MS} ms away"]
    rows = [_table_row(results, name) for name in _order(results)]
    return markdown.table(head, rows)


def _table_row(results: Results, name: str) -> list[str]:
    cells = []
    for scenario in COSTS:
        ratio = results.ratio(scenario, name, CPU_US)
        spread = results.spread(scenario, name, CPU_US)
        if name == results.reference and spread:
            cells.append(f"{written(spread.median)} µs")
        else:
            cells.append(f"{written(ratio.median)} {TIMES}" if ratio else "-")
    idle = results.spread(IDLE, name, MAIN_FIGURE[Kind.IDLE])
    far = results.spread(distant(RECIPIENTS[-1]), name, SESSION_MS)
    label = results.labels[name]
    return [
        f"**{label}**" if name == OURS else label,
        ADDING if _pipelines(results, name) else "",
        *cells,
        f"{written(idle.median)} KiB" if idle else "-",
        f"{far.median / 1e3:.2f} s" if far else "-",
    ]


def _pipelines(results: Results, name: str) -> bool:
    """Return whether the clients really sent groups."""
    runs = results.good(distant(RECIPIENTS[-1]), name)
    return bool(runs) and all(run.mode == "pipelined" for run in runs)


def _beneath(results: Results) -> str:
    ours = results.versions.get(OURS, "")
    if COMPILED in results.labels:
        ours += f"; {COMPILED} is the wheel that pip builds with `SMTPPROXY_COMPILE=1`"
    return (
        f"CPU per message, all processes together; {_reference(results)}'s in microseconds, "
        f"the others as multiples of it. Measured by `{results.command}` on "
        f"{measured_on(results)}. {ours}; "
        "each contender is described in [tests/bench](tests/bench/README.md)."
    )


def cost_picture(results: Results) -> str:
    """Return the bar chart: CPU per message of each contender."""
    rows = [_bar_row(results, name, COSTS) for name in _order(results)]
    notes = (
        f"as multiples of {_reference(results)}, a TCP relay whose clients go in lock step",
        f"{ADDING} adds PIPELINING for an MTA that lacks it",
        made_by(results),
    )
    return bars("CPU per message", notes, [HEADINGS[each.name] for each in COSTS], rows)


def run_picture(results: Results) -> str:
    """Return the bar chart of any measurement: the main figure of each scenario."""
    rows = [_bar_row(results, name, results.scenarios) for name in results.labels]
    headings = [(scenario.short, scenario.name) for scenario in results.scenarios]
    note = f"as multiples of {_reference(results)}; {made_by(results)}"
    return bars(
        "CPU per message, memory of an idle session, time over a link", [note], headings, rows
    )


def _bar_row(results: Results, name: str, scenarios: Sequence[Scenario]) -> Row:
    ratios = (results.ratio(each, name, MAIN_FIGURE[each.kind]) for each in scenarios)
    values = [ratio.median if ratio else None for ratio in ratios]
    mark = f" {ADDING}" if _pipelines(results, name) else ""
    return Row(results.labels[name] + mark, values, ours=name.startswith(OURS))


def saving_picture(results: Results) -> str:
    """Return the line chart: seconds of a session, with the proxy and without."""
    series = [
        Series("lock step, no proxy", _seconds(results, ALONE), "second"),
        Series("through smtpproxy", _seconds(results, OURS), "ours"),
    ]
    panel = Panel(
        "",
        "recipients of the message",
        series,
        write_y="{:g} s".format,
        write_end="{:.2f} s".format,
    )
    notes = (
        f"a client {ROUND_TRIP_MS} ms away (round trip), an MTA without PIPELINING",
        made_by(results),
    )
    return lines(TITLE, notes, [panel], panel_width=520)


def _seconds(results: Results, name: str) -> list[tuple[float, float]]:
    points = []
    for recipients in RECIPIENTS:
        spread = results.spread(distant(recipients), name, SESSION_MS)
        if spread:
            points.append((float(recipients), spread.median / 1e3))
    return points


def _order(results: Results) -> list[str]:
    return [name for name in results.labels if results.measured(COSTS[0]) and name != ALONE]


def _reference(results: Results) -> str:
    return results.labels.get(results.reference, results.reference)
