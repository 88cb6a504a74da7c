"""Numbers as the values of command-line options.

Each error gives the value, what is wanted, and an example.
"""

from typing import Any

import click


def _wanted(what: str, least: float | None, most: float | None, example: float) -> str:
    if most is None:
        return f"{what} of at least {least:g}, such as {example:g}"
    return f"{what} from {least:g} to {most:.0f}, such as {example:g}"


class WholeNumber(click.IntRange):
    """A whole number of at least `least`, and at most `most` if it is given."""

    def __init__(self, least: int, most: int | None = None, *, example: int) -> None:
        super().__init__(least, most)
        self._wanted = _wanted("a whole number", least, most, example)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; an invalid one is a usage error."""
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"{value!r} is not {self._wanted}", param, ctx)


class Seconds(click.FloatRange):
    """A number of seconds from `least` to `most`."""

    def __init__(self, least: float, most: float, *, example: float) -> None:
        super().__init__(least, most)
        self._wanted = _wanted("a number of seconds", least, most, example)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; an invalid one is a usage error."""
        try:
            number = float(super().convert(value, param, ctx))
        except click.BadParameter:
            number = float("nan")
        if number != number:  # click lets "nan" through
            self.fail(f"{value!r} is not {self._wanted}", param, ctx)
        return number
