"""A directory to chroot into, for a program whose paths are compiled in."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import Workplace


class Jail:
    """A root directory with some programs, the libraries they need, and separate accounts."""

    def __init__(
        self, name: str, root: Path, programs: Sequence[str], users: Sequence[str]
    ) -> None:
        self.work = Workplace(name)
        self.path = self.work.path
        for program in programs:
            self._bring(root / program, program)
            for library in _libraries(root / program):
                self._bring(Path(library), library.lstrip("/"))
        accounts = [("root", 0), *((user, 700 + number) for number, user in enumerate(users))]
        passwd = "".join(f"{user}:x:{uid}:{uid}::/:/bin/false\n" for user, uid in accounts)
        group = "".join(f"{user}:x:{uid}:\n" for user, uid in accounts)
        self.work.write("etc/passwd", passwd)
        self.work.write("etc/group", group)

    def argv(self, *command: str) -> list[str]:
        """Return the command line that runs a command inside."""
        return [shutil.which("chroot") or "/usr/sbin/chroot", str(self.path), *command]

    def _bring(self, source: Path, name: str) -> None:
        target = self.path / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def _libraries(program: Path) -> list[str]:
    listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True)
    assert "not found" not in listed.stdout, listed.stdout
    return re.findall(r"(/\S+)", listed.stdout)
