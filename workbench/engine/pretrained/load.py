"""A model with the weights of a local Hugging Face directory, of which a rank reads the parts that it trains.

The model is made without memory for its weights. Then each weight is a view of its file, mapped into memory: the ranks
of a host share the pages, and a plan that splits the model (``--tp``, ``--pp``) copies the rank's part of each weight,
one after the other. ``MappedWeights.make_own`` copies what is left, before the first step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from workbench.engine.pretrained.base import FILES
from workbench.engine.pretrained.directory import PretrainedDirectory, read_directory
from workbench.errors import ConfigError

#: weights are trained in this type, whatever type the files have; ``--precision`` says in which type they compute
TRAINED = torch.float32


class MappedWeights:
    """The weights of a model that are still views of files."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._mapped = {tensor.untyped_storage().data_ptr() for tensor in _tensors(model)}

    def make_own(self, model: torch.nn.Module, dtype: torch.dtype | None) -> None:
        """Copy into memory of this process what ``model`` still has in files; ``dtype``: of all its weights then, None:
        each keeps its own. Parameters stay the same objects."""
        for tensor in _tensors(model):
            if tensor.is_floating_point():
                is_mapped = tensor.untyped_storage().data_ptr() in self._mapped
                tensor.data = tensor.data.to(dtype or tensor.dtype, copy=is_mapped)
        self._mapped.clear()


def load_pretrained(path: str | Path, *, split: bool = False, field: str = "pretrained") -> Any:
    """The model of the directory ``path``, in training mode, its weights in float32.

    ``split``: the weights are views of the files and have their type; a plan splits the model, and
    ``MappedWeights(model).make_own`` follows. Raises ``ConfigError``, in the name of ``field``, for a directory that is
    not whole, for a class that the transformers library does not have, and for weights that do not fit it.
    """
    directory = read_directory(path, field=field)
    model = _empty_model(directory, field)
    found = _named(model, directory, field)
    _fill(model, directory, found, split=split, field=field)
    model.tie_weights()
    setattr(model, FILES, {own: (directory.tensors[name].resolve(), name) for own, name in found.items()})
    missing = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if missing:
        raise ConfigError(
            f"{field} {directory.path}: {len(missing)} weights of {directory.architecture} are missing, such as "
            f"{', '.join(missing[:3])}: it is the directory of another model, or a part of one",
            field=field,
        )
    return model.train()


def class_of(architecture: str, field: str) -> Any:
    """The model class of that name in the transformers library. ``ConfigError`` when there is none."""
    import transformers

    found = getattr(transformers, architecture, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ConfigError(
            f"{field}: transformers {transformers.__version__} has no model {architecture}; code of a directory is not "
            "run: define the model in the cell instead",
            field=field,
        )
    return found


def _empty_model(directory: PretrainedDirectory, field: str) -> Any:
    from transformers.modeling_utils import no_init_weights

    kind = class_of(directory.architecture, field)
    config = kind.config_class.from_pretrained(directory.path, local_files_only=True)
    with no_init_weights(), _parameters_without_memory():
        model = kind(config)
    model.config._name_or_path = model.name_or_path = str(directory.path)
    if model.can_generate() and (directory.path / "generation_config.json").is_file():
        model.generation_config = type(model.generation_config).from_pretrained(directory.path, local_files_only=True)
    return model


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Parameters that modules register are of the meta device; buffers, which code computes, are not."""
    register = torch.nn.Module.register_parameter

    def on_meta(self: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if param is not None:
            param = torch.nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    torch.nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def _named(model: Any, directory: PretrainedDirectory, field: str) -> dict[str, str]:
    """The model's own name -> the directory's name of each tensor.

    A directory may hold the body of a model alone, or the model that a body is taken of, as ``from_pretrained`` allows.
    """
    own = {name for name, _ in chain(model.named_parameters(remove_duplicate=False), model.named_buffers())}
    prefix = f"{model.base_model_prefix}."
    ignored = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ["(?!)"]))
    found: dict[str, str] = {}
    extra = []
    for name in directory.tensors:
        choices = (name, prefix + name, name.removeprefix(prefix))
        chosen = next((choice for choice in choices if choice in own), None)
        if chosen is not None:
            found[chosen] = name
        elif not ignored.search(name):
            extra.append(name)
    if extra:
        raise ConfigError(
            f"{field} {directory.path}: {len(extra)} tensors are not of a {directory.architecture}, such as "
            f"{', '.join(sorted(extra)[:3])}: it is the directory of another model, or config.json is",
            field=field,
        )
    return found


def _fill(model: Any, directory: PretrainedDirectory, found: dict[str, str], *, split: bool, field: str) -> None:
    from safetensors import safe_open

    buffers = dict(model.named_buffers())
    for own, name in found.items():
        # a file is mapped once for each tensor, so that its pages are given back when this tensor has been split
        with safe_open(directory.tensors[name], framework="pt") as file:
            tensor = file.get_tensor(name)
        module_name, _, last = own.rpartition(".")
        module = model.get_submodule(module_name)
        present = buffers[own] if own in buffers else getattr(module, last)
        if tensor.shape != present.shape:
            raise ConfigError(
                f"{field} {directory.path}: {name} has the shape {tuple(tensor.shape)}, and config.json asks for "
                f"{tuple(present.shape)}: it is the config.json of another model",
                field=field,
            )
        if own in buffers:
            present.copy_(tensor)
            continue
        tensor = tensor if split else tensor.to(TRAINED, copy=True)
        module._parameters[last] = torch.nn.Parameter(tensor, requires_grad=present.requires_grad)


def _tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    return chain(model.parameters(), model.buffers())
