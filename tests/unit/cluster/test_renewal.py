"""Which ranks stay when others are started anew or added."""

from __future__ import annotations

from workbench.cluster.hosts.placement import Binding, Placement
from workbench.cluster.renewal import plan_renewal


def placed(*devices: str) -> Placement:
    return Placement(
        bindings=tuple(
            Binding(rank=rank, local_rank=rank, device=device, cores=(), threads=1)
            for rank, device in enumerate(devices)
        )
    )


def test_ranks_stay_where_their_devices_do() -> None:
    two, four = placed("cpu", "cpu"), placed(*["cpu"] * 4)
    added = plan_renewal(two, four, dead=[1])
    assert added is not None and (added.kept, added.replaced, added.added) == ((0,), (1,), (2, 3))
    assert str(added) == (
        "rank 1 was started anew, without its variables; ranks 2-3 were added; rank 0 keeps its variables; process "
        "groups and models that span ranks must be created again"
    )
    assert plan_renewal(four, two, dead=[]) is None and plan_renewal(two, two, dead=[0, 1]) is None
    assert plan_renewal(placed("0", "1"), placed("1", "0"), dead=[]) is None
