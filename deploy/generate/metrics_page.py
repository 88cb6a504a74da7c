"""deploy/reference/metrics.md: every metric and its labels."""

from markdown import code, page, table

from smtpproxy.metrics.definitions import COUNTER, DEFINITIONS, Definition
from smtpproxy.metrics.exposition import PREFIX

_INTRODUCTION = """\
`GET /metrics` at `admin.address`, in the Prometheus format. Numbers are sums over all workers,
those that have ended included. The `process_` and `python_gc_` metrics are those of the supervisor.
What to watch: deploy/operations.md.
"""
_HISTOGRAMS = """\
A histogram has `_bucket` (with the label `le`, the upper bound), `_sum` and `_count` after its
name.
"""


def metrics_page() -> str:
    """Return the page."""
    rows = [
        (code(_name(each)), each.kind, ", ".join(map(code, each.labels)), each.help)
        for each in DEFINITIONS.values()
    ]
    listed = table(("metric", "type", "labels", "meaning"), rows)
    return page("Metrics", [_INTRODUCTION, listed, _HISTOGRAMS])


def _name(row: Definition) -> str:
    return f"{PREFIX}{row.name}{'_total' if row.kind == COUNTER else ''}"
