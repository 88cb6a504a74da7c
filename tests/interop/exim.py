"""A private Exim: private configuration, spool and log, run wholly as an unprivileged account.

Exim hands each message to a new copy of itself and counts on being set-uid root there. A plain copy
of the program, with every transport delivering as that same account, needs no privilege at all.
"""

import shutil
from pathlib import Path

from tests.support.processes import Workplace
from tests.support.programs import require_account, require_root, root_of

ACCOUNT = "Debian-exim"  # the one that is compiled into Debian's Exim

_BASICS = """\
exim_path = @work@/exim
exim_user = Debian-exim
exim_group = Debian-exim
spool_directory = @work@/spool
log_file_path = @work@/log/%slog
pid_file_path = @work@/pid
local_interfaces = 127.0.0.1
disable_ipv6
deliver_drop_privilege
keep_environment =
host_lookup =
rfc1413_hosts =
message_size_limit = 100M
"""


class Exim:
    """An Exim's files; `configuration` is what follows the basic settings.

    In it, `@work@` stands for `work.path`. Run `argv` as `ACCOUNT`, and remove `work` at the end.
    """

    def __init__(self, configuration: str) -> None:
        require_root("Exim")
        require_account(ACCOUNT)
        root = root_of("exim4-daemon-light", "usr/sbin/exim4")
        self.work = Workplace("exim")
        program = self.work.path / "exim"
        shutil.copyfile(root / "usr/sbin/exim4", program)
        program.chmod(0o755)
        for name in ("spool", "log"):
            self.work.directory(name, ACCOUNT)
        text = (_BASICS + configuration).replace("@work@", str(self.work.path))
        conf: Path = self.work.write("exim.conf", text)
        self.argv = (str(program), "-C", str(conf))

    def log(self) -> str:
        """Return the main log so far, and the panic log if there is one."""
        files = sorted((self.work.path / "log").glob("*log"))
        return "".join(file.read_text(errors="replace") for file in files)
