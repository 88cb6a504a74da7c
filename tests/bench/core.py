"""The cost of the protocol core and of the log, without sockets: `python -m tests.bench core`.

The scenarios have the names used in comments in the code (scenarios.py).  Figures are CPU time, the
best of several rounds, so that two versions can be compared on a busy machine too.
"""

import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from smtpproxy.core.pipeline import Pipeline
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.log import log
from smtpproxy.log.session_log import ServiceLog
from smtpproxy.worker.observer_fanout import ObserverFanout
from tests.bench.scenarios import Scenario, named

ROUNDS = 7
SECONDS_PER_ROUND = 0.15
CHUNK_OCTETS = 256_000
"""The octets of one read when content arrives fast."""


SCENARIOS = tuple(map(named, ("S1", "S2", "S3", "S4")))


def session(scenario: Scenario, listener_context: ObserverFanout | None) -> Callable[[], None]:
    """Return a function that plays one session: the client pipelines, the backend accepts all."""
    policy = SessionPolicy()
    group = b"MAIL FROM:<sender@bench.example>\r\n" + b"".join(
        b"RCPT TO:<user%d@rcpt.example>\r\n" % number for number in range(scenario.recipients)
    )
    line = b"abcdefghijklmnopqrstuvwxyz" * 3 + b"\r\n"
    content = line * (scenario.message_bytes // len(line)) + b".\r\n"
    chunks = [content[at : at + CHUNK_OCTETS] for at in range(0, len(content), CHUNK_OCTETS)]

    def discard(_: object) -> None:
        pass

    class Nobody:
        settled = staticmethod(discard)

    def play() -> None:
        observer = (
            listener_context.session("smtp", "mta", "127.0.0.1:4711") if listener_context else None
        )
        watch = observer.content if observer else None
        pipeline = Pipeline(policy, discard, observer or Nobody(), 1.0, watch)
        pipeline.connect_backend(discard)
        says = pipeline.backend_received
        says(b"220 sink.example\r\n", 1.0)
        pipeline.client_received(b"EHLO client.example\r\n", 1.0)
        says(b"250-sink.example\r\n250-SIZE 52428800\r\n250 8BITMIME\r\n", 1.0)
        for _ in range(scenario.messages):
            pipeline.client_received(group + b"DATA\r\n", 1.0)
            for _ in range(scenario.recipients + 1):
                says(b"250 2.1.5 <user@rcpt.example> ok\r\n", 1.0)
            says(b"354 go ahead\r\n", 1.0)
            for chunk in chunks:
                pipeline.client_received(chunk, 1.0)
            says(b"250 2.0.0 message accepted\r\n", 1.0)
        pipeline.client_received(b"QUIT\r\n", 1.0)
        says(b"221 2.0.0 bye\r\n", 1.0)
        assert pipeline.transaction.messages == scenario.messages

    return play


def best_us(play: Callable[[], None]) -> float:
    """Return the CPU time of one call in microseconds, the best of ROUNDS."""
    began = time.process_time()
    play()
    calls = max(1, int(SECONDS_PER_ROUND / max(time.process_time() - began, 1e-6)))
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(calls):
            play()
        rounds.append((time.process_time() - began) / calls)
    return min(rounds) * 1e6


def main() -> None:
    """Measure all scenarios and print the table."""
    with open("/dev/null", "wb") as nowhere:  # noqa: PTH123  a device
        log.configure("info", "json", nowhere)
        table = Table("scenario", "", "core µs", "with log µs", "core µs/message", box=None)
        for scenario in SCENARIOS:
            core = best_us(session(scenario, None))
            logged = best_us(session(scenario, ObserverFanout(ServiceLog())))
            per_message = f"{core / scenario.messages:,.1f}"
            row = (scenario.short, scenario.name, f"{core:,.0f}", f"{logged:,.0f}", per_message)
            table.add_row(*row)
        Console().print(table)


if __name__ == "__main__":
    main()
