"""The fuzzer's process: libFuzzer's arguments, and the core instrumented before it is imported."""

import shlex
import sys

import atheris  # type: ignore[import-not-found]  # not installed everywhere

with atheris.instrument_imports(include=["smtpproxy.core"]):
    from tests.fuzz.run import run


def execute(octets: bytes) -> None:
    """Play one schedule."""
    try:
        run(octets)
    except BaseException as failed:
        failed.add_note(f"the schedule: {octets!r}")
        raise


if __name__ == "__main__":
    # To merge, libFuzzer restarts itself with a shell.
    myself = f"{shlex.quote(sys.executable)} -m tests.fuzz.fuzzer"
    atheris.Setup([myself, *sys.argv[1:]], execute)
    atheris.Fuzz()
