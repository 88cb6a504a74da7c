"""Where the control socket is made, and where it is looked for."""

from pathlib import Path

import pytest

from smtpproxy.control_socket import locations


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that replaces /run/smtpproxy."""
    path = tmp_path / "run/smtpproxy"
    monkeypatch.setattr(locations, "SYSTEM", path)
    return path


def test_the_directory_from_systemd_is_preferred(system: Path) -> None:
    environ = {"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/run/user/1"}
    assert locations.of_service(environ) == Path("/run/a/control.sock")
    assert locations.of_commands(environ) == [
        Path("/run/a/control.sock"),
        system / "control.sock",
        Path("/run/user/1/smtpproxy/control.sock"),
    ]


def test_the_system_directory_is_made_where_that_can_be(system: Path) -> None:
    system.parent.mkdir()
    assert locations.of_service({"XDG_RUNTIME_DIR": "/nowhere"}) == system / "control.sock"
    assert system.is_dir()


def test_the_users_own_directory_is_private(system: Path, tmp_path: Path) -> None:
    found = locations.of_service({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert found == tmp_path / "smtpproxy/control.sock"
    assert found.parent.stat().st_mode & 0o777 == 0o700
    assert not system.exists()


def test_there_may_be_no_place_at_all(system: Path) -> None:
    assert locations.of_service({}) is None
    assert locations.of_service({"XDG_RUNTIME_DIR": "/dev/null"}) is None
    assert locations.of_commands({}) == [system / "control.sock"]
