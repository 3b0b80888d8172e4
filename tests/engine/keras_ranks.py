"""What ranks of TensorFlow do in the tests: train Keras models by the strategy, and as a bare loop of Keras does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch
import torch.distributed as dist

from workbench.core.config import TrainSpec
from workbench.core.knobs import Knobs
from workbench.engine.base.workload import Workload
from workbench.engine.entry import joined_of, load_strategy
from workbench.engine.frameworks.tensorflow.cells import adopted
from workbench.engine.frameworks.torch_common.cells.workload import _workload
from workbench.errors import ConfigError

BATCH, FEATURES, CLASSES = 8, 6, 3
#: settings of each step: (learning rate, weight decay, clip, pieces, frozen layers, skipped)
STEERED = (
    (1e-2, 0.1, 0.0, 1, (), False),
    (3e-2, 0.1, 0.0, 2, (), False),
    (1e-2, 0.5, 0.1, 1, (), False),
    (1e-2, 0.1, 0.0, 1, ("second",), False),
    (1e-2, 0.1, 0.0, 1, (), True),
    (2e-2, 0.0, 0.2, 2, (), False),
)
_losses = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def model() -> keras.Model:
    """A small model with a layer that is used twice, one that is normalised, and one that no loss uses."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((FEATURES,))
    twice = keras.layers.Dense(FEATURES, activation="tanh", name="twice")
    x = keras.layers.LayerNormalization(name="norm")(twice(twice(inputs)))
    x = keras.layers.Dense(8, activation="gelu", name="second")(x)
    unused = keras.layers.Dense(2, name="unused")(x)
    return keras.Model(inputs, [keras.layers.Dense(CLASSES, name="last")(x), unused])


def loss_fn(network: Any, batch: Any) -> Any:
    return _losses(batch[1], network(batch[0])[0])


