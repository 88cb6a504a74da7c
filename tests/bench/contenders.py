"""The contenders: smtpproxy and the alternatives to it, each set up as its documentation advises.

All run between the same load generator and the same MTA, with their default logging.  A contender
that is not installed is left out, and the reason is shown.
"""

import os
import pwd
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.bench.native import cache_directory
from tests.support.processes import Workplace
from tests.support.programs import peers_directory

SETUPS = Path(__file__).parent / "setups"
MODULES = Path("/usr/lib/nginx/modules")
HARAKA = cache_directory() / "haraka"
REFERENCE = "haproxy"
"""All others are compared with it: a TCP relay in C, whose clients send one command at a time."""

Argv = Sequence[str | Path]


@dataclass(frozen=True)
class Site:
    """Where a contender runs: its directory, and ports of 127.0.0.1."""

    work: Workplace
    port: int
    """Where it accepts clients."""
    backend: int
    """Where the MTA listens."""
    spare: int
    """Free for the contender's use, such as for a second process."""

    def fill(self, setup: str, name: str, **values: object) -> Path:
        """Copy a file of `setups/` into the directory with its $names replaced; return its path."""
        text = string.Template((SETUPS / setup).read_text())
        return self.work.write(name, text.substitute(self._values(), **values))

    def _values(self) -> Mapping[str, object]:
        work = self.work.path
        return {"work": work, "port": self.port, "backend": self.backend, "spare": self.spare}


@dataclass(frozen=True)
class Need:
    """A program (by name or path) or a file that must be there, and how to install it."""

    what: str
    install: str

    def missing(self) -> str:
        """Return what is missing and how to install it; "" if it is there."""
        found = os.access(self.what, os.F_OK) if "/" in self.what else shutil.which(self.what)
        return "" if found else f"{self.what} is missing: {self.install}"


