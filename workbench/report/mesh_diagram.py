"""The plan drawn: the mesh of ranks as an SVG, and who holds which layers as a table."""

from __future__ import annotations

import html
from dataclasses import dataclass

import pandas as pd

from workbench.core.mesh import Mesh
from workbench.errors import format_ranks
from workbench.plots import theme
from workbench.report.run_data import RunData

#: a mesh of more ranks is told in words
MOST_DRAWN = 256
_BOX, _GAP, _MARGIN = 46, 6, 64


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What one group of ranks holds: whole layers, or the same slice of them."""

    ranks: str
    layers: int
    first: str
    last: str
    elements: int
    split: str


def drawing(mesh: Mesh) -> str:
    """SVG: a block per data-parallel replica, in it a row per pipeline stage and a box per tensor-parallel rank."""
    if mesh.world_size > MOST_DRAWN:
        return ""
    block_width = mesh.tp * (_BOX + _GAP) + _GAP
    per_row = max(1, min(mesh.dp, 720 // (block_width + 10)))
    block_height = mesh.pp * (_BOX + _GAP) + _GAP
    parts = []
    for replica in range(mesh.dp):
        left = _MARGIN + (replica % per_row) * (block_width + 10)
        top = 22 + (replica // per_row) * (block_height + 30)
        parts.append(f'<text class="t" x="{left}" y="{top - 6}">{f"replica {replica}" if mesh.dp > 1 else ""}</text>')
        parts.append(f'<rect class="b" x="{left}" y="{top}" width="{block_width}" height="{block_height}" rx="8"/>')
        for stage in range(mesh.pp):
            y = top + _GAP + stage * (_BOX + _GAP)
            if replica % per_row == 0 and mesh.pp > 1:
                parts.append(f'<text class="t" x="2" y="{y + _BOX / 2 + 4}">stage {stage}</text>')
            for slice_ in range(mesh.tp):
                rank = mesh.rank(dp=replica, pp=stage, tp=slice_)
                parts.append(_box(left + _GAP + slice_ * (_BOX + _GAP), y, rank, slice_ if mesh.tp > 1 else None))
    width = _MARGIN + per_row * (block_width + 10)
    height = 22 + -(-mesh.dp // per_row) * (block_height + 30)
    words = html.escape(describe(mesh), quote=True)
    return (
        f'<svg class="mesh" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="{words}" font-family="system-ui, sans-serif">{"".join(parts)}</svg>'
    )


def describe(mesh: Mesh) -> str:
    """The drawing in a sentence."""
    parts = [f"{mesh.world_size} ranks" if mesh.world_size > 1 else "One rank"]
    if mesh.dp > 1:
        parts.append(f"{mesh.dp} data-parallel replicas, each with its share of the batch")
    if mesh.pp > 1:
        parts.append(f"{mesh.pp} pipeline stages, each with its part of the layers")
    if mesh.tp > 1:
        parts.append(f"each layer split over {mesh.tp} tensor-parallel ranks")
    return ": ".join([parts[0], "; ".join(parts[1:])]) + "." if parts[1:] else f"{parts[0]}."


def _box(x: float, y: float, rank: int, slice_: int | None) -> str:
    middle = x + _BOX / 2
    small = (
        f'<text class="s" x="{middle}" y="{y + 36}" text-anchor="middle">tp {slice_}</text>'
        if slice_ is not None
        else ""
    )
    return (
        f'<rect x="{x}" y="{y}" width="{_BOX}" height="{_BOX}" rx="6" fill="{theme.rank_colour(rank)}" '
        f'fill-opacity=".22" stroke="{theme.rank_colour(rank)}"/>'
        f'<text class="r" x="{middle}" y="{y + (22 if small else 28)}" text-anchor="middle">{rank}</text>{small}'
    )


def holdings(run: RunData) -> list[Holding]:
    """Who holds what, from the gradients that each rank logged of its own: ranks that hold the same layers in the same
    way are one line. Empty when no statistics were kept."""
    rows = run.store.table("gradients")
    own = pd.DataFrame({name: rows[name] for name in ("rank", "layer", "sharded", "numel")})[rows["scope"] == "local"]
    parts: dict[int, dict[tuple[str, str], int]] = {}
    for rank, layer, sharded, numel in own.drop_duplicates(["rank", "layer", "sharded"]).itertuples(index=False):
        parts.setdefault(int(rank), {})[str(layer) or "(root)", str(sharded)] = int(numel)
    held: dict[tuple[tuple[str, ...], int, str], list[int]] = {}
    for rank, elements in sorted(parts.items()):
        split = ", ".join(sorted({axes for _, axes in elements} - {""})) or "not split"
        layers = tuple(dict.fromkeys(layer for layer, _ in elements))
        held.setdefault((layers, sum(elements.values()), split), []).append(rank)
    return [
        Holding(
            ranks=format_ranks(ranks),
            layers=len(layers),
            first=layers[0],
            last=layers[-1],
            elements=elements,
            split=split,
        )
        for (layers, elements, split), ranks in held.items()
    ]
