"""The status of the service for `smtpproxy status`: of this instance, and of its cluster."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from smtpproxy.control_socket.service_status import InstanceStatus, ServiceStatus

if TYPE_CHECKING:
    from smtpproxy.cluster.store import ReplicaRecord, Store

PART = "status"
"""The name of the status among what a replica publishes."""
SILENT_S = 7.0
"""After how long a replica that reports every 2 seconds is shown as silent."""


def publish(own: InstanceStatus) -> object:
    """Return what this replica publishes as `PART`."""
    own.store = "up"
    return msgspec.to_builtins(own)


def alone(own: InstanceStatus) -> ServiceStatus:
    """Return the status of a service without a cluster."""
    return ServiceStatus([own], problems=list(_problems([own])))


async def in_cluster(own: InstanceStatus, store: "Store") -> ServiceStatus:
    """Return the status of this instance, and of the others that the store knows.

    Args:
        own: This instance, as it is now.
        store: The store of its cluster.
    """
    from smtpproxy.cluster.store import StoreAway  # needs the extra

    name, replicas = store.settings.name, store.settings.replicas
    try:
        records = await store.replicas()
    except StoreAway as error:
        own.store = "up" if store.is_up else "away"
        why = "" if store.is_up else "the store is away, so "
        missing = f"{own.instance}: {why}other replicas are not shown: {error}"
        return ServiceStatus([own], name, replicas, [*_problems([own]), missing])
    own.store = "up"
    others = [_instance(each) for each in records if each.replica != store.replica]
    instances = sorted([own, *others], key=lambda each: each.instance)
    problems = [*_problems(instances), *_problems_between(instances, name, replicas)]
    return ServiceStatus(instances, name, replicas, problems)


def _instance(record: "ReplicaRecord") -> InstanceStatus:
    try:
        found = msgspec.convert(record.parts.get(PART), InstanceStatus)
    except msgspec.ValidationError:  # of another version
        found = InstanceStatus(record.instance)
    found.age_s = record.age_s
    if record.age_s > SILENT_S:
        found.state, found.store = "silent", ""
    return found


def _problems(instances: Sequence[InstanceStatus]) -> Iterator[str]:
    """Yield what is wrong with each instance."""
    for each in instances:
        name = each.instance
        match each.state:
            case "serving" | "handed over":
                pass
            case "silent":
                yield f"{name}: silent for {each.age_s:.0f} s"
                continue  # what it reported is old
            case "unknown":
                yield f"{name}: another version, whose status cannot be read here"
            case state:
                yield f"{name}: {state}"
        for backend in each.backends:
            for server in backend.servers_down:
                yield f"{name}: server {server} of {backend.name} is down"


def _problems_between(
    instances: Sequence[InstanceStatus], cluster: str, replicas: int
) -> Iterator[str]:
    """Yield what is wrong with a cluster as a whole."""
    current = [each for each in instances if each.state != "handed over"]
    heard = [each for each in current if each.state != "silent"]
    if len(current) < replicas:
        yield f"cluster {cluster}: {len(current)} of {replicas} replicas"
    if len(heard) > replicas:
        yield f"cluster {cluster}: {len(heard)} replicas, and {replicas} expected"
    for name, times in Counter(each.instance for each in heard).items():
        if times > 1:
            yield f'{name}: the name of {times} replicas; give each its own "instance"'
    readable = [each for each in heard if each.state != "unknown"]
    settings: dict[str, dict[float, str]] = {}
    for each in readable:
        found: dict[str, float] = {f"cluster {cluster}: replicas": each.replicas}
        found[f"cluster {cluster}: lease"] = each.lease_s
        found |= {f"{one.name}: max_connections": one.max_connections for one in each.backends}
        for setting, value in found.items():
            settings.setdefault(setting, {}).setdefault(value, each.instance)
    for setting, values in settings.items():
        if len(values) > 1:
            shown = ", ".join(f"{value:.12g} at {name}" for value, name in values.items())
            yield f"{setting} differs: {shown}"
