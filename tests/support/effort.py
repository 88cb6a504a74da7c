"""The number of examples for each property test, which are the same in every run.

`.ci/run` has three times as many (`HYPOTHESIS_PROFILE=ci`).  `HYPOTHESIS_PROFILE=search` looks for
others, a hundred times as many as that: so the search goes on by command, and a run that fails
without it means the change.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci",
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("few", settings.get_profile("ci"), max_examples=30)
settings.register_profile(
    "search", settings.get_profile("ci"), max_examples=10_000, derandomize=False, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))

_EXAMPLES = settings.default.max_examples
QUICK = settings(max_examples=6 * _EXAMPLES // 10)
THOROUGH = settings(max_examples=16 * _EXAMPLES // 10)
