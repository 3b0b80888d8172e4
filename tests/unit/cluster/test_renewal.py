"""Which ranks stay when others are started anew or added."""

from __future__ import annotations

from workbench.cluster.hosts.placement import Binding, Placement
from workbench.cluster.renewal import plan_renewal
from workbench.cluster.roster import Roster


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


def test_a_rank_that_dies_while_another_is_replaced_is_not_forgotten() -> None:
    roster = Roster()
    roster.mark_dead(1, "killed")
    renewal = plan_renewal(placed("cpu", "cpu"), placed("cpu", "cpu"), dead=roster.dead)
    assert renewal is not None
    roster.mark_dead(0, "out of memory")
    roster.forget_deaths(renewal.replaced)
    assert roster.dead == {0: "out of memory"}
