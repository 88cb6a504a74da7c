"""Writes the pages that are generated from the program: the reference and the manual pages.

python deploy/generate [--check]

With --check nothing is written: the command lists the pages that are out of date, and exits 1 if
there are any.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from capabilities_page import capabilities_page
from events_page import events_page
from man_pages import commands_page, settings_manual
from metrics_page import metrics_page
from settings_page import settings_page
from trace_page import trace_page

_DEPLOY = Path(__file__).parent.parent
PAGES: dict[Path, Callable[[], str]] = {
    _DEPLOY / "reference" / "settings.md": settings_page,
    _DEPLOY / "reference" / "events.md": events_page,
    _DEPLOY / "reference" / "metrics.md": metrics_page,
    _DEPLOY / "reference" / "capabilities.md": capabilities_page,
    _DEPLOY / "reference" / "trace.md": trace_page,
    _DEPLOY / "man" / "smtpproxy.8": commands_page,
    _DEPLOY / "man" / "smtpproxy.toml.5": settings_manual,
}


def main() -> int:
    """Write the pages, or check them; return the exit status."""
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 2
    stale = [
        path for path, make in PAGES.items() if not path.exists() or path.read_text() != make()
    ]
    for path in stale:
        print(path.relative_to(_DEPLOY.parent), "is out of date" if check else "written")  # noqa: T201
        if not check:
            path.write_text(PAGES[path]())
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
