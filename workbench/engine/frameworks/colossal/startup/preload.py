"""What Colossal-AI's ranks need, imported once per host."""

from __future__ import annotations

from collections.abc import Callable

from workbench.engine import preload
from workbench.engine.frameworks.colossal.startup.lean_import import lean_imports

#: Colossal-AI's plugins, and what the first step of a rank would otherwise import
MODULES = (
    "colossalai.booster.plugin",
    "workbench.engine.frameworks.colossal.ranks",
    "workbench.engine.frameworks.colossal.strategy",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.vit.modeling_vit",
    "colossalai.shardformer.modeling.llama",
    "colossalai.shardformer.policies.llama",
    "colossalai.shardformer.policies.gpt2",
    "colossalai.shardformer.policies.vit",
    "colossalai.shardformer.modeling.mixtral",  # which a repair changes
    "rich.logging",  # Colossal-AI's logger
    "rich.console",
)


def load() -> Callable[[], None]:
    """As ``workbench.engine.preload.load``."""
    return preload.load(MODULES, title="Colossal-AI", importing=lean_imports, recipes=True)
