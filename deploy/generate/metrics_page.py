"""Makes deploy/reference/metrics.md: every metric and its labels."""

from markdown import code, page, table

from smtpproxy.metrics.definitions import COUNTER, DEFINITIONS, LABELS, Definition
from smtpproxy.metrics.exposition import PREFIX

_INTRODUCTION = """\
`GET /metrics` at `admin.address`, in the Prometheus format. Numbers are sums over all workers,
those that have ended included. Each series has the label `smtpproxy_instance`, the setting
`instance`, besides the labels below. The `process_` and `python_gc_` metrics are those of the
supervisor. What to watch: deploy/operations.md.
"""
_LABELS = """\
## Labels

`smtpproxy_instance` is not called `instance`, since Prometheus gives each series a label `instance`
of its own, the address that it scrapes, and would rename ours to `exported_instance`. It is the
name in log lines and in `smtpproxy status`, and stays the same when the address changes.

A histogram `NAME` is scraped as `NAME_bucket` with the further label `le`, the upper bound,
`NAME_sum` and `NAME_count`. The values of all labels are bounded: they come from the settings or
from the program, never from a client or a server.
"""


def metrics_page() -> str:
    """Return the page."""
    rows = [
        (code(_name(each)), each.kind, ", ".join(map(code, each.labels)), each.help)
        for each in DEFINITIONS.values()
    ]
    listed = table(("metric", "type", "labels", "meaning"), rows)
    labels = table(("label", "meaning"), [(code(name), text) for name, text in LABELS.items()])
    return page("Metrics", [_INTRODUCTION, listed, _LABELS, labels])


def _name(row: Definition) -> str:
    return f"{PREFIX}{row.name}{'_total' if row.kind == COUNTER else ''}"
