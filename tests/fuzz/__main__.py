"""Search for schedules that the core handles wrongly: python -m tests.fuzz --seconds 3600.

With `--target trace`: for trace files that the `trace` commands do not get right.  With `--runs N`
it ends after so many executions, those of the corpus counted.

Coverage-guided, by atheris (libFuzzer): what reaches something new in the core is kept and changed
further.  Its lines show the progress: executions, coverage, how many schedules are kept.  What
fails is written to the directory, with the traceback above it; `--play FILE` plays it again.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz import mutations, trace_files
from tests.fuzz.mutations import HERE


def main() -> int:
    """Run the fuzzer, or play a schedule; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", choices=("core", "trace"), default="core")
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: 60)")
    parser.add_argument("--runs", type=int, default=-1, help="how many executions (default: any)")
    parser.add_argument("--seed", type=int, default=0, help="of the search (default: by the time)")
    parser.add_argument("--directory", type=Path, help="where finds are kept (default: temporary)")
    parser.add_argument("--merge", action="store_true", help="take finds into the corpus, and end")
    parser.add_argument("--play", type=Path, metavar="FILE", help="play a schedule, and end")
    chosen = parser.parse_args()
    is_core = chosen.target == "core"
    if chosen.play:
        octets = chosen.play.read_bytes()
        return _show(octets) if is_core else _show_commands(octets)
    target = mutations if is_core else trace_files
    directory = chosen.directory or Path(tempfile.mkdtemp(prefix="smtpproxy-fuzz-"))
    kept = directory / "kept"
    kept.mkdir(parents=True, exist_ok=True)
    arguments = [
        f"-dict={target.WORDS}",
        f"-max_len={target.LONGEST}",
        f"-artifact_prefix={directory}/",
    ]
    if chosen.merge:
        arguments += ["-merge=1", str(target.CORPUS), str(kept)]
    else:
        print(f"finds go to {directory}", flush=True)
        arguments += [f"-runs={chosen.runs}", f"-seed={chosen.seed}", "-timeout=20"]
        arguments += [f"-max_total_time={chosen.seconds}", str(kept), str(target.CORPUS)]
    fuzzer = [sys.executable, "-m", f"tests.fuzz.{'' if is_core else 'trace_'}fuzzer", *arguments]
    return subprocess.run(fuzzer, check=False, cwd=HERE.parent.parent).returncode


def _show(octets: bytes) -> int:
    """Play a schedule turn by turn, and show what both sides get."""
    from tests.fuzz.run import run
    from tests.fuzz.schedule import Schedule
    from tests.fuzz.trial import Trial

    schedule = Schedule.decode(octets)
    trial = Trial(schedule)
    print("rules:", "".join(sorted(schedule.letters)) or "the defaults")
    try:
        for turn in schedule.turns:
            trial.take(turn.kind, turn.octets)
            print(turn.kind, turn.octets, " S:", trial.to_client, " B>", trial.to_backend)
            trial.clear_written()
    finally:
        print("ended:", trial.ended or "no")
    run(octets)
    return 0


def _show_commands(octets: bytes) -> int:
    """Run each command on a file, and show the exit codes."""
    print(
        "exit codes of list, show, export --html, export --pcapng:", trace_files.run_trace(octets)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
