"""The status of the service for `smtpproxy status`."""

from collections.abc import Iterator, Sequence

from smtpproxy.control_socket.service_status import InstanceStatus, ServiceStatus


def alone(own: InstanceStatus) -> ServiceStatus:
    """Return the status of a service without a cluster."""
    return ServiceStatus([own], problems=list(_problems([own])))


def _problems(instances: Sequence[InstanceStatus]) -> Iterator[str]:
    """Yield what is wrong with instances."""
    for each in instances:
        if each.state not in ("serving", "handed over"):
            yield f"{each.instance}: {each.state}"
        for backend in each.backends:
            for server in backend.servers_down:
                yield f"{each.instance}: server {server} of {backend.name} is down"
