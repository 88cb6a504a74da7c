"""Docstrings: `Args` names parameters that exist (ruff finds only those that are missing)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "smtpproxy"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def parameters(function: Function) -> set[str]:
    given = function.args
    others = [each for each in (given.vararg, given.kwarg) if each is not None]
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *others]
    return {each.arg for each in every}


def documented(docstring: str) -> list[str]:
    """Return the names in the section `Args` of a docstring without indentation."""
    section = re.search(r"^Args:\n((?: +.*\n?|\n(?= ))*)", docstring, re.MULTILINE)
    return re.findall(r"^    \**(\w+):", section[1], re.MULTILINE) if section else []


def functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Yield each docstring, and the function that it documents; a class's is of `__init__`."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield ast.get_docstring(node) or "", node
        elif isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef) and each.name == "__init__":
                    yield ast.get_docstring(node) or "", each


@pytest.mark.parametrize(
    ("docstring", "names"),
    [
        (
            "Do it.\n\nArgs:\n    one: The first,\n        in two: lines.\n    **two: More.\n",
            ["one", "two"],
        ),
        ("Do it.\n\nRaises:\n    OSError: It fails.\n", []),
    ],
)
def test_the_names_of_a_docstring_are_found(docstring: str, names: list[str]) -> None:
    assert documented(docstring) == names


def test_documented_parameters_exist() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{function.lineno}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for docstring, function in functions(ast.parse(path.read_text()))
        for name in documented(docstring)
        if name not in parameters(function)
    ]
    assert wrong == []
