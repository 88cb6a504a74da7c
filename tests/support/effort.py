"""The number of examples for each property test, which are the same in every run.

`HYPOTHESIS_PROFILE=search` looks for others, a hundred times as many: so the search goes on by
command, and a run that fails without it means the change.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "same",
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "search", settings.get_profile("same"), max_examples=10_000, derandomize=False, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

_TIMES = settings.default.max_examples // 100
QUICK = settings(max_examples=60 * _TIMES)
THOROUGH = settings(max_examples=160 * _TIMES)
