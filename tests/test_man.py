"""The manual pages: groff can format them; tests/test_reference.py keeps them up to date."""

import subprocess
from pathlib import Path

import pytest

from tests.support.programs import command

MAN = Path(__file__).parent.parent / "deploy" / "man"
PAGES = ("smtpproxy.8", "smtpproxy.toml.5")


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
