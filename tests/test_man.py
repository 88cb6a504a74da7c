"""The manual pages: what is in deploy/man is what the commands and the settings say today."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import command

MAN = Path(__file__).parent.parent / "deploy" / "man"
PAGES = ("smtpproxy.8", "smtpproxy.toml.5")


def test_the_pages_are_up_to_date(tmp_path: Path) -> None:
    """If this fails: python deploy/man/build.py."""
    subprocess.run([sys.executable, MAN / "build.py", tmp_path], check=True, timeout=60)
    for name in PAGES:
        assert (MAN / name).read_text() == (tmp_path / name).read_text(), f"{name} is out of date"


@pytest.mark.parametrize("name", PAGES)
def test_groff_formats_a_page_without_a_warning(name: str) -> None:
    groff = command("groff", "groff-base")
    done = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", "-z", MAN / name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
