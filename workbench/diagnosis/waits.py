"""Who waits for whom: what each rank waits in, and which members of the group have not come. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.core.live.collective_row import LiveCollective, is_message
from workbench.core.mesh import Mesh, describe_group
from workbench.core.numbers import decimal_bytes
from workbench.diagnosis.view import RankView

#: a process that waits uses less than this share of a core
_IDLE_CORES = 0.5
#: the innermost call of a thread that waits in torch, whose functions are called through our record
_TORCH = ("/torch/", "/engine/collectives/record.py", "/engine/collectives/functional.py")
#: files in which a rank waits for others at the end of a step
_AGREEMENT = ("/agree/shared_slots.py", "/observed/agreement.py")


@dataclass(frozen=True, kw_only=True)
class Wait:
    """What a rank waits in. ``missing``: members that have not come; ``differing``: members that are at another
    collective of the same number, each with it in words. ``number``: of the collective in its group, 0: it has none.
    ``since``: ``time.monotonic()``. ``group``: equal on all that wait in the same group. ``awaited``: what the missing
    ones have not done with it. ``is_message``: between two ranks.
    """

    what: str
    group: str
    group_words: str
    members: tuple[int, ...]
    number: int
    since: float
    detail: str = ""
    missing: tuple[int, ...] = ()
    differing: tuple[tuple[int, str], ...] = ()
    awaited: str = "entered"
    is_message: bool = False

    def __str__(self) -> str:
        number = f" no. {self.number}" if self.number else ""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.what}{number}{f' of group {self.group_words}' if self.group_words else ''}{detail}"


def members_in(words: str) -> tuple[int, ...]:
    """Returns the ranks of a text of ``format_ranks``: ``"ranks 0-2, 5"`` -> (0, 1, 2, 5)."""
    found: list[int] = []
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", words):
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def waits_of(views: Sequence[RankView], mesh: Mesh | None) -> dict[int, Wait]:
    """Returns what each waiting rank waits in. ``mesh``: of the training, whose axes name its groups."""
    return {view.rank: wait for view in views if (wait := _wait_of(view, views, mesh)) is not None}


def _wait_of(view: RankView, views: Sequence[RankView], mesh: Mesh | None) -> Wait | None:
    if view.row is None or cannot_come(view):
        return None
    return _recorded(view, views, mesh) or _in_flight(view, views, mesh) or _agreement(view, views)


def cannot_come(view: RankView) -> bool:
    """Whether the process of a rank has ended, or is stopped."""
    return bool(view.death) or (view.activity is not None and view.activity.now.state in "Tt")


def _recorded(view: RankView, views: Sequence[RankView], mesh: Mesh | None) -> Wait | None:
    """Returns the wait in a collective that was called through ``torch.distributed``."""
    live = view.collective
    if live is None or not live.waiting:
        return None
    told = live.description
    if live.number and is_message(live.key):
        return _message(live, views, view.rank)
    members, group = members_in(told.members), f"{told.group}/{live.key}"
    detail = ", ".join(filter(None, [decimal_bytes(told.byte_count) if told.byte_count else "", told.place]))
    others = [other for other in views if other.rank in members and other.rank != view.rank]
    missing: tuple[int, ...] = ()
    differing: list[tuple[int, str]] = []
    if live.number:
        missing = tuple(
            other.rank for other in others if cannot_come(other) or other.entered.get(live.key, 0) < live.number
        )
        for other in others:
            theirs = other.recorded.get((live.key, live.number))
            if theirs is not None and _kind_of(theirs) != _kind_of(told):
                differing.append((other.rank, str(theirs)))
    else:
        peers = {call.peer for call in view.calls if call.pending and call.peer >= 0}
        missing = tuple(sorted(peers)) or tuple(other.rank for other in others if not _is_in(other, told.group))
    return Wait(
        what=told.kind,
        group=group,
        group_words=_group_words(told.group, members, mesh),
        members=members,
        number=live.number,
        since=live.since,
        detail=detail,
        missing=missing,
        differing=tuple(differing),
    )


def _message(live: LiveCollective, views: Sequence[RankView], rank: int) -> Wait:
    """Returns the wait for the other end of a message. Where the two do not match, the ranks have said so."""
    told = live.description
    members = members_in(told.members)
    others = [other for other in views if other.rank in members and other.rank != rank]
    size = decimal_bytes(told.byte_count) if told.byte_count else ""
    return Wait(
        what=f"message {live.number} {told.detail}",
        group=f"{told.group}/messages",
        group_words=told.group,
        members=members,
        number=0,
        since=live.since,
        detail=", ".join(filter(None, [told.kind, size, told.place])),
        missing=tuple(
            other.rank for other in others if cannot_come(other) or other.entered.get(live.key, 0) < live.number
        ),
        awaited="received" if "send" in told.kind else "sent",
        is_message=True,
    )


def _kind_of(description: object) -> tuple[str, ...]:
    return tuple(str(getattr(description, name)) for name in ("kind", "dtype", "detail"))


def _is_in(view: RankView, group: str) -> bool:
    live = view.collective
    return live is not None and live.waiting and live.description.group == group


def _in_flight(view: RankView, views: Sequence[RankView], mesh: Mesh | None) -> Wait | None:
    """Returns the wait in a collective that only torch recorded: the rank is idle inside torch, and one is pending."""
    pending = [call for call in view.calls if call.pending]
    if not pending or not is_idle_in_torch(view):
        return None
    call = pending[0]
    members = call.members or tuple(other.rank for other in views)
    missing, differing = [], []
    for other in views:
        if other.rank not in members or other.rank == view.rank:
            continue
        theirs = [each for each in other.calls if each.group == call.group]
        if cannot_come(other) or not theirs or theirs[-1].number < call.number:
            missing.append(other.rank)
            continue
        same = [each for each in theirs if each.number == call.number and each.peer < 0]
        if same and call.peer < 0 and (same[-1].kind, same[-1].shape) != (call.kind, call.shape):
            differing.append((other.rank, f"{same[-1].kind} of {same[-1].shape}"))
    if call.peer >= 0:
        missing = [call.peer]
    return Wait(
        what=call.kind,
        group=call.group,
        group_words=_group_words(call.label, members, mesh),
        members=members,
        number=call.number,
        since=call.since,
        detail=decimal_bytes(call.byte_count) if call.byte_count else "",
        missing=tuple(missing),
        differing=tuple(differing),
    )


def _agreement(view: RankView, views: Sequence[RankView]) -> Wait | None:
    """Returns the wait for the other ranks of a training at the end of a step."""
    frames = view.frames[:3]
    if not any(frame.file.endswith(_AGREEMENT) for frame in frames) or view.row is None:
        return None
    here = [other.rank for other in views if any(each.file.endswith(_AGREEMENT) for each in other.frames[:3])]
    members = tuple(other.rank for other in views)
    return Wait(
        what=f"the agreement after step {view.row.step}",
        group="agreement",
        group_words="",
        members=members,
        number=0,
        since=view.row.since,
        missing=tuple(rank for rank in members if rank not in here),
    )


def is_idle_in_torch(view: RankView) -> bool:
    """Whether the main thread stands in torch and the process uses hardly any processor time."""
    frames = view.frames
    return bool(frames) and any(part in frames[0].file for part in _TORCH) and _cores(view) < _IDLE_CORES


def _cores(view: RankView) -> float:
    return view.activity.cores if view.activity is not None else 0.0


def _group_words(name: str, members: tuple[int, ...], mesh: Mesh | None) -> str:
    if mesh is not None and len(members) > 1 and max(members) < mesh.world_size:
        return describe_group(list(members), mesh)[0]
    return name


def cycle_in(edges: Mapping[int, Sequence[int]]) -> list[int]:
    """Returns ranks that wait for each other in a circle, in order; [] when there is none."""
    for start in sorted(edges):
        path: list[int] = [start]
        seen = {start}
        while path:
            ahead = [rank for rank in edges.get(path[-1], ()) if rank in edges]
            if start in ahead and (len(path) > 1 or start in edges[start]):
                return path
            following = next((rank for rank in ahead if rank not in seen), None)
            if following is None:
                path.pop()
            else:
                seen.add(following)
                path.append(following)
    return []
