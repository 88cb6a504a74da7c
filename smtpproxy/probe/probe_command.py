"""The command line of `smtpproxy probe`: checks its arguments, prints report and settings."""

import io
import re
import sys

import click
from rich.text import Text

from smtpproxy.config.address import Address, parse_server
from smtpproxy.probe import json_report, probe_report, probe_run, suggested_config
from smtpproxy.probe.connector import ProbeOptions
from smtpproxy.probe.findings import Findings
from smtpproxy.text.console import Terminal, fail, say
from smtpproxy.text.number_options import Seconds

_NARROWEST, _WIDE = 60, 110
_MAILBOX = re.compile(r"[!-;=?-~]{1,250}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}|\[[A-Za-z0-9:.]{1,80}\]", re.ASCII)


@click.command(
    short_help="Test a mail server; print a report and settings for it.",
    epilog="""
    \b
    Examples:
      smtpproxy probe 10.0.0.5:25
      smtpproxy probe --settings-only 10.0.0.5:25 > smtpproxy.toml
      smtpproxy probe --relay-test someone@example.com mta.example.org:25
      smtpproxy probe --helo proxy.example.org --timeout 5 [2001:db8::5]:25
      smtpproxy probe --json 10.0.0.5:25
      smtpproxy probe --implicit-tls mta.example.org:2465

    The probe delivers nothing: it never sends the end of data, and sends DATA only if no recipient
    was accepted.  It opens up to 30 connections and violates the protocol in some, so probe only
    your own servers, from the machine where the proxy will run.

    Exit codes: 0 (tested, whatever was found), 1 (not reached, or refused), 2 (usage).
    """,
)
@click.argument("addr")
@click.option(
    "--timeout",
    type=Seconds(0.1, 600, example=60),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for each reply; the whole run may take 20 times as long.",
)
@click.option(
    "--helo",
    default="",
    metavar="NAME",
    help="The name in EHLO and HELO, a domain or an address literal.  "
    "[default: this machine's, or its address]",
)
@click.option(
    "--from",
    "sender",
    default="",
    metavar="SENDER",
    help="The sender in every MAIL.  [default: the null sender]",
)
@click.option(
    "--relay-test",
    default="",
    metavar="RCPT",
    help="Test whether the server relays from this machine to RCPT, an address in another domain.",
)
@click.option("--implicit-tls", is_flag=True, help="Use implicit TLS; the default on port 465.")
@click.option("--settings-only", is_flag=True, help="Print only the settings, for a file.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def probe(
    addr: str,
    timeout: float,
    helo: str,
    sender: str,
    relay_test: str,
    implicit_tls: bool,
    settings_only: bool,
    as_json: bool,
) -> None:
    """Test a mail server; print a report and the settings to start with.

    The report shows what the server offers, what it lacks, and where it violates SMTP.
    ADDR is HOST:PORT, [IPV6]:PORT or unix:/PATH.
    """
    for given, flag in ((sender, "--from"), (relay_test, "--relay-test")):
        if given and not _MAILBOX.fullmatch(given):
            what = f"{given!r} is not an address, such as someone@example.com"
            raise click.BadParameter(what, param_hint=flag)
    if helo and not _NAME.fullmatch(helo):
        what = f'{helo!r} is not a name, such as "proxy.example.org" or "[192.0.2.1]"'
        raise click.BadParameter(what, param_hint="--helo")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # the terminal may not be UTF-8
    options = ProbeOptions(_address(addr), timeout, helo, sender, relay_test, implicit_tls)
    if as_json and settings_only:
        raise click.UsageError("--json and --settings-only exclude each other")
    found = _examine(options)
    if as_json:
        settings = [] if found.refusal else list(suggested_config.settings(found))
        for line in json_report.text(found, settings).splitlines():
            say(line)
        sys.exit(1 if found.refusal else 0)
    _report(found, settings_only=settings_only)


def _examine(options: ProbeOptions) -> Findings:
    try:
        with Terminal(stderr=True).status(_step(options, "connecting")) as status:
            return probe_run.examine(options, lambda step: status.update(_step(options, step)))
    except probe_run.Unreachable as error:
        fail(f"{options.address}: {error}")


def _report(found: Findings, *, settings_only: bool) -> None:
    if not settings_only:
        probe_report.show(_console(), found)
    if found.refusal:
        fail(f"{found.address}: {found.refusal}")
    if not settings_only:
        for line in ("", "Settings to start with:", ""):
            say(line)
    for line in suggested_config.settings(found):
        say(line)


def _step(options: ProbeOptions, step: str) -> Text:
    return Text(f"{options.address}: {step}")  # rich looks for markup in a str


def _address(text: str) -> Address:
    try:
        text.encode()
        address = parse_server(text)
    except UnicodeEncodeError:
        raise click.BadParameter("is not UTF-8", param_hint="ADDR") from None
    except ValueError as error:
        raise click.BadParameter(f"{text!r} {error}", param_hint="ADDR") from None
    if address.is_original:
        raise click.BadParameter("needs the address of a server", param_hint="ADDR")
    return address


def _console() -> Terminal:
    console = Terminal()
    if not console.is_terminal:
        return Terminal(width=_WIDE)
    return Terminal(width=_NARROWEST) if console.width < _NARROWEST else console
