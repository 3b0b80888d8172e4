"""Names of modules as the user of the model gave them."""

from __future__ import annotations

#: the user's model in the module that a framework wraps (``torch_common.trained``)
TRAINED = "_trained_model"
#: what wrappers (of torch, and ``torch_common.trained``) put into the names of the modules that they wrap
_WRAPPERS = frozenset(("_orig_mod", "_checkpoint_wrapped_module", TRAINED, "_beside_model"))


def users_name(module_name: str) -> str:
    """A module's name as the user gave it, without the prefixes of wrappers around the model or parts of it."""
    return ".".join(part for part in module_name.split(".") if part not in _WRAPPERS)
