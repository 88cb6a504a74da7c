"""A private Postfix: private configuration, queue and log, next to any that is installed.

It is run by its master program, without the `postfix` command, and needs no file in /etc. It serves
as a backend (peers.py) and as a client (clients.py); both say what is theirs in main.cf and
master.cf.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.interop.networks import Machine
from tests.support.processes import Process, Workplace
from tests.support.programs import require_account, require_root, root_of

_QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush"),
    *("hold", "incoming", "private", "saved", "trace"),
)

_ENVIRONMENT = "MAIL_CONFIG PATH=/usr/bin:/bin LD_LIBRARY_PATH"

_SERVICES = """\
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
proxymap  unix  - - n - - proxymap
anvil     unix  - - n - 1 anvil
tlsmgr    unix  - - n 1000? 1 tlsmgr
scache    unix  - - n - 1 scache
tlsproxy  unix  - - n - 0 tlsproxy
smtp      unix  - - n - - smtp
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
postlog   unix-dgram n - n - 1 postlogd
"""


def programs_environment(root: Path) -> dict[str, str]:
    """Return the environment in which the programs of an unpacked Postfix find their libraries."""
    return {"LD_LIBRARY_PATH": str(root / "usr/lib/postfix")}


class Postfix:
    """A Postfix that runs while it is entered.

    `main` is added to main.cf, `services` to master.cf; in both, `@work@` stands for the directory
    that it lives in. With `machine` it runs there.
    """

    def __init__(
        self, main: Mapping[str, str], services: str = "", machine: Machine | None = None
    ) -> None:
        require_root("Postfix")
        require_account("postfix")
        root = root_of("postfix", "usr/lib/postfix/sbin/master")
        self._programs = root / "usr/lib/postfix/sbin"
        self._commands = root / "usr/sbin"
        self._inside = machine.inside if machine else ()
        self._env = programs_environment(root)
        self.work = Workplace("postfix")
        self._lay_out()
        settings = {**self._basics(), **main}
        text = "".join(f"{name} = {value}\n" for name, value in settings.items())
        self.work.write("etc/main.cf", text.replace("@work@", str(self.work.path)))
        text = services + _SERVICES
        self.work.write("etc/master.cf", text.replace("@work@", str(self.work.path)))

    def __enter__(self) -> Self:
        master = (*self._inside, self._programs / "master", "-c", self.work.path / "etc", "-d")
        self.process = Process(master, self.work.path / "printed", self._env)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.work.__exit__()

    def log(self) -> str:
        """Return the mail log so far."""
        file = self.work.path / "mail.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def submit(self, sender: str, recipients: list[str], message: bytes) -> None:
        """Put a message, with LF line ends, into the queue by Postfix's own sendmail."""
        sendmail = (self._commands / "sendmail", "-C", self.work.path / "etc", "-i", "-f", sender)
        done = subprocess.run(
            [*map(str, sendmail), "--", *recipients],
            input=message,
            capture_output=True,
            env={**os.environ, **self._env},
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")

    def _lay_out(self) -> None:
        """Make the queue as `postfix set-permissions` would."""
        for name in _QUEUES:
            self.work.directory(f"queue/{name}", "postfix", 0o700)
        for name, mode in (("maildrop", 0o730), ("public", 0o710)):
            directory: Path = self.work.directory(f"queue/{name}", "postfix", mode)
            shutil.chown(directory, group="postdrop")
        self.work.directory("queue/pid")
        self.work.directory("data", "postfix")

    def _basics(self) -> dict[str, str]:
        return {
            "compatibility_level": "3.6",
            "queue_directory": "@work@/queue",
            "data_directory": "@work@/data",
            "command_directory": str(self._commands),
            "daemon_directory": str(self._programs),
            "import_environment": _ENVIRONMENT,
            "export_environment": _ENVIRONMENT,
            "maillog_file": "@work@/mail.log",
            "maillog_file_prefixes": "@work@",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "disable_dns_lookups": "yes",
            "alias_maps": "",
            "alias_database": "",
            "notify_classes": "",
            "biff": "no",
            "message_size_limit": "100000000",
        }