@dataclass(frozen=True)
class Contender:
    """A program between client and MTA."""

    name: str
    label: str
    """Its name in tables and pictures."""
    note: str
    start: Callable[[Site], Argv] | None
    """Writes its settings and returns its command line; None if there is no proxy."""
    version: Sequence[str | Path] = ()
    """A command that prints its version."""
    needs: Sequence[Need] = ()
    needs_account: str = ""
    """A system account that must exist; then the benchmark must run as root, too."""
    pipelining: bool = False
    """Whether clients may pipeline: it adds PIPELINING, or the MTA offers it."""
    able_mta: bool = False
    """Whether its MTA offers PIPELINING; otherwise the MTA loses commands sent early."""
    by_default: bool = True
    """Whether it is measured without being named."""
    cpus: int = 1
    """How many CPUs it may use."""
    credentials: str = ""
    """USER:PASSWORD, if it requires AUTH."""
    wait_for_dot: bool = False
    """Whether it fails when a command follows the end of data at once."""
    idle_most: int = 2000
    """How many idle sessions are opened; fewer for a contender with one process for each."""
    settle_s: float = 0.0
    """How long after its start it works as it does from then on."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def missing(self) -> str:
        """Return why it cannot run here, or ""."""
        reasons = (reason for need in self.needs if (reason := need.missing()))
        return next(reasons, "") or self._missing_rights()

    def _missing_rights(self) -> str:
        if not self.needs_account:
            return ""
        if os.geteuid() != 0:
            return "must be started as root"
        if self.needs_account not in {account.pw_name for account in pwd.getpwall()}:
            return f"account {self.needs_account} is missing: see .ci/install-peers"
        return ""

    def read_version(self) -> str:
        """Return the first line that its version command prints."""
        if not self.version:
            return ""
        argv = [str(word) for word in self.version]
        env = {**os.environ, **self.environment}
        # Python would import a package from the current directory, not the one that is measured.
        done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False, cwd="/")
        return (done.stdout + done.stderr).strip().partition("\n")[0]


def all_contenders() -> Iterator[Contender]:
    """Yield all contenders, in the order of the tables."""
    yield from (_HAPROXY, *_smtpproxy("smtpproxy", sys.executable), *_OTHERS)


def another_smtpproxy(name: str, python: str) -> Contender:
    """Return the smtpproxy installed for another Python, such as another version or build."""
    contender, *_ = _smtpproxy(name, str(Path(python).absolute()))  # not resolved: a venv
    return replace(contender, label=name, note=f"the smtpproxy of {python}")


def _smtpproxy(name: str, python: str) -> Iterator[Contender]:
    def start(site: Site, *more: str) -> Argv:
        listen, backend = f"127.0.0.1:{site.port}", f"127.0.0.1:{site.backend}"
        return (python, "-m", "smtpproxy", "run", "--listen", listen, "--backend", backend, *more)

    one = Contender(
        name=name,
        label="smtpproxy",
        note="with its log at its default",
        start=start,
        version=(python, "-m", "smtpproxy", "--version"),
        needs=(Need(python, "which Python has it?"),),
        pipelining=True,
    )
    yield one
    yield replace(
        one,
        name=f"{name}-2-workers",
        label="smtpproxy, 2 workers",
        note="two workers, on two CPUs",
        start=lambda site: start(site, "--workers", "2"),
        by_default=False,
        cpus=2,
    )
    yield replace(
        one,
        name=f"{name}-trace",
        label="smtpproxy, tracing",
        note="with a trace of every session",
        start=lambda site: start(site, "--trace", str(site.work.directory("trace"))),
        by_default=False,
    )


def _haproxy(site: Site) -> Argv:
    return ("haproxy", "-db", "-f", site.fill("haproxy.cfg", "haproxy.cfg"))


_HAPROXY = Contender(
    name="haproxy",
    label="HAProxy",
    note="a TCP relay: its clients go in lock step",
    start=_haproxy,
    version=("haproxy", "-v"),
    needs=(Need("haproxy", "apt-get install haproxy"),),
)


def _nginx(site: Site, setup: str, **values: object) -> Argv:
    file = site.fill(setup, "nginx.conf", **values)
    work = site.work.path
    return ("nginx", "-e", work / "error.log", "-c", file, "-p", work)


_NGINX_STREAM = Contender(
    name="nginx-stream",
    label="nginx, stream",
    note="a TCP relay",
    start=lambda site: _nginx(site, "nginx-stream.conf"),
    version=("nginx", "-v"),
    needs=(
        Need("nginx", "apt-get install nginx-light"),
        Need(f"{MODULES}/ngx_stream_module.so", "apt-get install libnginx-mod-stream"),
    ),
)
_NGINX_MAIL = Contender(
    name="nginx-mail",
    label="nginx, mail",
    note="the SMTP proxy, which may not offer PIPELINING before an MTA that lacks it",
    start=lambda site: _nginx(site, "nginx-mail.conf", capability=""),
    version=("nginx", "-v"),
    needs=(
        Need("nginx", "apt-get install nginx-light"),
        Need(f"{MODULES}/ngx_mail_module.so", "apt-get install libnginx-mod-mail"),
    ),
)


def _postfix(site: Site) -> Argv:
    site.fill("postfix-main.cf", "conf/main.cf", root=_POSTFIX_ROOT)
    site.fill("postfix-master.cf", "conf/master.cf")
    queues = "active bounce corrupt defer deferred flush hold incoming private saved trace"
    for name in queues.split():
        site.work.directory(f"queue/{name}", "postfix", 0o700)
    for name, mode in (("maildrop", 0o730), ("public", 0o710)):
        shutil.chown(site.work.directory(f"queue/{name}", "postfix", mode), group="postdrop")
    site.work.directory("queue/pid")
    site.work.directory("data", "postfix")
    return (_POSTFIX_MASTER, "-c", site.work.path / "conf", "-d")


_POSTFIX_ROOT = next(
    (
        root
        for root in (Path("/"), peers_directory() / "postfix")
        if os.access(root / "usr/lib/postfix/sbin/master", os.X_OK)
    ),
    Path("/"),
)
_POSTFIX_MASTER = _POSTFIX_ROOT / "usr/lib/postfix/sbin/master"
_POSTFIX = Contender(
    name="postfix-filter",
    label="Postfix, proxy filter",
    note="smtpd_proxy_filter, before its queue: a process for each session",
    start=_postfix,
    version=(_POSTFIX_ROOT / "usr/sbin/postconf", "-c", "/dev", "-dh", "mail_version"),
    needs=(Need(str(_POSTFIX_MASTER), "see .ci/install-peers"),),
    needs_account="postfix",
    pipelining=True,
    idle_most=500,
    environment={"LD_LIBRARY_PATH": str(_POSTFIX_ROOT / "usr/lib/postfix")},
)


def _dovecot(site: Site) -> Argv:
    site.work.directory("run")
    site.work.directory("home", mode=0o777)
    return ("dovecot", "-F", "-c", site.fill("dovecot.conf", "dovecot.conf"))


_DOVECOT = Contender(
    name="dovecot",
    label="Dovecot, submission",
    note="demands AUTH; crashes when the next MAIL follows an end of data at once",
    start=_dovecot,
    version=("dovecot", "--version"),
    needs=(
        Need("dovecot", "apt-get install dovecot-submissiond"),
        Need("/usr/lib/dovecot/submission", "apt-get install dovecot-submissiond"),
    ),
    needs_account="dovecot",
    pipelining=True,
    credentials="bench:bench",
    wait_for_dot=True,
    idle_most=500,
)


def _haraka(site: Site) -> Argv:
    for file in (SETUPS / "haraka").rglob("*"):
        if file.is_file():
            name = file.relative_to(SETUPS)
            site.fill(str(name), str(name))
    site.work.directory("haraka/queue")
    return ("node", _HARAKA_PROGRAM, "-c", site.work.path / "haraka")


_HARAKA_PROGRAM = HARAKA / "node_modules/Haraka/bin/haraka"
_HARAKA = Contender(
    name="haraka",
    label="Haraka, smtp_proxy",
    note="answers 503 to what follows an end of data at once",
    start=_haraka,
    version=("node", "-p", f"require('{HARAKA}/node_modules/Haraka/package.json').version"),
    needs=(
        Need("node", "apt-get install nodejs"),
        Need(str(_HARAKA_PROGRAM), f"npm install --prefix {shlex.quote(str(HARAKA))} Haraka"),
    ),
    pipelining=True,
    wait_for_dot=True,
)


def _raw_relay(site: Site) -> Argv:
    return (sys.executable, SETUPS / "raw_relay.py", str(site.port), str(site.backend))


_RAW_RELAY = Contender(
    name="raw-relay",
    label="byte relay in Python",
    note="uvloop, and no parsing: what Python costs before it does anything",
    start=_raw_relay,
    version=(sys.executable, "-c", "import uvloop; print('uvloop', uvloop.__version__)"),
)
_DIRECT = Contender(
    name="direct",
    label="no proxy",
    note="no proxy: the client goes in lock step",
    start=None,
    by_default=False,
)
_ABLE = "; the MTA has PIPELINING"
_OTHERS = (
    *(_POSTFIX, _NGINX_MAIL, _NGINX_STREAM, _DOVECOT, _HARAKA, _RAW_RELAY, _DIRECT),
    *(
        replace(
            contender,
            name=f"{contender.name}-able-mta",
            label=f"{contender.label}{_ABLE}",
            note=f"{contender.note.partition(':')[0]}{_ABLE}",
            pipelining=True,
            able_mta=True,
            by_default=False,
        )
        for contender in (_DIRECT, _HAPROXY)
    ),
    replace(
        _NGINX_MAIL,
        name="nginx-mail-wrong",
        label="nginx, mail, wrong",
        note="PIPELINING in smtp_capabilities before an MTA that lacks it: commands are lost",
        start=lambda site: _nginx(site, "nginx-mail.conf", capability="PIPELINING"),
        pipelining=True,
        by_default=False,
    ),
)
