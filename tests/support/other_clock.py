"""The time of day of one program, which a test moves or stops; see clock.c."""

import struct
import subprocess
from pathlib import Path

from tests.support.programs import command


class OtherClock:
    """A clock; programs that run in its `environment` have its time.

    Args:
        directory: Where its files are put.
    """

    def __init__(self, directory: Path) -> None:
        library = directory / "clock.so"
        source = Path(__file__).with_name("clock.c")
        argv = [command("gcc"), "-O1", "-Wall", "-shared", "-fPIC", "-o", library, source]
        subprocess.run(argv, check=True, timeout=60)
        self._file = directory / "clock"
        self._file.write_bytes(bytes(16))
        self.environment = {"LD_PRELOAD": str(library), "CLOCK": str(self._file)}
        self._now_us = 1_800_000_000_000_000

    def stand_still(self) -> None:
        """Stop it."""
        self._write(self._now_us, 0)

    def advance(self, seconds: float) -> None:
        """Move it while it stands still, also backward."""
        self._now_us += round(seconds * 1e6)
        self._write(self._now_us, 0)

    def skew(self, seconds: float) -> None:
        """Let it go, so far from the real one."""
        self._write(0, round(seconds * 1e6))

    def _write(self, *numbers: int) -> None:
        with self._file.open("r+b") as file:
            file.write(struct.pack("=qq", *numbers))
