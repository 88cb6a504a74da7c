"""A build says whether its hot path is compiled."""

import importlib

from smtpproxy import is_compiled
from smtpproxy.metrics.exposition import Exposition
from smtpproxy.metrics.snapshot import MetricsSnapshot


def test_the_modules_of_the_core_are_what_the_build_says() -> None:
    for name in ("framing", "pipeline", "reply_matching"):
        module = importlib.import_module(f"smtpproxy.core.{name}")
        assert str(module.__file__).endswith(".so" if is_compiled() else ".py")


def test_the_metric_says_so() -> None:
    text = Exposition().render(MetricsSnapshot()).decode()
    assert f'smtpproxy_build_info{{compiled="{"yes" if is_compiled() else "no"}",version=' in text
