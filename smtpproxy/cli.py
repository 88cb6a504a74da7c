"""The command line: checks the arguments and runs the commands.

Exit codes: 0, 1 (failed), 2 (usage); `status` and `trace` have 3, too.  A user's mistake never
shows a traceback.
"""

import json
import platform
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from secrets import randbits
from time import time
from typing import NoReturn

import click
from click.core import ParameterSource
from msgspec.structs import asdict, replace

from smtpproxy import __version__, data, is_compiled
from smtpproxy.config import credentials, loop_validation
from smtpproxy.config.certificate_validation import doubtful_certificates
from smtpproxy.config.decoding import ConfigError, dotted
from smtpproxy.config.fault_flag import faults_from_flags
from smtpproxy.config.loader import control_from_flag, from_flags, load
from smtpproxy.config.schema import Settings
from smtpproxy.config.tls_validation import (
    exposed_listeners,
    foreign_sources,
    weak_backends,
    weak_listeners,
)
from smtpproxy.config.validation import crowded, shareless, superfluous
from smtpproxy.control_socket import locations
from smtpproxy.text.console import say
from smtpproxy.text.fitting_table import Column, print_table
from smtpproxy.text.number_options import Seconds, WholeNumber


class Commands(click.Group):
    """The commands below, and others whose modules are loaded on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted([*super().list_commands(ctx), "health", "probe", "status", "trace"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name; None if there is none."""
        if cmd_name == "health":
            from smtpproxy.control_socket.health_command import health

            return health
        if cmd_name == "probe":
            from smtpproxy.probe.probe_command import probe

            return probe
        if cmd_name == "status":
            from smtpproxy.control_socket.status_command import status

            return status
        if cmd_name == "trace":
            from smtpproxy.control_socket.watch_command import watch
            from smtpproxy.trace.trace_commands import trace

            trace.add_command(watch)
            return trace
        return super().get_command(ctx, cmd_name)


