"""Alerting rules and dashboard: right by Prometheus' own tool, and of metrics that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from smtpproxy import data
from smtpproxy.metrics.definitions import COUNTER, DEFINITIONS, HISTOGRAM, INSTANCE
from tests.support.programs import root_of

RULES = Path(data.__file__).parent / data.EXAMPLES["prometheus-rules"].file
TESTS = Path(__file__).parent / "prometheus_rules_test.yml"
DASHBOARD = json.loads(data.read_example("grafana"))
METRIC = rf"\b(?!{INSTANCE}\b)smtpproxy_\w+"
EXPRESSIONS = [
    (panel["title"], target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]


def exposed_names() -> set[str]:
    """Return the name of each series that a scrape can have."""
    names = set()
    for each in DEFINITIONS.values():
        ends = {COUNTER: ("_total",), HISTOGRAM: ("_bucket", "_sum", "_count")}
        names |= {f"smtpproxy_{each.name}{end}" for end in ends.get(each.kind, ("",))}
    return names


def labels_of(series: str) -> set[str]:
    """Return the labels that a series has, those of every scrape included."""
    name = re.sub("_(total|bucket|sum|count)$", "", series.removeprefix("smtpproxy_"))
    metric = DEFINITIONS.get(name) or DEFINITIONS[series.removeprefix("smtpproxy_")]
    return {*metric.labels, INSTANCE, "instance", "job", "le"}


def promtool(*arguments: str | Path) -> None:
    program = root_of("prometheus", "usr/bin/promtool") / "usr/bin/promtool"
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_have_no_fault() -> None:
    promtool("check", "rules", RULES)


def test_each_alert_fires_when_it_should_and_not_when_all_is_well(tmp_path: Path) -> None:
    shutil.copy(RULES, tmp_path / "rules.yml")
    shutil.copy(TESTS, tmp_path)
    promtool("test", "rules", tmp_path / TESTS.name)


def test_each_alert_is_tested_both_ways() -> None:
    fires, quiet = TESTS.read_text().split("name: a service that works")
    for alert in re.findall(r"alert: (\w+)", RULES.read_text()):
        assert f"alertname: {alert}\n        exp_alerts:" in fires
        assert f"alertname: {alert}}}" in quiet


@pytest.mark.parametrize("file", ["rules", "their tests", "dashboard"])
def test_each_metric_that_is_named_exists(file: str) -> None:
    text = {
        "rules": RULES.read_text(),
        "their tests": TESTS.read_text(),
        "dashboard": json.dumps(DASHBOARD),
    }[file]
    named = set(re.findall(METRIC, text))
    assert len(named) > 10
    assert named <= exposed_names()


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_a_panel_asks_for_labels_that_its_metrics_have(title: str, expression: str) -> None:
    for series, matchers in re.findall(r"(smtpproxy_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)=", matchers)) <= labels_of(series), title
    for by in re.findall(r"by \(([^)]*)\)", expression):
        names = re.findall(METRIC, expression)
        assert set(by.split(", ")) <= set().union(*map(labels_of, names)), title


def test_the_expressions_are_those_of_prometheus(tmp_path: Path) -> None:
    """As recording rules, with the dashboard's variables filled in."""
    rules: list[dict[str, Any]] = []
    for number, (_, expression) in enumerate(EXPRESSIONS):
        filled = re.sub(r"\$\w+", ".*", expression)
        rules.append({"record": f"panel:{number}", "expr": filled})
    groups = {"groups": [{"name": "dashboard", "rules": rules}]}
    (tmp_path / "dashboard.yml").write_text(json.dumps(groups))
    promtool("check", "rules", tmp_path / "dashboard.yml")


@pytest.mark.parametrize(("store", "most"), [((1, 1), 40), ((1, 0), 40), ((), 80)])
def test_replicas_of_a_cluster_share_max_connections(
    tmp_path: Path, store: tuple[int, ...], most: int
) -> None:
    """In the dashboard, as at the MTA; without a cluster each has its own."""
    (expression,) = (
        expression for _, expression in EXPRESSIONS if "backend_max_connections" in expression
    )
    series = {
        f'smtpproxy_backend_max_connections{{backend="old",{INSTANCE}="mx{number}"}}': 40
        for number in range(2)
    }
    for number, value in enumerate(store):
        series[f'smtpproxy_cluster_store_up{{{INSTANCE}="mx{number}"}}'] = value
    test = {
        "input_series": [{"series": name, "values": str(value)} for name, value in series.items()],
        "promql_expr_test": [
            {
                "expr": re.sub(r"\$\w+", ".*", expression),
                "eval_time": "0m",
                "exp_samples": [{"labels": '{backend="old"}', "value": most}],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(json.dumps({"tests": [test]}))
    promtool("test", "rules", tmp_path / "test.yml")


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, (panel["title"], taken.get((x, y)))
                taken[x, y] = panel["title"]
