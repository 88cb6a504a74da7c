"""Only the module of a class assigns the attributes of its objects.

An attribute that another module sets is state with two owners.  Such a module calls a method or
passes an argument instead, so that one file shows everything that can happen to the attribute.

Types are not known here, so an attribute is found by its name: one that the module's own classes
have, too, is not noticed.
"""

import ast
from functools import cache

import pytest

from tests.test_imports import MODULES

FILLED_IN = {
    ("core.exchange", "core"),  # each step sets its own fields; a call for each would be slow
    ("probe.findings", "probe"),  # each check adds what it has found
    ("control_socket.service_status", "supervisor"),  # it adds what the store knows
}
"""A module of records, and the package whose other modules fill them in."""

OF_THE_LIBRARY = {
    ("tls.contexts", "inside.context"),  # ssl.SSLObject, in the callback for SNI
    ("metrics.exposition", "metric.samples"),  # prometheus_client.Metric
}


def _attributes(tree: ast.Module) -> set[str]:
    """Return the attributes that the classes of a module have, without those of interfaces."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and "Protocol" not in map(ast.unparse, node.bases):
            for each in ast.walk(node):
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                    found.add(each.target.id)
                elif isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
                    found |= {each.attr} if ast.unparse(each.value) == "self" else set()
    return found


FILES = {module.removeprefix("smtpproxy."): file for module, file in MODULES.items()}


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


@cache
def _owners() -> dict[str, set[str]]:
    """Return the modules that define an attribute, by its name."""
    found: dict[str, set[str]] = {}
    for module in FILES:
        for name in _attributes(_tree(module)):
            found.setdefault(name, set()).add(module)
    return found


def _foreign(module: str, tree: ast.Module, own: set[str]) -> list[str]:
    """Return the attributes that a module sets or deletes, and that only other modules define."""
    package = module.split(".")[0]
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load):
            continue
        name = ast.unparse(node)
        owners = _owners().get(node.attr)
        if (
            owners
            and node.attr not in own
            and ast.unparse(node.value) not in ("self", "cls")
            and not any((owner, package) in FILLED_IN for owner in owners)
            and (module, name) not in OF_THE_LIBRARY
        ):
            found.append(f"{node.lineno}: {name}")
    return found


@pytest.mark.parametrize("module", FILES)
def test_module_sets_attributes_of_its_own_classes_only(module: str) -> None:
    tree = _tree(module)
    assert _foreign(module, tree, _attributes(tree)) == []


@pytest.mark.parametrize(
    ("source", "foreign"),
    [
        ("session.pipeline.draining = 'x'", ["1: session.pipeline.draining"]),
        ("self.framer.queue_octets += 1", ["1: self.framer.queue_octets"]),
        ("a, pool.left_alone_until = 1, 2", ["1: pool.left_alone_until"]),
        ("del self.framer.queue_octets", ["1: self.framer.queue_octets"]),
        ("for framer.queue_octets in ():\n    pass", ["1: framer.queue_octets"]),
        (
            "class A:\n    def f(self, other):\n        self.queue_octets = other.queue_octets = 1",
            [],
        ),
        ("class A(Protocol):\n    queue_octets: int\nx.queue_octets = 1", ["3: x.queue_octets"]),
        ("context.check_hostname = False", []),
    ],
)
def test_attribute_of_another_object_is_noticed(source: str, foreign: list[str]) -> None:
    tree = ast.parse(source)
    assert _foreign("net.session", tree, _attributes(tree)) == foreign


def test_every_exception_is_needed() -> None:
    assert {owner for owner, _ in FILLED_IN} <= FILES.keys()
    for module, name in OF_THE_LIBRARY:
        assert name in ast.unparse(_tree(module))
