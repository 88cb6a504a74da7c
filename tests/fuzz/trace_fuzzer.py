"""The fuzzer's process for trace files, with reader and printing code instrumented."""

import shlex
import sys

import atheris  # type: ignore[import-not-found]  # not installed everywhere

with atheris.instrument_imports(
    include=["smtpproxy.trace", "smtpproxy.timeline", "smtpproxy.text"]
):
    from tests.fuzz.trace_files import run_trace


def execute(octets: bytes) -> None:
    """Run each command on one file."""
    try:
        run_trace(octets)
    except BaseException as failed:
        failed.add_note(f"the file: {octets!r}")
        raise


if __name__ == "__main__":
    # To merge, libFuzzer restarts itself with a shell.
    myself = f"{shlex.quote(sys.executable)} -m tests.fuzz.trace_fuzzer"
    atheris.Setup([myself, *sys.argv[1:]], execute)
    atheris.Fuzz()
