"""Draws the mesh of ranks as an SVG, and lists which layers each rank holds."""

from __future__ import annotations

import html
from dataclasses import dataclass

import pandas as pd

from workbench.core.mesh import Mesh
from workbench.errors import format_ranks
from workbench.plots import theme
from workbench.report.run_data import RunData

#: a mesh with more ranks is described in words only
MAX_DRAWN_RANKS = 256
_BOX, _GAP, _MARGIN = 46, 6, 64


@dataclass(frozen=True, kw_only=True)
class LayersOfRanks:
    """The layers that a group of ranks holds: whole, or each rank one shard of each.

    ``ranks``: for example ``ranks 0-3``. ``layers``: their number. ``first_layer``, ``last_layer``: names.
    ``elements``: parameter elements on each of the ranks. ``split_over``: the axes of the mesh over which the layers
    are sharded, or ``not split``.
    """

    ranks: str
    layers: int
    first_layer: str
    last_layer: str
    elements: int
    split_over: str


def draw_mesh(mesh: Mesh) -> str:
    """Draw the mesh as an SVG; "" for more than ``MAX_DRAWN_RANKS`` ranks.

    Each data-parallel replica is a block with one row per pipeline stage and one box per tensor- or context-parallel
    rank.
    """
    if mesh.world_size > MAX_DRAWN_RANKS:
        return ""
    block_width = mesh.peers * (_BOX + _GAP) + _GAP
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
            for peer in range(mesh.peers):
                rank = mesh.rank(dp=replica, pp=stage) + peer
                label = f"{'cp' if mesh.cp > 1 else 'tp'} {peer}" if mesh.peers > 1 else ""
                parts.append(_draw_box(left + _GAP + peer * (_BOX + _GAP), y, rank, label))
    width = _MARGIN + per_row * (block_width + 10)
    height = 22 + -(-mesh.dp // per_row) * (block_height + 30)
    description = html.escape(describe_mesh(mesh), quote=True)
    return (
        f'<svg class="mesh" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="{description}" font-family="system-ui, sans-serif">{"".join(parts)}</svg>'
    )


def describe_mesh(mesh: Mesh) -> str:
    """Describe the mesh in a sentence."""
    parts = [f"{mesh.world_size} ranks" if mesh.world_size > 1 else "One rank"]
    if mesh.dp > 1:
        parts.append(f"{mesh.dp} data-parallel replicas, each with a part of the batch")
    if mesh.pp > 1:
        parts.append(f"{mesh.pp} pipeline stages, each with a part of the layers")
    if mesh.cp > 1:
        parts.append(f"each sequence shared by {mesh.cp} context-parallel ranks")
    if mesh.tp > 1:
        parts.append(f"each layer sharded over {mesh.tp} tensor-parallel ranks")
    return ": ".join([parts[0], "; ".join(parts[1:])]) + "." if parts[1:] else f"{parts[0]}."


def _draw_box(x: float, y: float, rank: int, label: str) -> str:
    middle = x + _BOX / 2
    place = f'<text class="s" x="{middle}" y="{y + 36}" text-anchor="middle">{label}</text>' if label else ""
    return (
        f'<rect x="{x}" y="{y}" width="{_BOX}" height="{_BOX}" rx="6" fill="{theme.rank_colour(rank)}" '
        f'fill-opacity=".22" stroke="{theme.rank_colour(rank)}"/>'
        f'<text class="r" x="{middle}" y="{y + (22 if label else 28)}" text-anchor="middle">{rank}</text>{place}'
    )


def find_layers_of_ranks(run: RunData) -> list[LayersOfRanks]:
    """Which ranks hold which layers, one item per group of ranks that hold the same layers in the same way.

    Read from the local gradient statistics; empty if the run has none.
    """
    rows = run.store.table("gradients")
    columns = pd.DataFrame({name: rows[name] for name in ("rank", "layer", "sharded", "numel")})
    local = columns[rows["scope"] == "local"]
    numel_of_rank: dict[int, dict[tuple[str, str], int]] = {}
    for rank, layer, sharded, numel in local.drop_duplicates(["rank", "layer", "sharded"]).itertuples(index=False):
        numel_of_rank.setdefault(int(rank), {})[str(layer) or "(root)", str(sharded)] = int(numel)
    groups: dict[tuple[tuple[str, ...], int, str], list[int]] = {}
    for rank, numel_of_layer in sorted(numel_of_rank.items()):
        split_over = ", ".join(sorted({axes for _, axes in numel_of_layer} - {""})) or "not split"
        layers = tuple(dict.fromkeys(layer for layer, _ in numel_of_layer))
        groups.setdefault((layers, sum(numel_of_layer.values()), split_over), []).append(rank)
    return [
        LayersOfRanks(
            ranks=format_ranks(ranks),
            layers=len(layers),
            first_layer=layers[0],
            last_layer=layers[-1],
            elements=elements,
            split_over=split_over,
        )
        for (layers, elements, split_over), ranks in groups.items()
    ]