def batch(step: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    draw = np.random.default_rng(step)
    x = draw.normal(size=(BATCH, FEATURES)).astype(keras.config.floatx())
    return x, x[:, :CLASSES].argmax(1)


def workload(options: dict[str, Any]) -> Workload:
    """As a cell makes it."""
    spec = TrainSpec.from_options(options)
    names = {"model": model(), "optimizer": keras.optimizers.AdamW(1e-2, weight_decay=0.1), "loss_fn": loss_fn}
    dataset = [(x, y) for step in range(2) for x, y in zip(*batch(step), strict=True)]
    return _workload(adopted({**names, "dataset": dataset}, spec), spec, Knobs())


def _on_ranks(
    rank: int,
    ranks: int,
    directory: Path,
    work: Callable[[Any], Any],
    *,
    token: str,
    floatx: str = "float64",
    precision: str = "fp32",
) -> Any:
    options = {"framework": "tensorflow", "ranks": ranks, "batch_size": BATCH, "precision": precision}
    spec = TrainSpec.from_options(options)
    with joined_of(spec)(rank, ranks, directory, device_type="cpu", token=token):
        keras.config.set_floatx(floatx)
        try:
            strategy = load_strategy(spec)(spec, rank)
            made = workload(options)
            strategy.check(spec, made)
            strategy.prepare(made)
            try:
                return work(strategy)
            finally:
                strategy.close()
        finally:
            keras.config.set_floatx("float32")


def _pieces(strategy: Any, step: int, pieces: int) -> list[Any]:
    x, y = (torch.from_numpy(part) for part in batch(step))
    parts = strategy.mesh.dp * pieces
    shares = zip(x.chunk(parts), y.chunk(parts), strict=True)
    return list(shares)[strategy.coordinates.dp * pieces : (strategy.coordinates.dp + 1) * pieces]


def steered(rank: int, ranks: int, directory: Path, *, floatx: str, precision: str) -> dict[str, Any]:
    """Losses, norms and final weights under ``STEERED``, of the ranks and of a loop of Keras."""

    def work(strategy: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"losses": [], "norms": []}
        for step, (lr, decay, clip, pieces, frozen, skipped) in enumerate(STEERED):
            strategy._optimizer.param_groups[0] |= {"lr": lr, "weight_decay": decay}
            strategy.set_clip(clip)
            strategy.set_frozen(frozen)
            loss = strategy.forward_backward(_pieces(strategy, step, pieces))
            sums = torch.stack([loss.double(), strategy.grad_sq().double()])
            dist.all_reduce(sums)
            found["losses"].append((sums[0] / ranks).item())
            found["norms"].append(sums[1].sqrt().item())
            if skipped:
                strategy.skip()
            else:
                strategy.step()
        weights = {name: parameter.tolist() for name, parameter in strategy.workload.model.named_parameters()}
        return {**found, "weights": weights}

    token = f"{floatx}-{precision}"
    found = _on_ranks(rank, ranks, directory, work, token=token, floatx=floatx, precision=precision)
    return {"ranks": found, "keras": _bare(floatx) if rank == 0 else None}


def _bare(floatx: str) -> dict[str, Any]:
    keras.config.set_floatx(floatx)
    try:
        network, optimizer = model(), keras.optimizers.AdamW(1e-2, weight_decay=0.1)
        variables = network.trainable_variables
        optimizer.build(variables)
        losses, norms = [], []
        for step, (lr, decay, clip, _, frozen, skipped) in enumerate(STEERED):
            with tf.GradientTape() as tape:
                loss = loss_fn(network, batch(step))
            of = list(zip(tape.gradient(loss, [each.value for each in variables]), variables, strict=True))
            kept = [(each, own) for each, own in of if each is not None and own.path.split("/")[0] not in frozen]
            gradients, norm = [each for each, _ in kept], float(tf.linalg.global_norm([each for each, _ in kept]))
            losses.append(float(loss))
            norms.append(norm)
            optimizer.learning_rate, optimizer.weight_decay = lr, decay
            scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
            if not skipped:
                optimizer.apply([each * scale for each in gradients], [own for _, own in kept])
        weights = {own.path.replace("/", "."): own.numpy().tolist() for own in variables}
        return {"losses": losses, "norms": norms, "weights": weights}
    finally:
        keras.config.set_floatx("float32")


def gradients(rank: int, ranks: int, directory: Path) -> dict[str, Any]:
    """Largest differences, by scope, of the gradients that are shown from those of a gradient tape."""

    def work(strategy: Any) -> dict[str, Any]:
        network = strategy.workload.model.model
        names = {own.path.replace("/", "."): own for own in network.trainable_variables}

        def expected(x: Any, y: Any) -> dict[str, Any]:
            with tf.GradientTape() as tape:
                loss = loss_fn(network, (x, y))
            found = tape.gradient(loss, [own.value for own in names.values()])
            return {name: each.numpy() for name, each in zip(names, found, strict=True) if each is not None}

        def worst(parts: Any, right: dict[str, Any]) -> tuple[float, list[str]]:
            told = {f"{part.layer}.{part.source.name}": part.tensor.numpy() for part in parts}
            return max(float(np.abs(told[name] - right[name]).max()) for name in told), sorted(told)

        local: list[Any] = []
        (piece,) = _pieces(strategy, 0, 1)
        with strategy.watch_batches(lambda parts: local.append(worst(parts, expected(*map(np.array, piece))))):
            strategy.forward_backward([piece])
        return {"local": local, "reduced": worst(strategy.reduced_gradients(all_held=True), expected(*batch(0)))}

    return _on_ranks(rank, ranks, directory, work, token="gradients")


def inside(rank: int, ranks: int, directory: Path) -> dict[str, float]:
    """Largest differences of what hooks see of a layer from what Keras and a gradient tape give."""

    def work(strategy: Any) -> dict[str, float]:
        network, seen = strategy.workload.model.model, {}

        def look(module: Any, given: Any, output: Any) -> None:
            seen["output"] = output.detach().numpy()
            output.register_hook(lambda gradient: seen.update(gradient=gradient.numpy()))

        (piece,) = _pieces(strategy, 0, 1)
        handle = strategy.workload.model.get_submodule("second").register_forward_hook(look)
        strategy.forward_backward([piece])
        handle.remove()
        before, found = dict(seen), network.get_layer("second").output
        strategy.forward_backward([piece])
        assert seen == before, "nothing is looked at without hooks"
        with tf.GradientTape() as tape:
            output = keras.Model(network.inputs, found)(piece[0].numpy())
            tape.watch(output)
            loss = _losses(piece[1].numpy(), keras.Model(found, network.get_layer("last").output)(output))
        right = {"output": output, "gradient": tape.gradient(loss, output)}
        return {name: float(np.abs(seen[name] - value.numpy()).max()) for name, value in right.items()}

    return _on_ranks(rank, ranks, directory, work, token="inside")


def trained(rank: int, ranks: int, directory: Path, *, run: str) -> str:
    """Train a run directory."""
    from workbench.engine.entry import train

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
    return train(run)


def refusals(rank: int, ranks: int, directory: Path, *, cells: list[str]) -> list[str]:
    """What is said of each cell."""
    spec = TrainSpec.from_options({"framework": "tensorflow", "ranks": 1, "batch_size": BATCH})
    return [_refusal(spec, cell) for cell in cells]


def _refusal(spec: TrainSpec, cell: str) -> str:
    samples = list(zip(*batch(0), strict=True))
    names = {"model": model(), "optimizer": keras.optimizers.SGD(0.1), "loss_fn": loss_fn, "dataset": samples}
    exec(cell, {"keras": keras, "torch": torch, **names}, names)
    try:
        load_strategy(spec).check(spec, _workload(adopted(names, spec), spec, Knobs()))
    except ConfigError as error:
        return str(error)
    return ""


def excluded(rank: int, ranks: int, directory: Path, *, by: str) -> dict[str, list[float]]:
    """Weights after some updates with a large decay from which weights are excluded, here and by Keras."""
    from workbench.engine.frameworks.tensorflow.cells import adopted

    found = {}
    for who in ("ours", "keras"):
        keras.utils.set_random_seed(0)
        network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="first"), keras.layers.Dense(1)])
        optimizer = keras.optimizers.AdamW(0.1, weight_decay=2.0)
        weights = network.trainable_variables
        optimizer.exclude_from_weight_decay(
            **({"var_names": ["kernel"]} if by == "name" else {"var_list": weights[:1]})
        )
        gradients = [np.full(each.shape, 0.1 * (number + 1), "float32") for number, each in enumerate(weights)]
        if who == "ours":
            spec = TrainSpec.from_options({"ranks": 1, "batch_size": 4, "framework": "tensorflow", "plugin": "ddp"})
            update = adopted({"model": network, "optimizer": optimizer}, spec)["optimizer"]
            for parameter, gradient in zip(update.param_groups[0]["params"], gradients, strict=True):
                parameter.grad = torch.from_numpy(gradient)
        for _ in range(3):
            if who == "ours":
                update.step()
            else:
                optimizer.apply([tf.constant(each) for each in gradients], weights)
        found[who] = np.concatenate([each.numpy().ravel() for each in weights]).tolist()
    return found
