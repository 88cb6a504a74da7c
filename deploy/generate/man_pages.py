"""Makes the manual pages: smtpproxy(8) from the commands, smtpproxy.toml(5) from the settings."""

import inspect
import re
from collections.abc import Iterator

import click
from settings_text import Setting, tables

from smtpproxy import cli

_EXIT = [
    ("0", "Success; for run: drained and stopped by a signal."),
    ("1", "Failure: a problem in the settings, an address that cannot be opened, a failed check."),
    ("2", "Wrong usage of the command line."),
    ("3", "For status: something is wrong. For trace: records were lost or could not be read."),
]
_FILES = [
    ("/etc/smtpproxy/smtpproxy.toml", "The settings that the systemd unit uses."),
    (
        "/etc/systemd/system/smtpproxy.service.d/local.conf",
        "What settings need from systemd, such as access to TLS keys; the unit lists examples.",
    ),
]


def commands_page() -> str:
    """Return smtpproxy(8)."""
    main = cli.main
    page = [
        _title("SMTPPROXY", 8),
        _section("NAME"),
        r"smtpproxy \- transparent SMTP proxy that adds PIPELINING to an MTA",
        _section("SYNOPSIS"),
        *(f"{_bold(name)} {_escaped(usage)}\n.br" for name, command, usage in _commands(main, "")),
        _section("DESCRIPTION"),
        _text(main.help or ""),
        _text(
            "The proxy runs between clients and an MTA that lacks PIPELINING (RFC 2920).  It "
            "accepts groups of commands from clients, sends them to the MTA one at a time, and "
            "returns the replies in order."
        ),
        _section("COMMANDS"),
    ]
    for name, command, usage in _commands(main, ""):
        page += [f'.SS "{_escaped(name)} {_escaped(usage)}"', _text(command.help or "")]
        page += [_item(*record) for record in _options(command, name)]
        if command.epilog:
            page.append(_text(command.epilog))
    page += [_section("ENVIRONMENT"), *(_item(*each) for each in _variables(main))]
    page += [_section("EXIT STATUS"), *(_item(*each) for each in _EXIT)]
    page += [_section("FILES"), *(_item(*each) for each in _FILES)]
    page += [_section("SEE ALSO"), r"\fBsmtpproxy.toml\fR(5)"]
    return "\n".join(page) + "\n"


def settings_manual() -> str:
    """Return smtpproxy.toml(5)."""
    page = [
        _title("SMTPPROXY.TOML", 5),
        _section("NAME"),
        r"smtpproxy.toml \- settings of smtpproxy",
        _section("DESCRIPTION"),
        _text(
            "A TOML file, read by smtpproxy run -c FILE at the start and at SIGHUP.  An unknown "
            "key, a wrong type and an impossible value are errors; smtpproxy check -c FILE reports "
            "all of them, each with its line.  smtpproxy example config prints a first file."
        ),
        *_settings(),
        _section("SEE ALSO"),
        r"\fBsmtpproxy\fR(8)",
    ]
    return "\n".join(page) + "\n"


def _settings() -> Iterator[str]:
    for table in tables():
        yield _section(table.header or "TOP LEVEL")
        yield f".PP\n{_set(table.meaning)}"
        for each in table.settings:
            yield f".TP\n{_bold(each.key)}\n{_set(_written(each))}\n.br\n{_set(each.meaning)}"


def _written(setting: Setting) -> str:
    """Return how a setting is written, and its default."""
    if setting.is_required:
        return f"{setting.value}; required"
    return f"{setting.value}; default {setting.default}" if setting.default else setting.value


def _commands(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command, str]]:
    """Yield each command of the group with its full name and its usage."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        words = f"{prefix or 'smtpproxy'} {name}"
        if isinstance(command, click.Group):
            yield from _commands(command, words)
        else:
            usage = " ".join(command.collect_usage_pieces(click.Context(command)))
            yield words, command, usage


def _options(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    context = click.Context(command, info_name=name)
    for option in command.params:
        record = option.get_help_record(context)
        if record and record[1]:
            yield record


def _variables(group: click.Group) -> list[tuple[str, str]]:
    """Return each environment variable with its options."""
    found: dict[str, list[str]] = {}
    for name, command, _ in _commands(group, ""):
        for option in command.params:
            if option.envvar:
                found.setdefault(str(option.envvar), []).append(f"{name} {option.opts[-1]}")
    return [(variable, ", ".join(options)) for variable, options in found.items()]


def _title(name: str, section: int) -> str:
    return f'.TH {_escaped(name)} {section} "" smtpproxy\n.nh\n.ad l'


def _section(name: str) -> str:
    return f'.SH "{_escaped(name)}"'


def _item(name: str, text: str) -> str:
    return f".TP\n{_bold(name)}\n{_line(' '.join(text.split()))}"


def _text(text: str) -> str:
    """Return paragraphs as roff; one that click must not wrap keeps its lines."""
    page = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith("\b"):
            kept = "\n".join(map(_line, paragraph.removeprefix("\b\n").splitlines()))
            page.append(f".PP\n.nf\n{kept}\n.fi")
        else:
            page.append(f".PP\n{_line(' '.join(paragraph.split()))}")
    return "\n".join(page)


def _bold(text: str) -> str:
    return rf"\fB{_escaped(text)}\fR"


def _line(text: str) -> str:
    """Escape a line, which would be a roff request if it began with a dot or an apostrophe."""
    escaped = _escaped(text)
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _set(markdown: str) -> str:
    """Return a line of Markdown as roff, with code in bold."""
    parts = re.split("`([^`]*)`", markdown)
    text = "".join(_bold(part) if at % 2 else _escaped(part) for at, part in enumerate(parts))
    return rf"\&{text}" if text.startswith((".", "'")) else text


def _escaped(text: str) -> str:
    return text.translate(_ROFF)


_ROFF = str.maketrans(
    {
        "\\": r"\e",
        "-": r"\-",
        '"': r"\(dq",
        "`": r"\(ga",
        "'": r"\(aq",
        "~": r"\(ti",
        "^": r"\(ha",
    }
)
