"""Runs the demo: all dialogues at once, without and with the proxy, and sets the exit code."""

import asyncio
import io
import sys
from collections.abc import Sequence
from typing import Self

import uvloop
from rich.console import Console
from rich.live import Live
from rich.table import Table

from smtpproxy.demo.demo_report import ASCII_BLOCK, BLOCK, WAYS, bar, closing, opening, picture
from smtpproxy.demo.dialogues import Dialogue, golden
from smtpproxy.demo.harness import DialogueResult, perform, send_straight
from smtpproxy.demo.serve import stay_up
from smtpproxy.log import log
from smtpproxy.text.console import Terminal

REFRESH_S = 0.03
"""The shortest interval between two drawings of the progress."""
_EXAMPLES = {"flush-on-failure": "e", "last-recipient": "e", "data-accepted": "d"}
"""The dialogue that shows a fault best, by fault, if it is not (b)."""


def main(
    *,
    rtt: float,
    recipients: int,
    serve: bool,
    failing: str,
    port: int = 0,
    admin: str = "",
) -> int:
    """Run the demo.

    Args:
        rtt: The simulated round-trip time, in seconds.
        recipients: The number of recipients in dialogues (b) and (g).
        serve: Whether to listen for the user's own client instead, until interrupted.
        failing: The MTA's fault, a key of `FAILINGS`.
        port: With `serve`, the proxy's port; 0: a free one.
        admin: With `serve`, the address of the live page; empty: none.

    Raises:
        ConfigError: `admin` is no address for the page.
        OSError: An address of `serve` is in use.

    Returns:
        The exit code: 0 if every reply was correct, else 1.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal may not be UTF-8
    console = Terminal()
    log.configure("error", "auto")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if serve:
            return runner.run(stay_up(console, rtt_s=rtt, failing=failing, port=port, admin=admin))
        return runner.run(_demonstrate(console, golden(recipients, failing), rtt, failing))


async def _demonstrate(
    console: Console, dialogues: Sequence[Dialogue], rtt_s: float, failing: str
) -> int:
    example = next(d for d in dialogues if d.letter == _EXAMPLES.get(failing, "b"))
    with _Race(console, dialogues) as race:
        performances, without = await asyncio.gather(
            asyncio.gather(*(race.run(d, proxied, rtt_s) for d in dialogues for proxied in WAYS)),
            send_straight(example, rtt_s=rtt_s),
        )
    _compare_readings(performances)
    pairs = list(zip(performances[::2], performances[1::2], strict=True))
    console.print(opening(rtt_s, failing))
    for pair in pairs:
        console.print(picture(pair, console.width))
    console.print(closing(pairs, example, without, failing, _mark(console)))
    return 0 if all(performance.passed for performance in performances) else 1


def _compare_readings(performances: Sequence[DialogueResult]) -> None:
    """Check that the replies of (d) through the proxy are those of (c)."""
    replies = {p.dialogue.letter: p.outcome.replies for p in performances if p.proxied}
    for performance in performances:
        like = performance.dialogue.reads_like
        # Not the greeting and the EHLO reply: the MTAs of the two may have different faults.
        if performance.proxied and like and performance.outcome.replies[2:] != replies[like][2:]:
            performance.outcome.problems.append(f"the replies differ from those of ({like})")


def _mark(console: Console) -> str:
    return ASCII_BLOCK if console.options.ascii_only else BLOCK


class _Race:
    """The progress display while the dialogues run: a block for each wait that has ended."""

    def __init__(self, console: Console, dialogues: Sequence[Dialogue]) -> None:
        self._dialogues = dialogues
        self._waits = {(d.letter, proxied): 0 for d in dialogues for proxied in WAYS}
        self._moving = console.is_terminal
        self._mark = _mark(console)
        self._due: asyncio.TimerHandle | None = None
        self._live = Live(self._table(), console=console, transient=True, auto_refresh=False)

    def __enter__(self) -> Self:
        if self._moving:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._due is not None:
            self._due.cancel()
        if self._moving:
            self._live.stop()

    async def run(self, dialogue: Dialogue, proxied: bool, rtt_s: float) -> DialogueResult:
        def on_wait() -> None:
            self._waits[dialogue.letter, proxied] += 1
            if self._moving and self._due is None:
                self._due = asyncio.get_running_loop().call_later(REFRESH_S, self._refresh)

        return await perform(dialogue, proxied=proxied, rtt_s=rtt_s, on_wait=on_wait)

    def _refresh(self) -> None:
        """Redraw once for several waits, since drawing delays the dialogues."""
        self._due = None
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        most = max(1 + sum(map(len, dialogue.straight)) for dialogue in self._dialogues)
        table = Table.grid(padding=(0, 2))
        for dialogue in self._dialogues:
            for proxied, way in WAYS.items():
                title = "" if proxied else f"({dialogue.letter}) {dialogue.title}"
                waits = self._waits[dialogue.letter, proxied]
                table.add_row(title, way, bar(waits, most, proxied=proxied, mark=self._mark))
        return table
