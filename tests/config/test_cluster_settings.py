"""The settings of a cluster: what is refused, and what `check` warns of."""

from pathlib import Path

import pytest

from smtpproxy.config import validation
from smtpproxy.config.decoding import ConfigError
from smtpproxy.config.loader import load
from smtpproxy.config.validation import shareless
from tests.support.settings_file import GOOD, write

CLUSTER = '[cluster]\nurl = "redis://127.0.0.1:6379"\nreplicas = 3\n'


def test_the_settings_of_a_cluster(tmp_path: Path) -> None:
    cluster = load(write(tmp_path, GOOD + CLUSTER)).cluster
    assert (cluster.url, cluster.name, cluster.replicas, cluster.lease) == (
        "redis://127.0.0.1:6379",
        "smtpproxy",
        3,
        30.0,
    )


@pytest.mark.parametrize(
    "url",
    [
        "rediss://redis.example.org",
        "redis://mail:secret@[2001:db8::1]:6380/2",
        "redis://:secret@10.0.0.9",
    ],
)
def test_urls_that_are_accepted(tmp_path: Path, url: str) -> None:
    text = f'[cluster]\nurl = "{url}"\nreplicas = 2\n'
    assert load(write(tmp_path, GOOD + text)).cluster.url == url


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:6379", "http://x", "redis://", "redis://x:99999", "redis://x/y", "redis://x?ssl=1"],
)
def test_urls_that_are_refused_are_not_shown(tmp_path: Path, url: str) -> None:
    text = f'[cluster]\nurl = "{url}"\nreplicas = 2\n'
    with pytest.raises(ConfigError) as raised:
        load(write(tmp_path, GOOD + text))
    (problem,) = raised.value.problems
    assert problem.key == "cluster.url"
    assert "is not the URL of a Redis or Valkey server" in str(problem)
    assert f'"{url}"' not in str(problem)


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ("[cluster]\nreplicas = 3\n", "cluster.url", "is missing"),
        ('[cluster]\nurl = "redis://x"\n', "cluster.replicas", "is missing or 0"),
        ('[cluster]\nurl = "redis://x"\nreplicas = 0\n', "cluster.replicas", "is missing or 0"),
        (CLUSTER + "lease = 0.5\n", "cluster.lease", "from 1 to 3600"),
    ],
)
def test_half_a_cluster_is_refused(tmp_path: Path, text: str, key: str, what: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(write(tmp_path, GOOD + text))
    (problem,) = raised.value.problems
    assert problem.key == key
    assert what in str(problem)


def test_without_the_package_the_problem_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_CLUSTER_MODULE", "no_such_package.asyncio")
    with pytest.raises(ConfigError, match=r"pip install 'smtpproxy\[cluster\]'"):
        load(write(tmp_path, GOOD + CLUSTER))
    load(write(tmp_path, GOOD))


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("redis://10.0.0.9", "redis://:p%40%2Fss@10.0.0.9"),
        ("rediss://mail@[::1]:6380/1", "rediss://mail:p%40%2Fss@[::1]:6380/1"),
    ],
)
def test_the_password_file_completes_the_url(tmp_path: Path, url: str, whole: str) -> None:
    file = tmp_path / "password"
    file.write_text("p@/ss\n")
    file.chmod(0o600)
    text = f'[cluster]\nurl = "{url}"\nreplicas = 2\npassword_file = "{file}"\n'
    assert load(write(tmp_path, GOOD + text)).cluster.url == whole


@pytest.mark.parametrize(
    ("mode", "url", "what"),
    [
        (0o644, "redis://x", "other accounts can read or change it"),
        (0o600, "redis://:secret@x", "is not used"),
    ],
)
def test_a_password_file_that_is_refused(tmp_path: Path, mode: int, url: str, what: str) -> None:
    file = tmp_path / "password"
    file.write_text("secret")
    file.chmod(mode)
    text = f'[cluster]\nurl = "{url}"\nreplicas = 2\npassword_file = "{file}"\n'
    with pytest.raises(ConfigError) as raised:
        load(write(tmp_path, GOOD + text))
    (problem,) = raised.value.problems
    assert problem.key == "cluster.password_file"
    assert what in str(problem)
    assert "secret" not in str(problem)


@pytest.mark.parametrize(("connections", "warnings"), [(0, 0), (2, 1), (3, 0)])
def test_fewer_connections_than_replicas_are_warned_of(
    tmp_path: Path, connections: int, warnings: int
) -> None:
    text = GOOD + f"max_connections = {connections}\n" + CLUSTER
    assert len(shareless(load(write(tmp_path, text)))) == warnings
