"""Ranks of TensorFlow train a Keras model as one process of Keras does, and can do what their table says."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.run.reader import RunReader
from workbench.run.resolve import resolve
from workbench.rundir import directory as run_directory

RANKS = "tests.engine.keras_ranks"
#: a model with batch normalisation, dropout and a schedule, and data that are shuffled anew in each epoch
CELL = """
import keras, numpy as np, tensorflow as tf

class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.norm = keras.layers.Dense(16), keras.layers.BatchNormalization()
        self.middle, self.drop, self.last = MIDDLE, keras.layers.Dropout(0.5), keras.layers.Dense(3)
    def call(self, x):
        return self.last(self.drop(self.middle(self.norm(self.first(x)))))

class Root(keras.layers.Layer):
    def call(self, x):
        return tf.sqrt(x)

class Slope(keras.layers.Layer):
    def call(self, x):
        return tf.sqrt(tf.nn.relu(x))

x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
model = Net()
model(x[:1])
optimizer = keras.optimizers.AdamW(keras.optimizers.schedules.ExponentialDecay(1e-2, 2, 0.5))
dataloader = tf.data.Dataset.from_tensor_slices({"x": x, "y": (x.sum(1) > 0).astype("int64")}).shuffle(64).batch(8)
eval_dataset = tf.data.Dataset.from_tensor_slices({"x": x[:20], "y": (x[:20].sum(1) > 0).astype("int64")})
losses = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

@tf.function
def loss_fn(model, batch):
    return losses(batch["y"], model(batch["x"]))

metrics = {"correct": lambda outputs, batch: tf.reduce_mean(tf.cast(tf.argmax(outputs, 1) == batch["y"], "float32"))}
"""
REFUSED = {
    "model = torch.nn.Linear(6, 3)": "model is a Linear: --framework tensorflow trains a keras.Model",
    "model = keras.Sequential([keras.layers.Dense(3)])": "has no weights yet: begin the model with keras.Input",
    "model.trainable = False": "no weight of the model is trainable",
    "optimizer = torch.optim.SGD([torch.ones(1)], 0.1)": "optimizer is a SGD: --framework tensorflow takes one of",
    "optimizer = keras.optimizers.LossScaleOptimizer(optimizer)": "optimizer is a LossScaleOptimizer",
    "optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)": "use --accumulate",
    "optimizer = keras.optimizers.SGD(0.1, loss_scale_factor=8.0)": "by which it divides gradients of a loss that fit",
    "optimizer = keras.optimizers.SGD(0.1); optimizer.own = 3": "own of the optimizer is 3, and None in one that is",
    "optimizer = keras.optimizers.SGD(0.1); optimizer.apply([each * 0 for each in model.trainable_variables], "
    "model.trainable_variables)": "the optimizer has made 1 steps in the cell",
    "optimizer = keras.optimizers.SGD(lambda: 0.1)": "the learning rate is a function",
    "criterion = keras.losses.MeanSquaredError()": "losses of Keras take .target, outputs.: define loss_fn",
    "lr_scheduler = 1": "give the optimizer one of keras.optimizers.schedules",
    "pretrained = 'folder'": "it is a model of PyTorch",
    "metrics = {'a': keras.metrics.Mean()}": "a metric is a Mean: define a function",
    "model = keras.Sequential([keras.Input((6,)), keras.layers.BatchNormalization(synchronized=True)])": "synchronized",
    "model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, dtype='mixed_float16')])": "float16",
}

Run = Callable[..., list[Any]]


@pytest.fixture
def run_keras(run_kept: Run) -> Run:
    return partial(run_kept, on_ranks_of="tensorflow")


@pytest.fixture
def train(run_keras: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunReader]:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))

    def trained(ranks: int = 2, *, middle: str = "keras.layers.ReLU()", **options: Any) -> RunReader:
        cell = CELL.replace("MIDDLE", middle)
        given = {"framework": "tensorflow", "ranks": ranks, "batch_size": 8, **options}
        request = resolve(given, cell=cell, default_ranks=2)
        path = run_directory.create(request.spec, request.cell)
        for told in run_keras(ranks, f"{RANKS}:trained", run=str(path)):
            assert '"failed"' not in told, told
        run = RunReader(path)
        run.store.refresh()
        return run

    return trained


@pytest.mark.parametrize(
    ("floatx", "precision", "of_losses", "of_weights"),
    [
        # losses and norms are told in float32; a gradient is clipped by such a norm
        ("float64", "fp32", 1e-6, 1e-7),
        ("float32", "fp32", 1e-5, 1e-5),
        # activations are rounded to 8 and 11 bits
        ("float32", "bf16", 1e-2, 0.03),
        ("float32", "fp16", 5e-3, 0.03),
    ],
)
def test_ranks_train_as_one_process_of_keras_whatever_is_set_meanwhile(
    run_keras: Run, floatx: str, precision: str, of_losses: float, of_weights: float
) -> None:
    """The learning rate, weight decay, clipping, accumulation, frozen layers and a step that is skipped."""
    first, second = run_keras(2, f"{RANKS}:steered", floatx=floatx, precision=precision)
    assert first["ranks"] == second["ranks"]
    found, right = first["ranks"], first["keras"]
    assert found["losses"] == pytest.approx(right["losses"], abs=of_losses)
    assert found["norms"] == pytest.approx(right["norms"], abs=of_losses if precision == "fp32" else 0.1)
    assert list(found["weights"]) == list(right["weights"])
    for name, weight in right["weights"].items():
        assert np.abs(np.array(found["weights"][name]) - weight).max() < of_weights, name
    if precision != "fp32":
        assert found["losses"] != pytest.approx(right["losses"], abs=1e-5), "it computes in half precision"


def test_gradients_are_those_of_a_gradient_tape(run_keras: Run) -> None:
    """Local ones of the rank's samples, reduced ones of the whole batch; a weight that no loss uses has none."""
    for found in run_keras(2, f"{RANKS}:gradients"):
        for worst, names in (*found["local"], found["reduced"]):
            assert worst < 1e-15
            assert len(names) == 8 and "unused.kernel" not in names


