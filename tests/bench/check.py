"""Whether contenders are correct: replies, their order, content, and no command sent early.

The MTA holds each reply back for 200 µs and empties its socket before it replies: a command that
reaches it early is lost, and counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.bench.contenders import Contender
from tests.bench.measure import FAILURES, Bench, Chain
from tests.bench.scenarios import Scenario

STRICT = ("--drain", "--reply-delay-us", "200", "--hash")
SESSIONS = 100


@dataclass(frozen=True)
class Trial:
    """A kind of session that contenders must serve, and the options of load generator and MTA."""

    title: str
    scenario: Scenario
    load: Sequence[object] = ()
    sink: Sequence[str] = ()


def _scenario(recipients: int) -> Scenario:
    return Scenario(
        short="",
        name="",
        sentence="",
        at_once=20,
        messages=3,
        recipients=recipients,
        message_bytes=3000,
    )


_MIXED = ("--refused-every", 3, "--check-texts")
TRIALS = (
    Trial("groups, where offered", _scenario(7)),
    Trial("groups, offered or not", _scenario(7), ("--forced",)),
    Trial("every third recipient refused", _scenario(9), _MIXED),
    Trial("the same, replies in several lines", _scenario(9), _MIXED, ("--multiline",)),
)


@dataclass
class Outcome:
    """The faults found in a trial; none if all went well."""

    faults: list[str] = field(default_factory=list)

    def expect(self, found: object, wanted: object, what: str) -> None:
        """Add a fault unless both values are equal."""
        if found != wanted:
            self.faults.append(f"{what}: {found} instead of {wanted}")


def check(bench: Bench, contenders: Sequence[Contender], console: Console) -> bool:
    """Try all contenders, print a table of their faults, and return whether there are none."""
    table = Table("contender", *(trial.title for trial in TRIALS), box=None)
    right = True
    for contender in contenders:
        if reason := contender.missing():
            console.print(
                f"[yellow]{contender.name} is left out:[/] {escape(reason)}", highlight=False
            )
            continue
        cells = []
        for trial in TRIALS:
            console.print(f"{contender.name}: {trial.title}", style="dim", highlight=False)
            faults = list(_try(bench, contender, trial))
            right = right and not faults
            cells.append(
                "[red]" + escape("\n".join(faults)) + "[/]" if faults else "[green]right[/]"
            )
        table.add_row(contender.name, *cells)
    console.print(table)
    return right


def _try(bench: Bench, contender: Contender, trial: Trial) -> Iterator[str]:
    chain = Chain(bench, contender, (*STRICT, *trial.sink))
    found: dict[str, Any] = {}
    error = ""
    try:
        with chain:
            found = chain.load(trial.scenario, "--sessions", SESSIONS, "--patience", 5, *trial.load)
    except FAILURES as failed:
        error = str(failed)
    if error:
        yield error.partition("\n")[0]
    else:
        yield from _faults(trial, found, chain.counted)


def _faults(trial: Trial, found: dict[str, Any], counted: dict[str, int]) -> Iterator[str]:
    messages = SESSIONS * trial.scenario.messages
    recipients = trial.scenario.recipients
    accepted = recipients - recipients // 3 if "--refused-every" in trial.load else recipients
    outcome = Outcome()
    outcome.expect(found["sessions"], SESSIONS, "sessions")
    outcome.expect(found["messages"], messages, "messages")
    outcome.expect(counted["messages"], messages, "messages at the MTA")
    outcome.expect(counted["recipients"], messages * accepted, "recipients at the MTA")
    outcome.expect(counted["contents"], 1, "different contents")
    outcome.expect(counted["violations"], 0, "sent too early")
    outcome.expect(sum(found["own_text"].values()), 0, "replies of its own")
    yield from outcome.faults
