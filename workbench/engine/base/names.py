"""Names of modules as the user of the model gave them."""

from __future__ import annotations

#: what torch's wrappers put into the names of the modules that they wrap
_WRAPPERS = frozenset(("_orig_mod", "_checkpoint_wrapped_module"))


def users_name(module_name: str) -> str:
    """A module's name as the user gave it, without the prefixes of torch.compile and checkpoint wrappers."""
    return ".".join(part for part in module_name.split(".") if part not in _WRAPPERS)
