"""Stages for the tests: each MTA and its proxy start once, and are watched in every test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from selenium import webdriver

from tests.interop.clients import SmtpTarget
from tests.interop.dialogue import assert_lock_step, assert_sealed
from tests.interop.peers import BACKENDS, SEALED
from tests.interop.stage import Stage
from tests.interop.stage import keys as made_keys
from tests.interop.stage import stage as running_stage
from tests.interop.tap import Tap
from tests.support.processes import free_port
from tests.support.programs import command

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--window-size=1280,860"
)


@pytest.fixture(scope="session")
def keys() -> Iterator[Path]:
    """Give a directory with the keys of the proxy, and of MTAs that do TLS."""
    with made_keys() as directory:
        yield directory


@pytest.fixture(scope="session")
def stages(keys: Path) -> Iterator[Callable[[str], Stage]]:
    """Give a function that returns the stage with a certain MTA, started when first asked for.

    One of `SEALED` takes nothing outside of TLS.
    """
    started: dict[str, Stage] = {}
    with ExitStack() as stack:

        def start(name: str) -> Stage:
            if name not in started:
                sealed = name in SEALED
                backend = partial(SEALED[name], keys) if sealed else BACKENDS[name]
                started[name] = stack.enter_context(running_stage(backend, keys, sealed=sealed))
            return started[name]

        yield start


@pytest.fixture(params=BACKENDS)
def stage(request: pytest.FixtureRequest, stages: Callable[[str], Stage]) -> Iterator[Stage]:
    """Give the stage with each MTA in turn; whatever the test did, the MTA must see lock step."""
    chosen = stages(request.param)
    since = len(chosen.tap.connections)
    yield chosen
    for connection in chosen.tap.settled(since):
        if chosen.sealed:
            assert_sealed(connection)
        else:
            assert_lock_step(connection)


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    """Give the way in which the client comes: one of `stage.WAYS`, plaintext if none is named."""
    return str(getattr(request, "param", "off"))


@pytest.fixture
def front(stage: Stage, way: str) -> Iterator[Tap]:
    """Give a tap of the test's own in front of the proxy; of TLS it must see records only."""
    with Tap(stage.ports[way]) as tap:
        yield tap
        if way != "off":
            for connection in tap.settled():
                assert_sealed(connection)


@pytest.fixture
def target(front: Tap, way: str, keys: Path) -> SmtpTarget:
    """Yield the clients' address of that tap."""
    return SmtpTarget(front.port, way, keys / "ca.pem")


@pytest.fixture(scope="session")
def browser_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Give a browser that keeps what its console says."""
    options = webdriver.ChromeOptions()
    options.binary_location = command("chromium")
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    program = command("chromedriver", "chromium-driver")
    service = webdriver.ChromeService(program, port=free_port())
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def browser(browser_process: webdriver.Chrome) -> webdriver.Chrome:
    """Give the browser with nothing left of another test."""
    browser_process.delete_all_cookies()
    browser_process.get("about:blank")
    browser_process.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser_process.get_log("browser")
    return browser_process


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a client in a test's id by its function."""
    return getattr(val, "__name__", None) if argname == "client" else None
