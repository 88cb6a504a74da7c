"""Runs one dialogue against the embedded MTA, without or with the real proxy in front.

It starts and stops MTA, proxy and simulated network, and checks every reply, every message that the
MTA accepted, and that the MTA received nothing while it still owed a reply.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from smtpproxy.config.loader import from_flags
from smtpproxy.demo.dialogues import Dialogue
from smtpproxy.demo.legacy import LegacyMTA
from smtpproxy.demo.scripted_client import Outcome, play
from smtpproxy.demo.simulated_network import SimulatedNetwork
from smtpproxy.demo.timeline_rows import timeline
from smtpproxy.timeline.drawing import Timeline
from smtpproxy.worker.app import App

START_DEADLINE_S = 5.0
STOP_DEADLINE_S = 5.0
REPLY_DEADLINE_S = 2.0
ANY_PORT = "127.0.0.1:0"


@dataclass(slots=True)
class DialogueResult:
    """The result of one dialogue, without or with the proxy."""

    dialogue: Dialogue
    proxied: bool
    outcome: Outcome
    timeline: Timeline
    """The drawing of the session."""

    @property
    def passed(self) -> bool:
        """Whether there was no problem."""
        return not self.outcome.problems


@asynccontextmanager
async def proxy_before(backend: str, *, early: bool = False) -> AsyncIterator[str]:
    """Run the real proxy in this process, and yield its address.

    Args:
        backend: The MTA's address, HOST:PORT.
        early: Whether it offers early pipelining.
    """
    settings = from_flags(
        None, listen=[ANY_PORT], backend=[backend], log_format=None, log_level="error"
    )
    listeners = {
        name: replace(listener, early_pipelining=early)
        for name, listener in settings.listeners.items()
    }
    async with running(App(replace(settings, listeners=listeners))) as app:
        yield app.addresses[0]


@asynccontextmanager
async def running(app: App) -> AsyncIterator[App]:
    """Start the proxy, and stop it at the end."""
    async with asyncio.timeout(START_DEADLINE_S):
        await app.start()
    try:
        yield app
    finally:
        async with asyncio.timeout(STOP_DEADLINE_S):
            await app.stop()


@asynccontextmanager
async def no_proxy(backend: str) -> AsyncIterator[str]:
    """Yield the MTA's own address, in place of `proxy_before`."""
    yield backend


async def perform(
    dialogue: Dialogue, *, proxied: bool, rtt_s: float, on_wait: Callable[[], None] | None = None
) -> DialogueResult:
    """Run a dialogue with its own MTA and network, and check the result.

    Errors become problems of the result.

    Args:
        dialogue: The dialogue.
        proxied: Whether to put the proxy in front of the MTA.
        rtt_s: The simulated round-trip time.
        on_wait: Called after each wait of the client.
    """
    performance = DialogueResult(dialogue, proxied, Outcome(), Timeline(()))
    try:
        await _perform(performance, rtt_s, on_wait)
    except (OSError, TimeoutError) as error:
        why = str(error) or "deadline passed"
        performance.outcome.problems.append(f"start or stop failed: {why}")
    return performance


async def _perform(
    performance: DialogueResult, rtt_s: float, on_wait: Callable[[], None] | None
) -> None:
    dialogue, proxied = performance.dialogue, performance.proxied
    between = partial(proxy_before, early=dialogue.early) if proxied else no_proxy
    async with (
        LegacyMTA(failing=dialogue.failing, refused=dialogue.refused) as mta,
        between(mta.address) as address,
        SimulatedNetwork(address, rtt_s) as network,
    ):
        performance.outcome = outcome = await play(
            dialogue.proxied if proxied else dialogue.straight,
            network.address,
            deadline_s=REPLY_DEADLINE_S + 4 * rtt_s,
            on_wait=on_wait,
        )
        if not outcome.problems:
            outcome.problems.extend(_judge(dialogue, mta))
        events = mta.sessions[0].events if mta.sessions else []
        for link in network.links:
            record = events if proxied else None
            performance.timeline = timeline(link.groups, link.opened_at, record)


async def send_straight(dialogue: Dialogue, *, rtt_s: float) -> Outcome:
    """Send the dialogue's groups to the MTA itself, although it does not offer PIPELINING."""
    async with (
        LegacyMTA(failing=dialogue.failing, refused=dialogue.refused) as mta,
        SimulatedNetwork(mta.address, rtt_s) as network,
    ):
        return await play(
            dialogue.straight, network.address, deadline_s=0.5 + 2 * rtt_s, insist=True
        )


def _judge(dialogue: Dialogue, mta: LegacyMTA) -> list[str]:
    """Return the problems on the MTA's side: early input, missing or changed messages."""
    problems = []
    if mta.violations:
        octets = mta.violations[0].octets
        problems.append(f"the MTA received data while it owed a reply: {octets[:60]!r}")
    accepted, expected = mta.messages, list(dialogue.delivered)
    if len(accepted) != len(expected):
        problems.append(f"the MTA accepted {len(accepted)} messages, expected {len(expected)}")
    elif accepted != expected:
        problems.append("a message was changed on the way")
    return problems
