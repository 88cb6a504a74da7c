"""The status of a cluster: which replicas it has, and what is wrong."""

import msgspec
import pytest
from msgspec.structs import replace

from smtpproxy.cluster.store import ReplicaRecord, StoreAway
from smtpproxy.config.schema import ClusterSettings
from smtpproxy.control_socket.service_status import BackendStatus, InstanceStatus, ServiceStatus
from smtpproxy.supervisor import status_report


class Store:
    """A fake of the store, with the records of other replicas beside that of this one."""

    def __init__(self, *others: ReplicaRecord, is_up: bool = True) -> None:
        self.settings = ClusterSettings(url="redis://127.0.0.1:1", name="mail", replicas=2)
        self.replica = "mx1:1:a"
        self.is_up = is_up
        self._records = [record(InstanceStatus("mx1", state="starting"), "mx1:1:a"), *others]

    async def replicas(self) -> list[ReplicaRecord]:
        if not self.is_up:
            raise StoreAway("Connection refused")
        return self._records


def serving(name: str = "mx1", *backends: BackendStatus) -> InstanceStatus:
    return InstanceStatus(
        name, "1.0", "serving", sessions=7, backends=list(backends), replicas=2, lease_s=30.0
    )


def record(status: InstanceStatus, replica: str = "", age_s: float = 0.5) -> ReplicaRecord:
    published = msgspec.json.decode(msgspec.json.encode(status_report.publish(status)))
    return ReplicaRecord(replica or status.instance, status.instance, {"status": published}, age_s)


async def report(*others: ReplicaRecord, is_up: bool = True) -> ServiceStatus:
    store = Store(*others, is_up=is_up)
    return await status_report.in_cluster(serving(), store)  # type: ignore[arg-type]


async def test_a_cluster_that_is_well() -> None:
    found = await report(record(serving("mx0")))
    assert (found.cluster, found.replicas, found.problems) == ("mail", 2, [])
    mx0, mx1 = found.instances
    assert (mx0.instance, mx0.sessions, mx0.store, mx0.age_s) == ("mx0", 7, "up", 0.5)
    assert (mx1.instance, mx1.state, mx1.store) == ("mx1", "serving", "up"), "as it is now"


async def test_a_store_that_is_away_hides_the_others() -> None:
    found = await report(record(serving("mx0")), is_up=False)
    (mx1,) = found.instances
    assert mx1.store == "away"
    assert found.problems == [
        "mx1: the store is away, so other replicas are not shown: Connection refused"
    ]


async def test_a_slow_list_is_not_a_store_that_is_away() -> None:
    store = Store(is_up=False)
    listing = status_report.in_cluster(serving(), store)  # type: ignore[arg-type]
    store.is_up = True

    async def slow() -> list[ReplicaRecord]:
        raise StoreAway("no answer in time")

    store.replicas = slow  # type: ignore[method-assign]
    found = await listing
    assert [each.store for each in found.instances] == ["up"]
    assert found.problems == ["mx1: other replicas are not shown: no answer in time"]


DOWN = BackendStatus("old", servers=2, servers_down=["10.0.0.6:25"])


@pytest.mark.parametrize(
    ("others", "problems"),
    [
        ([], ["cluster mail: 1 of 2 replicas"]),
        ([record(serving("mx2", DOWN), age_s=12.4)], ["mx2: silent for 12 s"]),
        ([record(replace(serving("mx2"), state="draining"))], ["mx2: draining"]),
        ([record(serving("mx2", DOWN))], ["mx2: server 10.0.0.6:25 of old is down"]),
        (
            [record(serving("mx1"), "mx1:2:b")],
            ['mx1: the name of 2 replicas; give each its own "instance"'],
        ),
        (
            [record(InstanceStatus("mx1", state="handed over"), "mx1:2:b")],
            ["cluster mail: 1 of 2 replicas"],
        ),
        (
            [
                record(serving("mx2", BackendStatus("old", max_connections=4))),
                record(serving("mx3", BackendStatus("old", max_connections=5))),
            ],
            [
                "cluster mail: 3 replicas, and 2 expected",
                "old: max_connections differs: 4 at mx2, 5 at mx3",
            ],
        ),
        (
            [record(replace(serving("mx2"), replicas=3, lease_s=10.0))],
            [
                "cluster mail: replicas differs: 2 at mx1, 3 at mx2",
                "cluster mail: lease differs: 30 at mx1, 10 at mx2",
            ],
        ),
        (
            [record(serving("mx1"), "mx1:2:b", age_s=12.4)],  # killed, and started again
            ["mx1: silent for 12 s"],
        ),
        (
            [ReplicaRecord("mx2:3:c", "mx2", {"status": {"instance": "mx2", "state": "new"}})],
            ["mx2: another version, whose status cannot be read here"],
        ),
        (
            [ReplicaRecord("mx2:3:c", "mx2", {})],
            ["mx2: another version, whose status cannot be read here"],
        ),
    ],
)
async def test_what_is_wrong_is_named(others: list[ReplicaRecord], problems: list[str]) -> None:
    assert (await report(*others)).problems == problems


async def test_a_version_with_further_fields_can_be_read() -> None:
    other = record(serving("mx2"))
    other.parts["status"]["more"] = 1
    found = await report(other)
    assert found.problems == []
    assert found.instances[1].sessions == 7


def test_a_service_without_a_cluster() -> None:
    found = status_report.alone(serving("mx1", DOWN))
    assert (found.cluster, found.instances[0].store) == ("", "")
    assert found.problems == ["mx1: server 10.0.0.6:25 of old is down"]
