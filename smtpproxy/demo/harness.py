"""An MTA, the real proxy before it or not, the network before that; one dialogue played.

It owns what is started for a dialogue and stopped after it, and the judgement of how it went: every
reply, every message the MTA took, every octet that reached the MTA out of turn.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

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
    """One dialogue played one way: what came of it, and its picture."""

    dialogue: Dialogue
    proxied: bool
    outcome: Outcome
    timeline: Timeline

    @property
    def passed(self) -> bool:
        """Whether everything was what it must be."""
        return not self.outcome.problems


@asynccontextmanager
async def proxy_before(backend: str) -> AsyncIterator[str]:
    """The real proxy in this process, in front of `backend`; gives the address it listens on."""
    settings = from_flags(
        None, listen=[ANY_PORT], backend=[backend], log_format=None, log_level="error"
    )
    app = App(settings)
    async with asyncio.timeout(START_DEADLINE_S):
        await app.start()
    try:
        yield app.addresses[0]
    finally:
        async with asyncio.timeout(STOP_DEADLINE_S):
            await app.stop()


@asynccontextmanager
async def no_proxy(backend: str) -> AsyncIterator[str]:
    """Nothing between network and MTA."""
    yield backend


async def perform(
    dialogue: Dialogue, *, proxied: bool, rtt_s: float, on_wait: Callable[[], None] | None = None
) -> DialogueResult:
    """Play the dialogue one way on a stage of its own, and judge it."""
    performance = DialogueResult(dialogue, proxied, Outcome(), Timeline(()))
    try:
        await _perform(performance, rtt_s, on_wait)
    except (OSError, TimeoutError) as error:
        why = str(error) or "deadline passed"
        performance.outcome.problems.append(f"the stage could not be set or cleared: {why}")
    return performance


async def _perform(
    performance: DialogueResult, rtt_s: float, on_wait: Callable[[], None] | None
) -> None:
    dialogue, proxied = performance.dialogue, performance.proxied
    between = proxy_before if proxied else no_proxy
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
            outcome.problems += _judge(dialogue, mta)
        events = mta.sessions[0].events if mta.sessions else []
        for link in network.links:
            record = events if proxied else None
            performance.timeline = timeline(link.groups, link.opened_at, record)


async def send_straight(dialogue: Dialogue, *, rtt_s: float) -> Outcome:
    """Play the dialogue to the MTA itself in groups, as if PIPELINING had been offered."""
    async with (
        LegacyMTA(failing=dialogue.failing, refused=dialogue.refused) as mta,
        SimulatedNetwork(mta.address, rtt_s) as network,
    ):
        return await play(
            dialogue.straight, network.address, deadline_s=0.5 + 2 * rtt_s, insist=True
        )


def _judge(dialogue: Dialogue, mta: LegacyMTA) -> list[str]:
    """What the MTA has to say of it, once every reply was right."""
    problems = []
    if mta.violations:
        octets = mta.violations[0].octets
        problems.append(f"the MTA received octets while it owed a reply: {octets[:60]!r}")
    accepted, expected = mta.messages, list(dialogue.delivered)
    if len(accepted) != len(expected):
        problems.append(f"the MTA accepted {len(accepted)} messages, must be {len(expected)}")
    elif accepted != expected:
        problems.append("a message did not arrive as it was sent")
    return problems
