"""The output of the demo: titles, drawings, summary and conclusion, as rich renderables."""

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
"""The width of the longest bar of a dialogue, in terminal cells."""
TABLE_BAR = 13
"""The width of the longest bar in the summary, in terminal cells."""
WIDEST = 200
"""Wider than the table can be, to measure it."""
GAP = 4
"""The cells between two drawings side by side."""
BLOCK, ASCII_BLOCK = "■", "#"

Pair = tuple[DialogueResult, DialogueResult]
"""The results of one dialogue, without and with the proxy."""


def bar(waits: int, most: int, *, proxied: bool, width: int = BAR, mark: str = BLOCK) -> Text:
    """Return a bar with a mark for each wait.

    Args:
        waits: The length of this bar.
        most: The length of the longest bar beside it; all are scaled down if it exceeds `width`.
        proxied: Whether the waits are those through the proxy, which sets the colour.
        width: The width of the longest bar, in terminal cells.
        mark: The character to draw with.
    """
    scale = min(1.0, width / most)
    return Text(mark * max(waits > 0, round(waits * scale)), GOOD if proxied else BAD)


def opening(rtt_s: float, failing: str) -> RenderableType:
    """Return the lines before the first drawing.

    Args:
        rtt_s: The simulated round-trip time.
        failing: The MTA's fault, a key of `FAILINGS`.
    """
    return Lines(
        [
            Text(f"A legacy MTA without PIPELINING, {rtt_s * 1000:g} ms away.", "bold"),
            Text(f"Its fault: it {FAILINGS[failing]}."),
            Text("Each arrow is one group of commands or replies, sent together.", QUIET),
            "",
        ]
    )


def picture(pair: Pair, width: int) -> RenderableType:
    """Return both drawings of a dialogue, side by side if `width`, in cells, is enough."""
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
    pairs: Sequence[Pair], example: Dialogue, without: Outcome, failing: str, mark: str
) -> RenderableType:
    """Return the summary and the conclusion.

    Args:
        pairs: The results of all dialogues.
        example: The dialogue that shows the fault best.
        without: How the MTA itself answered that dialogue's groups.
        failing: The MTA's fault, a key of `FAILINGS`.
        mark: The character of the bars.
    """
    return Lines([_Summary(pairs, mark), "", _without(example, without, failing), _verdict(pairs)])


@dataclass(frozen=True, slots=True)
class Lines:
    """Renderables below each other; text wraps at the width of the terminal."""

    parts: list[RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in self.parts:
            yield fit(part, options) if isinstance(part, Text) else part


def _alike(pair: Pair) -> bool:
    """Whether replies and waits were the same: the client did not pipeline."""
    straight, proxied = (performance.outcome for performance in pair)
    return straight.replies == proxied.replies and straight.waits == proxied.waits


def _heading(performance: DialogueResult, most: int, *, same: bool) -> Text:
    outcome, proxied = performance.outcome, performance.proxied
    return Text.assemble(
        (f"  {WAYS[proxied]:<19}", "bold"),
        (waits_text(outcome.waits, outcome.seconds), GOOD if proxied else BAD),
        "  ",
        bar(outcome.waits, most, proxied=proxied),
        ("  identical replies" if same else "", QUIET),
    )


def waits_text(waits: int, seconds: float) -> str:
    """Return the number of waits and the duration as text of fixed width."""
    return f"{waits:>2} {'wait ' if waits == 1 else 'waits'}  {seconds:.2f} s"


@dataclass(frozen=True, slots=True)
class _Summary:
    """The table of all dialogues; a narrow terminal gets fewer columns, not shorter words."""

    pairs: Sequence[Pair]
    mark: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for bars, titles in ((True, True), (False, True), (False, False)):
            table = self._table(bars=bars, titles=titles)
            if console.measure(table, options=options.update(width=WIDEST)).maximum <= (
                options.max_width
            ):
                break
        yield table

    def _table(self, *, bars: bool, titles: bool) -> Table:
        most = max(performance.outcome.waits for pair in self.pairs for performance in pair)
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style=QUIET)
        for heading in ("dialogue", "", "waits", *([""] if bars else []), "s", "replies"):
            justify: JustifyMethod = "right" if heading in {"waits", "s"} else "left"
            table.add_column(heading, justify=justify, no_wrap=True)
        for performance in (performance for pair in self.pairs for performance in pair):
            outcome, proxied = performance.outcome, performance.proxied
            title = _title(performance.dialogue)
            length = bar(outcome.waits, most, proxied=proxied, width=TABLE_BAR, mark=self.mark)
            table.add_row(
                "" if proxied else title if titles else title[:3],
                "smtpproxy" if proxied else "directly",
                Text(str(outcome.waits), GOOD if proxied else BAD),
                *([length] if bars else []),
                f"{outcome.seconds:.2f}",
                _checked(performance),
            )
        return table


def _title(dialogue: Dialogue) -> Text:
    return Text(f"({dialogue.letter}) {dialogue.title}", "bold")


def _checked(performance: DialogueResult) -> Text:
    if performance.passed:
        return Text(f"{len(performance.outcome.replies)} correct", GOOD)
    return Text("WRONG", "bold red reverse")


def _without(example: Dialogue, outcome: Outcome, failing: str) -> Text:
    """Return one line: how the MTA itself answered the largest group."""
    group = max(example.straight, key=len)
    before = 1 + sum(len(other) for other in example.straight[: example.straight.index(group)])
    replies = outcome.replies[before : before + len(group)]
    sent = join([command_label(exchange.command) for exchange in group], 24).text()
    codes = [reply_label(reply, short=True) for reply in replies]
    answered = join(codes, 12 if outcome.ended else 20).text()
    lost = f"{outcome.ended}: {len(group) - len(replies)} of {len(group)} replies lost"
    return Text.assemble(
        ("Without it:  ", "bold"),
        sent,
        " ─▶ ",
        answered,
        ", " if replies and outcome.ended else "",
        (lost, BAD) if outcome.ended else (_HARM.get(failing, ", but not guaranteed"), QUIET),
    )


_HARM = {
    "last-recipient": ": yet one is valid",
    "data-accepted": ": yet none is valid",
}


def _verdict(pairs: Sequence[Pair]) -> Text:
    performances = [performance for pair in pairs for performance in pair]
    wrong = sum(not performance.passed for performance in performances)
    if wrong:
        return Text(f"{wrong} of {len(performances)} dialogues failed, see ! above.", BAD)
    checked = sum(len(performance.outcome.replies) for performance in performances)
    return Text.assemble(
        ("With it:     ", "bold"),
        (f"all {checked} replies correct, in order", GOOD),
        "; one at a time to the MTA",
    )
