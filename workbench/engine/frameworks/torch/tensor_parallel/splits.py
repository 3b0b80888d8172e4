"""How layers are cut over tensor-parallel ranks, as the planner sees it: nothing is cut."""

from __future__ import annotations

from collections.abc import Collection

from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch.tensor_parallel.families import OPTIONAL
from workbench.engine.frameworks.torch.tensor_parallel.parallelize import dim_of
from workbench.engine.frameworks.torch.tensor_parallel.plan import plan_of
from workbench.planner.model import COLUMN, HEAD, ROW, VOCABULARY, Split, Splits

_KINDS = {
    "colwise": COLUMN,
    "fused": COLUMN,
    "features": COLUMN,
    "rowwise": ROW,
    "gathered": HEAD,
    "vocabulary": VOCABULARY,
}


def splits_of(workload: Workload, tps: Collection[int], pps: Collection[int]) -> Splits:
    """As ``Plugin.splits``: for a model that the plugin's check let through with these numbers of tensor-parallel
    ranks."""
    found: dict[str, Split] = {}
    names = {id(parameter): users_name(name) for name, parameter in workload.model.named_parameters()}
    for tp in tps:
        for name, (module, style) in plan_of(workload.model, tp, workload.names.get("tp_plan")).modules.items():
            if style not in _KINDS:  # every rank has the whole layer
                continue
            dims = {names[id(each)]: dim_of(module, own, style) for own, each in module.named_parameters(recurse=False)}
            found[name] = Split(
                kind=_KINDS[style],
                dims={parameter: dim for parameter, dim in dims.items() if dim is not None},
                whole_unless_divided=style in OPTIONAL,
            )
    return Splits(tp=found)
