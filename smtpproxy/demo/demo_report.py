"""The report: titles, time lines, summary and verdict, as rich renderables.

It owns all words around the time lines. It judges nothing: that has been done when it is called.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from smtpproxy.demo.dialogues import Dialogue
from smtpproxy.demo.harness import DialogueResult
from smtpproxy.demo.legacy import FAILINGS
from smtpproxy.demo.scripted_client import Outcome
from smtpproxy.timeline.drawing import MIN_WIDTH, fit
from smtpproxy.timeline.labels import BAD, GOOD, QUIET, command_label, join, reply_label

WAYS = {False: "directly", True: "through smtpproxy"}
BAR = 26
TABLE_BAR = 13
GAP = 4
BLOCK, ASCII_BLOCK = "■", "#"

Pair = tuple[DialogueResult, DialogueResult]
"""One dialogue, played directly and through the proxy."""


def bar(waits: int, most: int, *, proxied: bool, width: int = BAR, mark: str = BLOCK) -> Text:
    """A mark for each wait; if the most would not fit, all are drawn to one smaller scale."""
    scale = min(1.0, width / most)
    return Text(mark * max(waits > 0, round(waits * scale)), GOOD if proxied else BAD)


def opening(rtt_s: float, failing: str) -> RenderableType:
    """What is going to be seen."""
    return Lines(
        [
            Text(f"A legacy MTA without PIPELINING, {rtt_s * 1000:g} ms away.", "bold"),
            Text(f"Its failing: it {FAILINGS[failing]}."),
            Text("An arrow is one group: what stands on it travelled together.", QUIET),
            "",
        ]
    )


def picture(pair: Pair, width: int) -> RenderableType:
    """Both time lines of a dialogue under its title, side by side if there is room."""
    title = _title(pair[0].dialogue)
    if width < 2 * MIN_WIDTH + GAP:
        return Lines([title, *(_side(performance, pair) for performance in pair)])
    sides = Table.grid(padding=(0, GAP, 0, 0))
    sides.add_row(*(_side(performance, pair) for performance in pair))
    return Lines([title, sides])


def _side(performance: DialogueResult, pair: Pair) -> RenderableType:
    most = max(other.outcome.waits for other in pair)
    alike = performance.proxied and _alike(pair)
    problems = [Text(f"  ! {problem}", BAD) for problem in performance.outcome.problems]
    timeline = [] if alike else [performance.timeline]
    return Lines([_heading(performance, most, same=alike), *timeline, *problems, ""])


def closing(
    pairs: Sequence[Pair], telling: Dialogue, without: Outcome, failing: str, mark: str
) -> RenderableType:
    """The summary of all dialogues, what the MTA does without a proxy, and the verdict."""
    return Lines([_summary(pairs, mark), "", _without(telling, without, failing), _verdict(pairs)])


@dataclass(frozen=True, slots=True)
class Lines:
    """Parts one below the other, each line fit for the terminal."""

    parts: list[RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in self.parts:
            yield fit(part, options) if isinstance(part, Text) else part


def _alike(pair: Pair) -> bool:
    """Whether the client that does not pipeline was served the same by both."""
    straight, proxied = (performance.outcome for performance in pair)
    return straight.replies == proxied.replies and straight.waits == proxied.waits


def _heading(performance: DialogueResult, most: int, *, same: bool) -> Text:
    outcome, proxied = performance.outcome, performance.proxied
    return Text.assemble(
        (f"  {WAYS[proxied]:<19}", "bold"),
        (waits_told(outcome.waits, outcome.seconds), GOOD if proxied else BAD),
        "  ",
        bar(outcome.waits, most, proxied=proxied),
        ("  the same, reply for reply" if same else "", QUIET),
    )


def waits_told(waits: int, seconds: float) -> str:
    """How many waits, and how long it all took, in words of one width."""
    return f"{waits:>2} {'wait ' if waits == 1 else 'waits'}  {seconds:.2f} s"


def _summary(pairs: Sequence[Pair], mark: str) -> Table:
    most = max(performance.outcome.waits for pair in pairs for performance in pair)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style=QUIET)
    for heading in ("dialogue", "", "waits", "", "s", "replies"):
        justify: JustifyMethod = "right" if heading in {"waits", "s"} else "left"
        table.add_column(heading, justify=justify, no_wrap=True)
    for pair in pairs:
        for performance in pair:
            outcome, proxied = performance.outcome, performance.proxied
            table.add_row(
                "" if proxied else _title(performance.dialogue),
                "smtpproxy" if proxied else "directly",
                Text(str(outcome.waits), GOOD if proxied else BAD),
                bar(outcome.waits, most, proxied=proxied, width=TABLE_BAR, mark=mark),
                f"{outcome.seconds:.2f}",
                _checked(performance),
            )
    return table


def _title(dialogue: Dialogue) -> Text:
    return Text(f"({dialogue.letter}) {dialogue.title}", "bold")


def _checked(performance: DialogueResult) -> Text:
    if performance.passed:
        return Text(f"{len(performance.outcome.replies)} right", GOOD)
    return Text("WRONG", "bold red reverse")


def _without(telling: Dialogue, outcome: Outcome, failing: str) -> Text:
    """One line: what became of the largest group when it was sent to the MTA itself."""
    group = max(telling.straight, key=len)
    before = 1 + sum(len(other) for other in telling.straight[: telling.straight.index(group)])
    replies = outcome.replies[before : before + len(group)]
    sent = join([command_label(exchange.command) for exchange in group], 24)
    codes = [reply_label(reply, short=True) for reply in replies]
    answered = join(codes, 12 if outcome.ended else 20)
    lost = f"{outcome.ended}: {len(group) - len(replies)} of {len(group)} replies lost"
    return Text.assemble(
        ("Without it:  ", "bold"),
        sent,
        " ─▶ ",
        answered,
        ", " if replies and outcome.ended else "",
        (lost, BAD) if outcome.ended else (_HARM.get(failing, ", by mere luck"), QUIET),
    )


_HARM = {
    "last-recipient": ": yet one is valid",
    "data-accepted": ": yet none is valid",
}


def _verdict(pairs: Sequence[Pair]) -> Text:
    performances = [performance for pair in pairs for performance in pair]
    wrong = sum(not performance.passed for performance in performances)
    if wrong:
        return Text(f"{wrong} of {len(performances)} performances went wrong, see ! above.", BAD)
    checked = sum(len(performance.outcome.replies) for performance in performances)
    return Text.assemble(
        ("With it:     ", "bold"),
        (f"all {checked} replies right, in order", GOOD),
        "; for the MTA one command at a time",
    )
