"""One run: a contender between the load generator and the MTA; its CPU time and memory."""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.bench.contenders import Contender, Site
from tests.bench.results import Run
from tests.bench.scenarios import ROUND_TRIP_MS, Kind, Scenario
from tests.bench.usage import Cpu, Meter, memory_of
from tests.support.processes import Process, Workplace, free_port

RUN_LIMIT_S = 300.0
"""How long the load generator may take."""
SETTLE_S = 0.5
"""How long to wait before memory is read, so that it has settled."""


class RunError(Exception):
    """A contender could not be measured; the text says why."""


FAILURES = (RunError, AssertionError, OSError, subprocess.SubprocessError)
"""Raised if a contender does not start, or its sessions do not end."""


@dataclass(frozen=True)
class Bench:
    """Where runs are made: the built programs, and a CPU for each side."""

    programs: Path
    """The directory that `native.build` returns."""
    cpus: Sequence[int]
    """The contender gets the first ones; the load generator and the MTA share the last."""
    seconds: float
    """How long a run is."""

    @classmethod
    def here(cls, programs: Path, seconds: float) -> Self:
        """Return a bench that uses the CPUs that this process may use."""
        return cls(programs, sorted(os.sched_getaffinity(0)), seconds)

    def measure(self, contender: Contender, scenario: Scenario) -> Run:
        """Run a contender in a scenario.

        Raises:
            RunError: the contender does not start, or no session ends well.
        """
        measures: Mapping[Kind, Callable[[Chain, Scenario], Run]] = {
            Kind.PASSING: self._passing,
            Kind.HELD: self._held,
            Kind.IDLE: self._idle,
            Kind.DISTANT: self._distant,
        }
        chain = Chain(self, contender)
        try:
            with chain:
                run = measures[scenario.kind](chain, scenario)
        except FAILURES as error:
            raise RunError(str(error)) from error
        run.violations = chain.counted["violations"]
        return run

    def _passing(self, chain: "Chain", scenario: Scenario) -> Run:
        chain.load(scenario, "--seconds", min(1.0, self.seconds / 4))  # to warm up
        meter = Meter(chain.pid)
        found = chain.load(scenario, "--seconds", self.seconds)
        return chain.run(scenario, found, meter)

    def _held(self, chain: "Chain", scenario: Scenario) -> Run:
        chain.warm_up()
        before = chain.resident_kib()
        with chain.holding(scenario, scenario.at_once, "--seconds", self.seconds) as held:
            meter = Meter(chain.pid)
            run = chain.run(scenario, held.go_on(), meter)
            run.before_kib, run.open_sessions = before, scenario.at_once
            return run

    def _idle(self, chain: "Chain", scenario: Scenario) -> Run:
        chain.warm_up()
        time.sleep(SETTLE_S)
        before = chain.resident_kib()
        at_once = min(scenario.at_once, chain.contender.idle_most)
        with chain.holding(scenario, at_once):
            time.sleep(SETTLE_S)
            meter = Meter(chain.pid)
            time.sleep(self.seconds)
            run = chain.run(scenario, {}, meter)
            run.seconds = self.seconds
            run.before_kib, run.open_sessions = before, at_once
            return run

    def _distant(self, chain: "Chain", scenario: Scenario) -> Run:
        chain.warm_up()
        with chain.far_away():
            meter = Meter(chain.pid)
            return chain.run(scenario, chain.load(scenario, "--sessions", 1), meter)

    def pinned(self, *argv: object, contender: Contender | None = None) -> list[str]:
        """Return a command line that keeps a program on its side's CPUs."""
        cpus = self.cpus[: contender.cpus] if contender else self.cpus[-1:]
        return ["taskset", "-c", ",".join(map(str, cpus)), *map(str, argv)]


