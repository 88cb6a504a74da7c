"""What the tests start has ports of its own, and ends with them, also if they are killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.preloaded import Preloaded
from tests.support.processes import eventually, free_port

_TESTS = """
import sys
from pathlib import Path
from tests.support.processes import PreloadedProcess, Process, eventually
with {start}, Path(sys.argv[1])) as process:
    eventually(lambda: process.printed() or None, "its first line")
    print(process.pid, flush=True)
    sys.stdin.read()
"""
STARTS = {
    "any program": 'Process(["sh", "-c", "echo 1; exec sleep 600"]',
    "smtpproxy": 'PreloadedProcess(["run", "-l", "127.0.0.1:0", "-b", "127.0.0.1:9"]',
}


def is_running(pid: int) -> bool:
    """Return whether a process has not ended; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_free_port_is_given_to_one_program_only() -> None:
    ports = [free_port() for _ in range(100)]
    assert len(set(ports)) == len(ports)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
@pytest.mark.parametrize("name", STARTS)
def test_a_program_ends_with_the_tests_that_started_it(name: str, tmp_path: Path) -> None:
    """As after Ctrl-C, when pytest-xdist kills its workers."""
    argv = [sys.executable, "-c", _TESTS.format(start=STARTS[name]), str(tmp_path / "printed")]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())
        assert is_running(pid)
        tests.kill()
    eventually(lambda: not is_running(pid) or None, "the end of the program", 10.0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
def test_a_program_has_no_exit_code_if_the_process_that_waits_for_it_is_killed(
    tmp_path: Path,
) -> None:
    with (tmp_path / "printed").open("wb") as printed:
        files = (printed.fileno(), printed.fileno())
        arguments = ["run", "-l", "127.0.0.1:0", "-b", "127.0.0.1:9"]
        program = Preloaded(arguments, files, tmp_path, os.environ)
    status = Path(f"/proc/{program.pid}/stat").read_text()
    os.kill(int(status.rpartition(")")[2].split()[1]), signal.SIGKILL)
    with pytest.raises(ChildProcessError):
        program.wait(10.0)
    eventually(lambda: not is_running(program.pid) or None, "the end of the program", 10.0)
