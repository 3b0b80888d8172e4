"""Who holds what under a plan: replicas, pipeline stages with their layers, tensor-parallel ranks; as text and SVG."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from workbench.core import numbers
from workbench.core.mesh import Coordinates
from workbench.planner.holdings import Job, memory
from workbench.planner.model import ModelDescription
from workbench.plots.theme import rank_colour

#: replicas that are drawn; the others are like them
_MOST_REPLICAS = 8
#: ranks of a stage that are drawn
_MOST_PEERS = 8
_BOX_W, _BOX_H, _GAP, _LABELS = 74, 40, 6, 250
_LAYER = re.compile(r"(.*\.)(\d+)$")


@dataclass(frozen=True, kw_only=True)
class Holders:
    """Who holds what under one plan; shows itself."""

    model: ModelDescription
    job: Job

    def __repr__(self) -> str:
        return "\n".join(holders(self.model, self.job))

    def _repr_html_(self) -> str:
        title = html.escape(f"Who holds what: {self.job.plan.describe()}")
        return f"<p><b>{title}</b></p>{draw_holders(self.model, self.job)}"


def holders(model: ModelDescription, job: Job) -> list[str]:
    """Lines of text: one for each pipeline stage, with the layers, and what a rank of it holds."""
    lines = [f"Who holds what: {job.plan.describe()}"]
    for stage in range(job.plan.pp):
        held = memory(model, job, Coordinates(dp=0, pp=stage, tp=0))
        first = job.plan.mesh.rank(pp=stage)
        ranks = range(first, first + job.plan.mesh.peers)
        who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]}-{ranks[-1]}"
        others = job.plan.mesh.dp - 1
        also = f"; {others} more replica{'s hold' if others > 1 else ' holds'} the same" if others else ""
        share = f"{_fraction(job.plan.tp)} of " if job.plan.tp > 1 else ""
        what = _with_parts(job, f"{share}{layers_of(job, stage)}")
        also = "" if job.shares.parameters and job.shards > 1 else also
        lines.append(f"  {who}: {what} ({numbers.decimal_bytes(held.parameters)} of parameters){also}")
    return lines


def _with_parts(job: Job, layers: str) -> str:
    """What a rank holds of these layers: all of it, or its part of what the replicas share out."""
    shares = job.shares
    kinds = {"parameters": shares.parameters, "gradients": shares.gradients, "optimizer state": shares.state}
    cut = [name for name, is_cut in kinds.items() if is_cut]
    if not cut or job.shards == 1:
        return layers
    listed = f"{', '.join(cut[:-1])} and {cut[-1]}" if len(cut) > 1 else cut[0]
    part = f"{_fraction(job.shards)} of the {listed}"
    return f"{part} of {layers}" if shares.parameters else f"{layers}, with {part}"


def _fraction(parts: int) -> str:
    return {2: "half", 3: "a third", 4: "a quarter"}.get(parts, f"1/{parts}")


def layers_of(job: Job, stage: int) -> str:
    """The modules of a stage in words: ``embed_tokens, layers 0-1``."""
    held = job.stage(stage)
    if held is None:
        return "the whole model"
    shown: list[str] = []
    runs: dict[str, list[int]] = {}
    for name in held:
        found = _LAYER.match(name)
        if found is None:
            shown.append(name.rpartition(".")[2])
            continue
        stem = found[1].rstrip(".").rpartition(".")[2]
        if stem not in runs:
            runs[stem] = []
            shown.append(stem)
        runs[stem].append(int(found[2]))
    return ", ".join(_run(name, runs[name]) if name in runs else name for name in shown)


def _run(stem: str, places: list[int]) -> str:
    """``layers 0-1``, ``layer 2``."""
    return f"{stem.removesuffix('s')} {places[0]}" if len(places) == 1 else f"{stem} {places[0]}-{places[-1]}"


def draw_holders(model: ModelDescription, job: Job) -> str:
    """The mesh as an SVG: a column per replica, a row per pipeline stage with its layers, a box per tensor- or
    context-parallel rank with its number and the bytes of its parameters."""
    mesh = job.plan.mesh
    replicas, boxes = min(mesh.dp, _MOST_REPLICAS), min(mesh.peers, _MOST_PEERS)
    block = boxes * (_BOX_W + _GAP) + _GAP
    row = _BOX_H + 2 * _GAP
    parts = []
    for stage in range(mesh.pp):
        top = 24 + stage * row
        title = _with_parts(job, layers_of(job, stage))
        title = f"{title}, each layer cut in {mesh.tp}" if mesh.tp > 1 else title
        title = f"stage {stage}: {title}" if mesh.pp > 1 else title
        parts += _wrapped(title, top + 18)
        for replica in range(replicas):
            left = _LABELS + replica * (block + 14)
            for peer in range(boxes):
                rank = mesh.rank(dp=replica, pp=stage) + peer
                size = numbers.decimal_bytes(memory(model, job, mesh.coordinates(rank)).parameters)
                parts.append(_box(left + _GAP + peer * (_BOX_W + _GAP), top + _GAP, rank, size))
    for replica in range(replicas):
        left = _LABELS + replica * (block + 14)
        name = f"replica {replica}" if mesh.dp > 1 else ""
        parts.append(f'<text x="{left + _GAP}" y="16" font-size="11">{name}</text>')
        parts.append(
            f'<rect x="{left}" y="22" width="{block}" height="{mesh.pp * row}" rx="6" fill="none" stroke="#8888"/>'
        )
    width, height = _LABELS + replicas * (block + 14), 30 + mesh.pp * row
    left_out = _left_out(mesh.dp - replicas, mesh.peers - boxes)
    picture = (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" style="max-width:100%" fill="currentColor" role="img" '
        f'aria-label="{html.escape(" ".join(holders(model, job)), quote=True)}" '
        f'font-family="system-ui, sans-serif">{"".join(parts)}</svg>'
    )
    return picture + (f"<p>{left_out}</p>" if left_out else "")


def _left_out(replicas: int, ranks: int) -> str:
    said = [f"{replicas} more replicas"] if replicas else []
    said += [f"{ranks} more ranks of each stage"] if ranks else []
    return f"Not drawn: {' and '.join(said)}, which hold as much." if said else ""


def _wrapped(text: str, y: int, width: int = 38) -> list[str]:
    """A label of at most two lines."""
    first, second = text, ""
    if len(text) > width:
        cut = text.rfind(" ", 0, width)
        first, second = text[:cut], text[cut + 1 :]
        second = second if len(second) <= width else second[: width - 1] + "…"
    lines = [first, second] if second else [first]
    return [
        f'<text x="0" y="{y + 14 * number + (7 if len(lines) == 1 else 0)}" font-size="12">{html.escape(line)}</text>'
        for number, line in enumerate(lines)
    ]


def _box(x: float, y: float, rank: int, size: str) -> str:
    middle = x + _BOX_W / 2
    return (
        f'<rect x="{x}" y="{y}" width="{_BOX_W}" height="{_BOX_H}" rx="6" fill="{rank_colour(rank)}" '
        f'fill-opacity=".22" stroke="{rank_colour(rank)}"/>'
        f'<text x="{middle}" y="{y + 17}" font-size="13" text-anchor="middle">rank {rank}</text>'
        f'<text x="{middle}" y="{y + 32}" font-size="11" text-anchor="middle">{size}</text>'
    )