def test_hooks_see_what_a_layer_puts_out_and_its_gradient(run_keras: Run) -> None:
    for found in run_keras(2, f"{RANKS}:inside"):
        assert set(found) == {"output", "gradient"} and max(found.values()) < 1e-15


def test_a_run_is_saved_and_goes_on_as_if_it_had_not_ended(train: Callable[..., RunReader]) -> None:
    """With the optimizer's moments, the schedule, the order of the data, and the random numbers of each rank."""
    whole = train(steps=6, grad_every=1, eval_every=3)
    half = train(steps=3, save_every=3)
    rest = train(steps=6, resume=f"{half.path}@3")
    assert [*half.metrics()["loss"], *rest.metrics()["loss"]] == whole.metrics()["loss"].tolist()
    assert len(set(whole.metrics()["lr"])) == 6
    assert set(whole.gradients()["scope"]) == {"local", "reduced"}
    assert set(whole.gradients()["layer"]) == {"dense", "batch_normalization", "dense_1"}
    assert set(whole.phases()["phase"]) >= {"forward", "backward", "communication"}
    events = whole.store.table("events")
    told = {name for kind, name in zip(events["kind"], events["name"], strict=True) if kind == "validation"}
    assert told == {"loss", "correct"}


@pytest.mark.parametrize(("middle", "where"), [("Root()", "forward"), ("Slope()", "backward")])
def test_the_layer_of_the_first_number_that_is_not_finite_is_named(
    train: Callable[..., RunReader], middle: str, where: str
) -> None:
    """Also of one that has no weights, in a loss that tf.function compiles."""
    events = train(middle=middle, steps=2).store.table("events")
    rows = zip(events["kind"], events["value"], strict=True)
    found = [json.loads(value) for kind, value in rows if kind == "nonfinite"]
    assert found
    for each in found:
        assert (each["where"], each["module"]) == (where, middle.removesuffix("()"))


def test_a_cell_that_cannot_be_trained_is_refused_with_what_to_do(run_keras: Run) -> None:
    (told,) = run_keras(1, f"{RANKS}:refusals", cells=[*REFUSED])
    for (cell, pattern), message in zip(REFUSED.items(), told, strict=True):
        with pytest.raises(ValueError, match=pattern):
            raise ValueError(message or f"{cell} was not refused")


@pytest.mark.parametrize("by", ["name", "variable"])
def test_weights_that_are_excluded_from_decay_do_not_decay(run_kept: Callable[..., list[Any]], by: str) -> None:
    found = run_kept(1, f"{RANKS}:excluded", by=by, on_ranks_of="tensorflow")[0]
    assert found["ours"] == pytest.approx(found["keras"], abs=1e-6)