def _print_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if not asked or context.resilient_parsing:
        return
    from importlib.metadata import version  # only this needs it, and it is slow to load

    say(
        f"smtpproxy {__version__}, Python {platform.python_version()}, "
        f"uvloop {version('uvloop')}, {ssl.OPENSSL_VERSION}, "
        f"{'compiled' if is_compiled() else 'not compiled'}"
    )
    context.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Try `smtpproxy demo` first: it shows in ten seconds what the proxy does.",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """A transparent SMTP proxy that adds PIPELINING to an MTA that lacks it (RFC 2920)."""


@main.command(
    short_help="Run the proxy in the foreground; logs go to standard error.",
    epilog="""
    \b
    Examples:
      smtpproxy run -l 127.0.0.1:2525 -b 127.0.0.1:25
      smtpproxy run -l [::]:25 -b 10.0.0.5:25 -b 10.0.0.6:25
      smtpproxy run -l 127.0.0.1:2525 -b 127.0.0.1:25 --trace /var/tmp/smtp
      smtpproxy run -l unix:/run/smtpproxy/smtp.sock -b mta.example.org:25
      smtpproxy run -c /etc/smtpproxy/smtpproxy.toml -w 0 --log-level debug
      smtpproxy run -l 127.0.0.1:2525 -b 127.0.0.1:25 --fault 'RCPT 450 10% recipient=*@y.example'

    SIGTERM and SIGINT drain: sessions finish their transactions.  A second signal stops at once.
    SIGHUP reads the file again: new workers take over, and open sessions continue.

    If an option is not given, its environment variable is used; several addresses are separated
    by spaces.

    --fault tests senders of mail: RULE is VERB ACTION [RATE] [FILTER...].  The first rule that
    applies to a command counts.

    \b
      VERB    CONNECT, EHLO, MAIL, RCPT, DATA, END_OF_DATA or another verb of SMTP
      ACTION  450          any refusal: that reply; the MTA gets no command
              delay:2      the MTA gets the command 2 seconds later
              stall        no reply, until a time limit
              close        the connection is closed; the MTA gets no command
              reset        the same by a TCP reset
              close-after  the connection is closed once the MTA has replied
              reset-after  the same by a TCP reset
      RATE    10% or 1/10, at random; left out: every time
      FILTER  client=192.0.2.0/24, sender=*@x.example, recipient=*@y.example
    """,
)
@click.option(
    "-c",
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="SMTPPROXY_CONFIG",
    show_envvar=True,
    help="The settings file (TOML); options override it.",
)
@click.option(
    "-l",
    "--listen",
    multiple=True,
    metavar="ADDR",
    envvar="SMTPPROXY_LISTEN",
    show_envvar=True,
    help="Where to accept clients: HOST:PORT, [IPV6]:PORT, unix:/PATH, or fd:NAME for a socket "
    "from systemd.  May be repeated.",
)
@click.option(
    "-b",
    "--backend",
    multiple=True,
    metavar="ADDR",
    envvar="SMTPPROXY_BACKEND",
    show_envvar=True,
    help="A server of the MTA.  If repeated, the next one is tried if one cannot be reached.",
)
@click.option(
    "-w",
    "--workers",
    type=WholeNumber(0, example=4),
    metavar="N",
    envvar="SMTPPROXY_WORKERS",
    show_envvar=True,
    help="The number of worker processes; 0 for one per CPU.",
)
@click.option(
    "--admin",
    metavar="ADDR",
    envvar="SMTPPROXY_ADMIN",
    show_envvar=True,
    help="Where to serve metrics and the live page, such as 127.0.0.1:8025.",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    envvar="SMTPPROXY_TRACE",
    show_envvar=True,
    help="Record every session in files in this directory, for `smtpproxy trace`.",
)
@locations.control_option
@click.option(
    "--log-format",
    type=click.Choice(["auto", "console", "json", "syslog"]),
    envvar="SMTPPROXY_LOG_FORMAT",
    show_envvar=True,
    help="auto: JSON unless standard error is a terminal.  syslog: for `logger --prio-prefix`.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    envvar="SMTPPROXY_LOG_LEVEL",
    show_envvar=True,
    help="debug: also one line per exchange.",
)
@click.option(
    "--fault",
    "fault",
    multiple=True,
    metavar="RULE",
    help="Inject a fault into sessions, to test senders of mail, such as 'RCPT 450 10%'.  May be "
    "repeated.  Not for production.",
)
@click.option(
    "--fault-seed",
    type=WholeNumber(0, 2**32 - 1, example=1),
    metavar="N",
    help="With --fault, make the same decisions as another run; by default random, and logged.",
)
def run(
    file: Path | None,
    listen: tuple[str, ...],
    backend: tuple[str, ...],
    workers: int | None,
    admin: str | None,
    trace: Path | None,
    control: Path | None,
    log_format: str | None,
    log_level: str | None,
    fault: tuple[str, ...],
    fault_seed: int | None,
) -> None:
    """Run the proxy in the foreground; logs go to standard error."""
    if file is None and not (listen and backend):
        raise click.UsageError(
            "needs a settings file with -c, or an address for clients with -l and the MTA's with "
            "-b, as in\n\n  smtpproxy run -l 127.0.0.1:2525 -b 127.0.0.1:25"
        )

    if fault_seed is not None and not fault:
        raise click.UsageError("--fault-seed goes with --fault")

    def read() -> Settings:
        settings = None
        if file:
            settings = load(
                file,
                need_listener=not listen,
                need_backend=not backend,
                need_trace_directory=trace is None,
            )
        return from_flags(settings, listen, backend, log_format, log_level, workers, trace, admin)

    try:
        control_address = None if control is None else control_from_flag(control)
        faults = faults_from_flags(fault, randbits(32) if fault_seed is None else fault_seed)
        settings = read()
    except ConfigError as error:
        _fail(error)
    for flag in faults.flags:
        say(f"smtpproxy: warning: injects faults into sessions: --fault '{flag}'", err=True)
    from smtpproxy.supervisor import supervisor  # `check` and `--help` need no event loop

    sys.exit(supervisor.main(settings, read, control_address, faults))


@main.command(
    short_help="Report every problem in a settings file, each with its line.",
    epilog="""
    \b
    Examples:
      smtpproxy check /etc/smtpproxy/smtpproxy.toml && systemctl reload smtpproxy
      smtpproxy check --json smtpproxy.toml
    """,
)
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "-c",
    "--config",
    "named",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The same as the argument, as for `run`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print problems and warnings as JSON.")
def check(file: Path | None, named: Path | None, as_json: bool) -> None:
    """Report every problem in a settings file, each with its line; exit 1 if there is one."""
    path = file or named
    if path is None or (file and named):
        raise click.UsageError("needs one file, as in\n\n  smtpproxy check smtpproxy.toml")
    settings, problems = None, []
    try:
        settings = load(path, need_credentials=False, look_up=loop_validation.look_up)
    except ConfigError as error:
        if not as_json:
            _fail(error)
        problems = error.problems
    warnings = [] if settings is None else _warnings(settings)
    if as_json:
        found = {"problems": list(map(asdict, problems)), "warnings": warnings}
        for line in json.dumps(found, indent=2).splitlines():
            say(line)
        sys.exit(1 if problems else 0)
    assert settings is not None
    print_table(_COLUMNS, list(_rows(settings)))
    for warning in warnings:
        say(f"smtpproxy: warning: {warning}", err=True)
    say(f"{path}: no problems found")


@main.command(
    short_help="Show the dialogues of RFC 2920 without and with the proxy.",
    epilog="""
    \b
    Examples:
      smtpproxy demo
      smtpproxy demo --rtt 0.3 --recipients 20
      smtpproxy demo --serve --port 2525 --admin 127.0.0.1:8025
    """,
)
@click.option(
    "--rtt",
    type=Seconds(0, 10, example=0.3),
    default=0.1,
    show_default=True,
    metavar="SECONDS",
    help="The simulated round-trip time between client and server.",
)
@click.option(
    "--recipients",
    type=WholeNumber(1, 100, example=20),
    default=3,
    show_default=True,
    metavar="N",
    help="The number of recipients in dialogues (b) and (g).",
)
@click.option(
    "--legacy",
    metavar="FAULT",
    help="The fault of the legacy MTA; `list` lists them.",
)
@click.option("--serve", is_flag=True, help="Listen for your own client, and draw its sessions.")
@click.option(
    "--port",
    type=WholeNumber(0, 65535, example=2525),
    default=0,
    metavar="PORT",
    help="With --serve, the proxy's port on 127.0.0.1.  [default: a free one]",
)
@click.option(
    "--admin",
    default="",
    metavar="ADDR",
    help="With --serve, show the live page here, such as 127.0.0.1:8025.",
)
def demo(
    rtt: float, recipients: int, legacy: str | None, serve: bool, port: int, admin: str
) -> None:
    """Show the dialogues of RFC 2920 with a legacy MTA, without and with the proxy.

    The last one, (g), shows early pipelining: the client sends its commands before the greeting.

    The command runs a legacy MTA and the proxy in this process, and exits 1 if any reply is wrong.
    """
    if (port or admin) and not serve:
        raise click.UsageError("--port and --admin go with --serve")
    from smtpproxy.demo import demo_run
    from smtpproxy.demo import legacy as mta  # only the demo needs it

    if legacy is not None and legacy not in mta.FAILINGS:
        names = "\n".join(f"  {name:18} {text}" for name, text in mta.FAILINGS.items())
        if legacy == "list":
            click.echo(names)
            return
        raise click.BadParameter(f"{legacy!r} is not one of\n\n{names}", param_hint="--legacy")
    failing = legacy or mta.DEFAULT_FAILING
    try:
        code = demo_run.main(
            rtt=rtt, recipients=recipients, serve=serve, failing=failing, port=port, admin=admin
        )
    except ConfigError as error:
        _fail(error)
    except OSError as error:
        say(f"smtpproxy: {error.strerror or error}", err=True)
        code = 1
    sys.exit(code)


def _listed_examples() -> str:
    return "\n".join(f"      {name:20}{each.purpose}" for name, each in data.EXAMPLES.items())


@main.command(
    short_help="Print an example file: settings, a systemd unit, nftables rules.",
    epilog=f"""
    \b
    NAME is one of
{_listed_examples()}

    \b
    Examples:
      smtpproxy example config > /etc/smtpproxy/smtpproxy.toml
      smtpproxy example service > /etc/systemd/system/smtpproxy.service
    """,
)
@click.argument("name", type=click.Choice(list(data.EXAMPLES)), metavar="NAME")
def example(name: str) -> None:
    """Print the example file NAME to standard output."""
    click.echo(data.read_example(name), nl=False)


def _fail(error: ConfigError) -> NoReturn:
    """Print every problem, and exit; a flag from the environment is named by its variable."""
    context = click.get_current_context()
    variables = {
        flag: str(option.envvar)
        for option in context.command.params
        if context.get_parameter_source(option.name or "") is ParameterSource.ENVIRONMENT
        for flag in option.opts
    }
    for problem in error.problems:
        named = replace(problem, key=variables.get(problem.key, problem.key))
        say(f"smtpproxy: {named}", err=True)
    sys.exit(1)


def _warnings(settings: Settings) -> list[str]:
    """Return warnings about valid settings that are probably not intended."""
    found = [
        f"listener {name} serves clients of other machines, and "
        f"the MTA sees this proxy's own address for each of their clients: if it relays for that "
        f"address, it relays for everyone.  Make sure that it does not, or give the backend an "
        f'identity: "transparent" works with any MTA.'
        for name in exposed_listeners(settings)
    ]
    found += [f"listener {name}: {how}" for name, how in weak_listeners(settings)]
    found += [f"backend {name}: {how}" for name, how in weak_backends(settings)]
    found += [f"backend {name}: {what}" for name, what in foreign_sources(settings)]
    found += [f"backend {name}: {what}" for name, what in superfluous(settings)]
    found += [f"backend {name}: {what}" for name, what in crowded(settings)]
    found += [f"backend {name}: {what}" for name, what in shareless(settings)]
    found += [
        f"listener {listener}: the certificate {why}"
        for listener, _, why in doubtful_certificates(settings, time())
    ]
    found += [
        f"{dotted(place)}: {file} was not checked: systemd shows a credential only to the service, "
        "while it runs"
        for place, file in credentials.invisible(settings)
    ]
    return found


_COLUMNS = (
    Column("listener", 8),
    Column("address", 7),
    Column("tls", 6),
    Column("backend", 5),
    Column("servers", 4, folds=True),
    Column("tls", 3),
    Column("identity", 2),
    Column("sync", 1),
)


def _rows(settings: Settings) -> Iterator[list[str]]:
    """Yield a row for each listener and its backend."""
    for name, listener in settings.listeners.items():
        backend = settings.backends[listener.backend]
        yield [
            name,
            str(listener.address),
            listener.tls,
            listener.backend,
            ", ".join(map(str, backend.servers)),
            backend.tls,
            backend.identity,
            listener.sync,
        ]
