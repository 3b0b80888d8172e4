"""Importing Colossal-AI without the packages that it imports and training does not use.

peft, bitsandbytes and scikit-learn cost more time than the rest together, bitsandbytes looks at CUDA (which a process
that forks must not do), DeepSpeed starts threads (through its tuner, which imports MLflow and polars), and decorating
with ``torch.compile`` loads a compiler. While ``lean_imports`` is entered, stand-ins take their place; afterwards they
are gone from ``sys.modules``, so that a user's own ``import peft`` finds the real one. A name that was taken from a
stand-in becomes the real one when it is called.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

#: package -> its modules from which Colossal-AI or transformers take names at import
STAND_INS: dict[str, tuple[str, ...]] = {
    "peft": ("peft", "peft.utils", "peft.utils.other", "peft.utils.save_and_load"),
    "bitsandbytes": (
        "bitsandbytes",
        "bitsandbytes.optim",
        "bitsandbytes.optim.optimizer",
        "bitsandbytes.nn",
        "bitsandbytes.functional",
    ),
    "sklearn": ("sklearn", "sklearn.metrics"),
    "deepspeed": ("deepspeed",),
}


class _LateName(type):
    """A class that stands for ``module.name`` until somebody uses it."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if "_origin" not in cls.__dict__:  # a subclass of a stand-in, made while importing
            return super().__call__(*args, **kwargs)
        return cls._real()(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        if "_origin" not in cls.__dict__:
            return super().__instancecheck__(instance)
        module, name = cls._origin
        loaded = sys.modules.get(module)  # nobody has an instance of a class that was never loaded
        real = getattr(loaded, name, None)
        return isinstance(real, type) and isinstance(instance, real)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") or "_origin" not in cls.__dict__:
            raise AttributeError(name)
        return getattr(cls._real(), name)

    def __iter__(cls) -> Iterator[Any]:
        return iter(cls._real())

    def _real(cls) -> Any:
        module, name = cls._origin
        return getattr(importlib.import_module(module), name)


def _stand_in(name: str) -> ModuleType:
    module = ModuleType(name, f"Stand-in for {name} while Colossal-AI is imported.")
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None, is_package=True)
    module.__path__ = []
    module.__version__ = "0"  # type: ignore[attr-defined]

    def late(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(f"stand-in for {name} has no {attribute}")
        value = _LateName(attribute, (), {"_origin": (name, attribute)})
        setattr(module, attribute, value)
        return value

    module.__getattr__ = late  # type: ignore[method-assign]
    return module


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import Colossal-AI inside. Packages that are loaded already stay what they are."""
    import torch

    placed: dict[str, ModuleType] = {}
    for package, names in STAND_INS.items():
        if package not in sys.modules:
            placed |= {name: _stand_in(name) for name in names}
    for name, module in placed.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(placed[parent], child, module)
    compile_now = torch.compile
    torch.compile = _compile_late(compile_now)  # type: ignore[assignment]
    sys.modules.update(placed)
    try:
        yield
    finally:
        torch.compile = compile_now
        for name, module in placed.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _compile_late(compile_now: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` that does its work at the first call of what it decorates."""

    def compile(model: Any = None, **options: Any) -> Any:
        if model is None:
            return functools.partial(compile, **options)
        ready: list[Any] = []

        @functools.wraps(model)
        def first_call_compiles(*args: Any, **kwargs: Any) -> Any:
            if not ready:
                ready.append(compile_now(model, **options))
            return ready[0](*args, **kwargs)

        return first_call_compiles

    return compile
