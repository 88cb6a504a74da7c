"""The example files: each is printed by a command, as it is in the package."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from smtpproxy import cli, data

DIRECTORY = Path(data.__file__).parent


@pytest.mark.parametrize("name", data.EXAMPLES)
def test_an_example_is_printed_as_it_is(name: str) -> None:
    result = CliRunner().invoke(cli.main, ["example", name])
    assert result.exit_code == 0
    assert result.stdout == (DIRECTORY / data.EXAMPLES[name].file).read_text()
    assert result.stdout.endswith("\n")


def test_each_file_is_an_example() -> None:
    found = {path for path in DIRECTORY.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    known = {DIRECTORY / each.file for each in data.EXAMPLES.values()}
    assert found - {DIRECTORY / "__init__.py"} == known


def test_help_names_each_example() -> None:
    reported = CliRunner().invoke(cli.main, ["example", "--help"]).stdout
    for name, example in data.EXAMPLES.items():
        assert f"{name:20}{example.purpose}\n" in reported


def test_an_unknown_name_shows_the_known() -> None:
    result = CliRunner().invoke(cli.main, ["example", "unit"])
    assert result.exit_code == 2
    assert all(f"'{name}'" in result.stderr for name in data.EXAMPLES)


@pytest.mark.parametrize("name", ["config", "config-transparent", "config-haproxy"])
def test_printed_settings_have_no_problem(name: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("0123456789abcdef")
    text = data.read_example(name).replace("/etc/smtpproxy/admin-token", str(token))
    (tmp_path / "settings").write_text(text)
    result = CliRunner().invoke(cli.main, ["check", "-c", str(tmp_path / "settings")])
    assert result.exit_code == 0, result.output