class Chain:
    """A context manager: a contender and the MTA after it, running until the exit.

    Attributes:
        port: The port that clients connect to.
        pid: The contender's process; None if there is no proxy.
        counted: What the MTA has counted; set at the exit.
    """

    def __init__(
        self, bench: Bench, contender: Contender, sink_options: Sequence[str] = ()
    ) -> None:
        self._bench = bench
        self.contender = contender
        self.counted: dict[str, int] = {}
        self.pid: int | None = None
        self._sink_options = [*sink_options, *(["--pipelining"] if contender.able_mta else [])]
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._work = self._open.enter_context(Workplace(f"bench-{self.contender.name}"))
            self._start_sink()
            if self.contender.start:
                self._start_contender(self.contender.start)
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._open:
            self._sink.terminate()
            self.counted = json.loads(self._sink.printed())

    def _start_sink(self) -> None:
        self.port = free_port()
        sink = (self._bench.programs / "strictsink", "--listen", f"127.0.0.1:{self.port}")
        argv = self._bench.pinned(*sink, *self._sink_options)
        self._sink = self._open.enter_context(Process(argv, self._work.path / "sink"))
        self._sink.await_greeting(self.port)

    def _start_contender(self, start: Callable[[Site], Sequence[str | Path]]) -> None:
        site = Site(self._work, free_port(), self.port, free_port())
        argv = self._bench.pinned(*start(site), contender=self.contender)
        log = self._work.path / "contender"
        process = self._open.enter_context(Process(argv, log, self.contender.environment))
        process.await_greeting(site.port)
        self.pid, self.port = process.pid, site.port
        time.sleep(self.contender.settle_s)

    @contextlib.contextmanager
    def far_away(self) -> Iterator[None]:
        """Put a link of ROUND_TRIP_MS before the contender."""
        near, far = self.port, free_port()
        ends = ("--listen", f"127.0.0.1:{far}", "--target", f"127.0.0.1:{near}")
        relay = (self._bench.programs / "delayrelay", *ends, "--delay-ms", ROUND_TRIP_MS / 2)
        with Process(self._bench.pinned(*relay), self._work.path / "relay") as process:
            process.await_open(far)
            self.port = far
            yield
            self.port = near

    def warm_up(self) -> None:
        """Play a few sessions that are not measured."""
        self.load(Scenario(short="", name="", sentence="", at_once=20), "--sessions", 200)

    def load(self, scenario: Scenario, *more: object) -> dict[str, Any]:
        """Play sessions; return what the load generator has counted.

        Raises:
            RunError: the load generator has counted nothing, or no session ended well.
        """
        done = subprocess.run(
            self._loadgen(scenario, scenario.at_once, more),
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"sessions": 0}
        if not found["sessions"]:
            raise RunError(done.stderr.strip()[:300] or "no session has ended")
        return found

    @contextlib.contextmanager
    def holding(self, scenario: Scenario, at_once: int, *more: object) -> Iterator["HeldSessions"]:
        """Keep `at_once` sessions open until the exit."""
        argv = self._loadgen(scenario, at_once, ("--hold", *more))
        with HeldSessions(argv) as held:
            _, opened, failed = held.answer().split()  # READY
            if failed != "0":
                raise RunError(f"{opened} of {at_once} sessions could be opened: {held.close()}")
            yield held

    def resident_kib(self) -> int:
        """Return the resident memory of the contender in KiB; 0 without a proxy."""
        return memory_of(self.pid).resident if self.pid else 0

    def run(self, scenario: Scenario, found: Mapping[str, Any], meter: Meter) -> Run:
        """Return the record of the run; memory is read now."""
        run = Run(scenario=scenario.name, contender=self.contender.name, others=meter.others())
        if self.pid:
            cpu: Cpu = meter.cpu()
            run.cpu_s, run.user_s = sum(cpu), cpu.user_s
            memory = memory_of(self.pid)
            run.resident_kib, run.peak_kib = memory.resident, memory.peak
        if found:
            for name in ("seconds", "sessions", "failed", "messages", "waits", "mode"):
                setattr(run, name, found[name])
            times = found["session_s"]
            run.session_s, run.session_p99_s = times["median"], times["p99"]
            run.load_cpu_s = found["cpu_s"]
        return run

    def _loadgen(self, scenario: Scenario, at_once: int, more: Sequence[object]) -> list[str]:
        contender = self.contender
        argv: list[object] = [self._bench.programs / "loadgen"]
        argv += [
            "--target",
            f"127.0.0.1:{self.port}",
            "--at-once",
            at_once,
            "--messages",
            scenario.messages,
        ]
        argv += ["--recipients", scenario.recipients, "--bytes", scenario.message_bytes]
        argv += ["--pipelined"]  # where it is offered
        argv += ["--credentials", contender.credentials] if contender.credentials else []
        argv += ["--wait-for-dot"] if contender.wait_for_dot else []
        return self._bench.pinned(*argv, *more)


class HeldSessions:
    """A context manager: a load generator that keeps its sessions open until the exit."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = argv

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._popen = subprocess.Popen(self._argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self._limit = threading.Timer(RUN_LIMIT_S, self._popen.kill)
        self._limit.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._limit.cancel()
        if self._popen.poll() is None:
            self.close()

    def close(self) -> str:
        """Close all sessions; return the error of the first that failed."""
        _, errors = self._popen.communicate()  # the end of its input ends it
        return errors.strip().partition("\n")[0]

    def answer(self) -> str:
        """Return the next line of its output."""
        assert self._popen.stdout
        line = self._popen.stdout.readline()
        if not line:
            raise RunError("the load generator has stopped")
        return line

    def go_on(self) -> dict[str, Any]:
        """Let each session send its messages; return what the load generator has counted."""
        assert self._popen.stdin
        self._popen.stdin.write("\n")
        self._popen.stdin.flush()
        found: dict[str, Any] = json.loads(self.answer())
        return found
