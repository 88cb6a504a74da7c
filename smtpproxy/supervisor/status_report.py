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

    instances = [own]
    try:
        records = await store.replicas()
    except StoreAway:
        own.store = "away"
    else:
        own.store = "up"
        instances += [_instance(each) for each in records if each.replica != store.replica]
    instances.sort(key=lambda each: each.instance)
    name, replicas = store.settings.name, store.settings.replicas
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
        if each.store == "away":
            yield f"{name}: the store is away, so other replicas are not shown"
        for backend in each.backends:
            for server in backend.servers_down:
                yield f"{name}: server {server} of {backend.name} is down"


def _problems_between(
    instances: Sequence[InstanceStatus], cluster: str, replicas: int
) -> Iterator[str]:
    """Yield what is wrong with a cluster as a whole."""
    current = [each for each in instances if each.state != "handed over"]
    is_complete = all(each.store != "away" for each in instances)
    if is_complete and len(current) < replicas:
        yield f"cluster {cluster}: {len(current)} of {replicas} replicas"
    for name, times in Counter(each.instance for each in current).items():
        if times > 1:
            yield f'{name}: the name of {times} replicas; give each its own "instance"'
    limits: dict[str, dict[int, str]] = {}
    for each in current:
        for backend in each.backends:
            limits.setdefault(backend.name, {}).setdefault(backend.max_connections, each.instance)
    for backend_name, found in limits.items():
        if len(found) > 1:
            shown = ", ".join(f"{limit} at {name}" for limit, name in found.items())
            yield f"{backend_name}: max_connections differs: {shown}"
