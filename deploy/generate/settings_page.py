"""Makes deploy/reference/settings.md: every setting and environment variable."""

import click
from markdown import code, page, table
from settings_text import Setting, tables

from smtpproxy import cli

_INTRODUCTION = """\
A TOML file. Flags and environment variables of `smtpproxy run` override it. An unknown key, a wrong
type, a bad address: `smtpproxy check` reports every mistake with its line, all at once.

```toml
hostname = "mx.example.org"         # in the proxy's own 421 replies and health checks
workers = 1                         # processes; 0: one for each CPU

[listeners.smtp]
address = "[::]:25"                 # "0.0.0.0:25", "unix:/run/smtpproxy/smtp.sock", "fd:NAME"
backend = "old-mta"                 # may be left out when there is one

[backends.old-mta]
servers = ["10.0.0.5:25", "10.0.0.6:25"]
```
"""
_VARIABLES = """\
`smtpproxy run` takes an option that is not given from its environment variable, if that is set.
Several addresses are separated by spaces.
"""


def settings_page() -> str:
    """Return the page."""
    parts = [_INTRODUCTION]
    for each in tables():
        heading = f"## {code(each.header)}" if each.header else "## Top level"
        parts += [f"{heading}\n\n{each.meaning}\n", _rows(each.settings)]
    parts += [f"## Environment variables\n\n{_VARIABLES}", _variables()]
    return page("Settings", parts)


def _rows(settings: list[Setting]) -> str:
    return table(
        ("setting", "value", "default", "meaning"),
        [(code(each.key), each.value, _default(each), each.meaning) for each in settings],
    )


def _default(setting: Setting) -> str:
    if setting.is_required:
        return "required"
    return setting.default if " name" in setting.default else code(setting.default)


def _variables() -> str:
    options = [each for each in cli.run.params if isinstance(each, click.Option) and each.envvar]
    return table(
        ("variable", "option", "meaning"),
        [
            (code(str(each.envvar)), code(each.opts[0]), " ".join((each.help or "").split()))
            for each in options
        ],
    )
