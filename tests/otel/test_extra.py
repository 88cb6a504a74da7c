"""The packages of the extra `otel`."""

from pathlib import Path

import pytest

from smtpproxy.config import validation
from smtpproxy.config.decoding import ConfigError
from smtpproxy.config.loader import load
from tests.support.settings_file import GOOD, write

ENDPOINT = '[otel]\nendpoint = "http://127.0.0.1:4318"\n'


def test_with_the_packages_the_endpoint_is_accepted(tmp_path: Path) -> None:
    assert load(write(tmp_path, GOOD + ENDPOINT)).otel.endpoint == "http://127.0.0.1:4318"


@pytest.mark.parametrize("module", ["opentelemetry.nothing", "no_such_package.trace"])
def test_without_the_packages_the_problem_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setattr(validation, "_OTEL_MODULES", (module,))
    with pytest.raises(ConfigError, match=r"pip install 'smtpproxy\[otel\]'"):
        load(write(tmp_path, GOOD + ENDPOINT))
    load(write(tmp_path, GOOD))
