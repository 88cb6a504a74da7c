"""The page of settings: all of them, and the defaults that they have."""

import re
from pathlib import Path

import msgspec
import pytest

from smtpproxy.config.loader import load
from smtpproxy.config.schema import (
    AdminSettings,
    BackendSettings,
    LimitSettings,
    ListenerSettings,
    LogSettings,
    TimeoutSettings,
    TraceSettings,
)

PAGE = (Path(__file__).parents[1] / "deploy" / "reference" / "settings.md").read_text()
TABLES = {
    "listeners.*": ListenerSettings,
    "backends.*": BackendSettings,
    "limits": LimitSettings,
    "timeouts": TimeoutSettings,
    "log": LogSettings,
    "trace": TraceSettings,
    "admin": AdminSettings,
}
ROWS = re.findall(r"^\| `([a-z.*]+)\.(\w+)` \| *(?:`(.*?)`)? *\|", PAGE, re.MULTILINE)


@pytest.mark.parametrize("table", TABLES)
def test_each_setting_has_a_row(table: str) -> None:
    known = [field.name for field in msgspec.structs.fields(TABLES[table])]
    listed = {key for name, key, _ in ROWS if name == table}
    listed |= {name.rpartition(".")[2] for name, _, _ in ROWS if name.startswith(f"{table}.")}
    assert listed == set(known)


def test_the_defaults_are_those_of_the_program(tmp_path: Path) -> None:
    """Written into a file, the defaults of the page change nothing."""
    begin = {
        "listeners.*": '[listeners.smtp]\naddress = "[::1]:25"\n',
        "backends.*": '[backends.old]\nservers = ["10.0.0.5:25"]\n',
    }
    (tmp_path / "short").write_text("".join(begin.values()))
    texts = {table: begin.get(table, f"[{table}]\n") for table in TABLES}
    written = 0
    for table, key, default in ROWS:
        if default and table in texts:
            texts[table] += f"{key} = {default}\n"
            written += 1
    (tmp_path / "long").write_text("".join(texts.values()))
    assert load(tmp_path / "long") == load(tmp_path / "short")
    assert written > 50
