"""A legacy MTA with and without the proxy, for the reader's own client.

It owns the two addresses, the advice on how to talk to them, and the time line of each session.
"""

import asyncio
import signal

from rich.console import Console, Group
from rich.text import Text

from smtpproxy.demo.demo_report import WAYS, Lines, waits_told
from smtpproxy.demo.harness import proxy_before
from smtpproxy.demo.legacy import FAILINGS, LegacyMTA, LegacySession
from smtpproxy.demo.simulated_network import SimulatedLink, SimulatedNetwork
from smtpproxy.demo.timeline_rows import timeline
from smtpproxy.timeline.labels import BAD, GOOD, QUIET


async def stay_up(console: Console, *, rtt_s: float, failing: str) -> int:
    """Serve until SIGINT or SIGTERM and draw each session as it ends; returns the exit code."""
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)

    def draw(link: SimulatedLink, session: LegacySession | None) -> None:
        drawn = timeline(link.groups, link.opened_at, session.events if session else None)
        way = WAYS[session is not None]
        title = Text(f"A session {way}: {waits_told(drawn.waits, drawn.seconds)}", "bold")
        console.print(Lines(["", title, drawn]))

    def draw_direct(link: SimulatedLink) -> None:
        direct.links.remove(link)
        straight_mta.sessions.clear()
        draw(link, None)

    def draw_proxied(link: SimulatedLink) -> None:
        proxied.links.remove(link)
        session = _session_of(link, mta)
        if session is not None:
            mta.sessions.remove(session)
        draw(link, session)

    mta = LegacyMTA(failing=failing, refused=_refused)
    straight_mta = LegacyMTA(failing=failing, refused=_refused)
    async with mta, straight_mta, proxy_before(mta.address) as proxy:
        direct = SimulatedNetwork(straight_mta.address, rtt_s, draw_direct)
        proxied = SimulatedNetwork(proxy, rtt_s, draw_proxied)
        async with direct, proxied:
            advice = _advice(direct.address, proxied.address, rtt_s, failing)
            console.print(advice, soft_wrap=True)  # whole lines, to be copied
            await interrupted.wait()
            direct.on_closed = proxied.on_closed = None
    return 0


def _refused(address: bytes) -> bytes | None:
    return b"550 <" + address + b">... User unknown" if address.startswith(b"bad") else None


def _session_of(link: SimulatedLink, mta: LegacyMTA) -> LegacySession | None:
    """The proxy's connection for this link: it opens one for each client, in their order."""
    return next((s for s in mta.sessions if s.events[0].at >= link.opened_at), None)


def _advice(direct: str, proxied: str, rtt_s: float, failing: str) -> Group:
    host, _, port = proxied.rpartition(":")
    group = r"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nRSET\r\nQUIT\r\n"
    send = "s.sendmail('a@b.example', ['c@d.example'], 'Subject: hello'); s.quit()"
    advice = Text.assemble(
        (f"A legacy MTA without PIPELINING, {rtt_s * 1000:g} ms away.\n", "bold"),
        f"Its failing: it {FAILINGS[failing]}.\n\n",
        ("  through smtpproxy  ", "bold"),
        (f"{proxied}\n", GOOD),
        ("  directly           ", "bold"),
        (f"{direct}\n\n", BAD),
        ("Talk to it; it refuses recipients that begin with `bad`:\n\n", QUIET),
        f"swaks --pipeline -s {host} -p {port} -f a@b.example -t bad@d.example,c@d.example\n\n",
        f"printf '{group}' |\n  nc -N {host} {port}\n\n",
        f"python3 -c \"import smtplib; s = smtplib.SMTP('{host}', {port}); {send}\"\n\n",
        ("Each session is drawn when it ends. Ctrl-C ends this.", QUIET),
    )
    return Group(*advice.split("\n"))
