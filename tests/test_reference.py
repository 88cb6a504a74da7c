"""The generated pages: deploy/generate makes them from the program, and they are up to date.

If a test here fails: `python deploy/generate`.
"""

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from smtpproxy.config.loader import load
from smtpproxy.config.schema import (
    AdminSettings,
    BackendSettings,
    CapabilitySettings,
    CertificateSettings,
    ClusterSettings,
    LimitSettings,
    ListenerSettings,
    LogSettings,
    OtelSettings,
    TimeoutSettings,
    TraceSettings,
)
from smtpproxy.core.capabilities import NEVER_PASSED, PASSED
from smtpproxy.log.events import EVENTS, FIELDS
from smtpproxy.metrics.definitions import DEFINITIONS

DEPLOY = Path(__file__).parents[1] / "deploy"
SETTINGS = (DEPLOY / "reference" / "settings.md").read_text()
TABLES = {
    "listeners.NAME": ListenerSettings,
    "listeners.NAME.capabilities": CapabilitySettings,
    "listeners.NAME.sni.HOST": CertificateSettings,
    "backends.NAME": BackendSettings,
    "limits": LimitSettings,
    "timeouts": TimeoutSettings,
    "log": LogSettings,
    "trace": TraceSettings,
    "otel": OtelSettings,
    "cluster": ClusterSettings,
    "admin": AdminSettings,
}
ROWS = re.findall(
    r"^\| `([A-Za-z.]+)\.(\w+)` \|[^|]*\| *(?:`(.*?)`)?[^|]*\|", SETTINGS, re.MULTILINE
)


def test_the_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, DEPLOY / "generate", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("table", TABLES)
def test_each_setting_has_a_row(table: str) -> None:
    inner = {"capabilities", "sni"} if table == "listeners.NAME" else set()
    known = {field.name for field in msgspec.structs.fields(TABLES[table])}
    assert {key for name, key, _ in ROWS if name == table} == known - inner


def test_the_defaults_of_the_page_are_written_as_in_the_file(tmp_path: Path) -> None:
    """Written into a file, the defaults of the page change nothing."""
    begin = {
        "listeners.NAME": '[listeners.NAME]\naddress = "[::1]:25"\n',
        "backends.NAME": '[backends.NAME]\nservers = ["10.0.0.5:25"]\n',
    }
    (tmp_path / "short").write_text("".join(begin.values()))
    texts = {table: begin.get(table, f"[{table}]\n") for table in TABLES if "HOST" not in table}
    written = 0
    for table, key, default in ROWS:
        if default:
            texts[table] += f"{key} = {default}\n"
            written += 1
    (tmp_path / "long").write_text("".join(texts.values()))
    assert load(tmp_path / "long") == load(tmp_path / "short")
    assert written > 50


def test_each_metric_event_and_capability_is_on_its_page() -> None:
    pages = {
        "events.md": EVENTS.keys() | FIELDS.keys(),
        "metrics.md": {
            f"smtpproxy_{each.name}{'_total' if each.kind == 'counter' else ''}"
            for each in DEFINITIONS.values()
        },
        "capabilities.md": {word.decode() for word in PASSED.keys() | NEVER_PASSED.keys()},
    }
    for page, names in pages.items():
        text = (DEPLOY / "reference" / page).read_text()
        assert {name for name in names if f"`{name}`" not in text} == set()
