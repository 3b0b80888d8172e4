"""What every module of a run's model gives for one batch, forward and backward: for the comparison of two runs.

One data-parallel replica is enough, so ``tp x pp`` ranks take part. The first run that is looked at leaves its weights
and a batch in a directory, where the second finds them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file

from workbench.core.config import SPEC_FILE, TrainSpec, read_spec_options
from workbench.core.frameworks import Capability
from workbench.engine.base.batch import Batch
from workbench.engine.base.capabilities import Inspectable, LossScaled, Watchable, needed
from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload
from workbench.engine.data.dataset_source import DatasetSource
from workbench.engine.data.loader_source import LoaderSource
from workbench.engine.entry import build_workload, joined_of, load_strategy
from workbench.engine.frameworks.torch_common.exchange import exchange_of
from workbench.engine.frameworks.torch_common.losses.calls import noted_losses
from workbench.engine.frameworks.torch_common.torch_settings import torch_defaults
from workbench.engine.replay import spec_of_replica
from workbench.engine.state.batch_snapshot import load_batch_snapshot, save_batch_snapshot, save_tensors
from workbench.engine.state.randomness import RandomGenerators
from workbench.engine.state.weights import load_weights
from workbench.engine.watch.inside.taps import Taps, main_output
from workbench.errors import RunDirectoryError
from workbench.rundir.kept_steps import WEIGHTS_FILE

#: rows (all dimensions but the last together) of a tensor that are kept, evenly spaced
ROWS = 512
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")


def look(run: str, rank: int, *, token: str, shared: str, out: str, checkpoint: str, rounding: float) -> None:
    """Compute one batch in the model of ``run`` as the ``rank``-th rank of a replica. Collective over it.

    Writes what modules gave into the directory ``out``. ``shared``: directory of the weights and the batch, which are
    written there (weights of ``checkpoint``, "": those with which the run began) where they are not there yet.
    ``rounding``: not 0: compute it once more, with each weight changed by this share of it, up or down.

    Raises ``RunDirectoryError`` when the weights do not fit the model, and whatever building the model raises.
    """
    path = Path(run)
    spec = spec_of_replica(TrainSpec.from_options(read_spec_options(path / SPEC_FILE)))
    spec = dataclasses.replace(spec, accumulate=1)
    ranks = spec.plan.ranks
    with torch_defaults(), joined_of(spec)(rank, ranks, path, seed=spec.seed, token=token), noted_losses():
        exchange = exchange_of(rank, ranks)
        strategy = load_strategy(spec)(spec, rank)
        workload = build_workload(path, spec)
        if isinstance(workload.data, LoaderSource | DatasetSource):
            workload.data.share_with(exchange)
        if not (Path(shared) / WEIGHTS_FILE).exists():
            exchange.gathered(0)  # all ranks have seen that it is not there
            _leave(workload, Path(shared), checkpoint, rank)
            exchange.gathered(0)
        _take_weights(workload.model, Path(shared) / WEIGHTS_FILE, path.name)
        batch, random = load_batch_snapshot(Path(shared), workload.names)
        strategy.check(spec, workload)
        strategy.prepare(workload)
        try:
            for name, change in (("", 0.0), ("rounded-", rounding))[: 2 if rounding else 1]:
                _round(needed(strategy, Inspectable, Capability.INSPECTABLE).module, change)
                RandomGenerators({}).restore(random)
                _write(_outputs(strategy, batch), Path(out), f"{name}{rank}")
        finally:
            strategy.close()


def _leave(workload: Workload, shared: Path, checkpoint: str, rank: int) -> None:
    """Write the weights, and the first batch of the run. On every rank, as ranks draw the same batch."""
    if checkpoint:
        load_weights(workload.model, Path(checkpoint))
    batch = next(iter(workload.data.batches(0, 1)))
    if rank == 0:
        save_batch_snapshot(shared, batch, RandomGenerators({}).capture())
        save_tensors(
            {users_name(name): each for name, each in workload.model.state_dict().items()}, shared / WEIGHTS_FILE
        )


@torch.no_grad()
def _take_weights(model: torch.nn.Module, file: Path, name: str) -> None:
    given = load_file(file)
    own = {users_name(key): tensor for key, tensor in model.state_dict(keep_vars=True).items()}
    wrong = sorted({*own} ^ {*given} | {key for key in {*own} & {*given} if own[key].shape != given[key].shape})
    if wrong:
        raise RunDirectoryError(
            f"the model of {name} has other weights than the run that it is compared with: {', '.join(wrong[:5])}"
            f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}. Modules are compared with the same weights: "
            "give runs of the same model"
        )
    for key, tensor in own.items():
        tensor.copy_(given[key])


@torch.no_grad()
def _round(module: torch.nn.Module, share: float) -> None:
    """Change each weight by this share of it, up or down: alike on all ranks that hold the same."""
    for name, parameter in module.named_parameters() if share else ():
        generator = torch.Generator().manual_seed(len(name))
        signs = torch.randint(0, 2, parameter.shape, generator=generator).to(parameter.device)
        parameter.mul_(1 + share * (2 * signs - 1))


#: layer, what ("input", "output", "gradient") -> of each call and micro-batch: whether split, and the tensor
Found = dict[tuple[str, str], list[tuple[str, torch.Tensor]]]


def _outputs(strategy: Any, batch: Batch) -> tuple[Found, int]:
    """What modules took and gave, in the order of the computation, and the number of micro-batches."""
    inspected = needed(strategy, Inspectable, Capability.INSPECTABLE)
    module, found = inspected.module, Found()

    def shown(layer: str, what: str, micro_batch: int, sharded: str, tensor: torch.Tensor) -> None:
        found.setdefault((layer, what), []).append((sharded, tensor.detach().float().cpu()))

    sharding = inspected.output_sharding if strategy.mesh.tp > 1 else None
    with ExitStack() as looking:
        looking.enter_context(_without_dropout())
        names = {users_name(name) for name, _ in module.named_modules()}
        taps = looking.enter_context(Taps(module, names, shown, sharding))

        def enters(name: str, _module: Any, args: Any, kwargs: Any) -> None:
            given = main_output((args, kwargs))
            if taps.is_counted and given is not None:
                shown(name, "input", -1, "", given)

        for name, each in module.named_modules():
            hook = each.register_forward_pre_hook(functools.partial(enters, users_name(name)), with_kwargs=True)
            looking.callback(hook.remove)
        loss = strategy.forward_backward([batch])
    scale: Any = strategy.loss_scale() if isinstance(strategy, LossScaled) else 1.0
    scale = scale / (strategy.local_factor() if isinstance(strategy, Watchable) else 1.0)
    for (_, what), tensors in found.items():
        for _, tensor in tensors if what == "gradient" else ():
            tensor.div_(float(scale))
    strategy.skip()
    if loss is not None:
        found["the loss", "output"] = [("", loss.detach().float().cpu().reshape(1))]
    return found, strategy.spec.plan.micro_batches if strategy.mesh.pp > 1 else 1


@contextmanager
def _without_dropout() -> Iterator[None]:
    """Dropout is off: which elements it drops depends on the plan."""
    functions = torch.nn.functional
    product = functions.scaled_dot_product_attention

    def same(values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return values

    def attention(
        query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, *a: Any, **k: Any
    ) -> Any:
        return product(query, key, value, attn_mask, 0.0, *a, **k)

    with ExitStack() as off:
        for name in _DROPOUTS:
            off.enter_context(mock.patch.object(functions, name, same))
        off.enter_context(mock.patch.object(functions, "scaled_dot_product_attention", attention))
        yield


def _write(outputs: tuple[Found, int], directory: Path, name: str) -> None:
    found, micro_batches = outputs
    arrays: dict[str, Any] = {}
    index: list[dict[str, Any]] = []
    for (layer, what), tensors in found.items():
        calls = max(1, len(tensors) // micro_batches)
        for call in range(calls):
            pieces = tensors[call::calls]
            whole = _joined([tensor for _, tensor in pieces])
            rows = whole.reshape(-1, whole.shape[-1] if whole.dim() else 1)
            kept = rows[torch.linspace(0, len(rows) - 1, min(ROWS, len(rows))).long()] if len(rows) else rows
            arrays[str(len(index))] = kept.numpy()
            index.append(
                {"layer": layer, "what": what, "call": call, "sharded": pieces[0][0], "shape": list(whole.shape)}
            )
    np.savez(directory / f"{name}.npz", **arrays)
    (directory / f"{name}.json").write_text(json.dumps(index), encoding="utf-8")


def _joined(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of all micro-batches together; of what has no samples, the first."""
    if len(pieces) == 1 or not pieces[0].dim() or any(piece.shape[1:] != pieces[0].shape[1:] for piece in pieces):
        return pieces[0]
    return torch.cat(list(pieces))
