"""What context-parallel ranks share, as the planner sees it: nothing is cut."""

from __future__ import annotations

import re
from collections.abc import Collection

from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch.context.families import family_of
from workbench.planner.model import SharedSequences, Splits


def splits_of(workload: Workload, tps: Collection[int], pps: Collection[int]) -> Splits:
    """As ``Plugin.splits``: for a model that the plugin's check let through."""
    model = workload.model
    family = family_of(type(model).__name__)
    if family is None:
        return Splits()
    body = next(users_name(name) for name, module in model.named_modules() if module is model.base_model)
    prefix = f"{body}." if body else ""
    names = [users_name(name) for name, _ in model.named_modules()]
    keys: dict[str, float] = {}
    for pattern, share in family.keys.items():
        expression = re.compile(re.escape(prefix + pattern).replace(r"\*", r"[^.]+"))
        keys |= {name: share for name in names if expression.fullmatch(name)}
    return Splits(sequences=SharedSequences(body=body, keys=keys, last=prefix + family.last))
