"""How far ranks agree about the gradient: noise scale and similarity, from norms and products that are logged."""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.core.columns import Columns
from workbench.core.mesh import Mesh
from workbench.telemetry.gradients import combine, once_per_element
from workbench.telemetry.running import interval_of_ratio

NOISE_COLUMNS = (
    "step",
    "layers",
    "reduced_sq",
    "local_sq",
    "gradient_sq",
    "noise",
    "noise_scale",
    "low",
    "high",
    "kind",
)


def noise_scale(rows: Columns, mesh: Mesh, batch_size: int, *, window: int | None = None) -> pd.DataFrame:
    """The gradient noise scale: the batch size (in samples) up to which a larger batch nearly pays in full.

    McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1: with R replicas of b samples,
    local gradients g_r and their mean G, unbiased estimates of the true gradient and of the noise are

        |G|^2_true = (R b |G|^2 - b mean|g_r|^2) / (R b - b),    S = (mean|g_r|^2 - |G|^2) / (1/b - 1/(R b)),

    and the noise scale is average(S) / average(|G|^2_true): numerator and denominator are averaged apart, as the mean
    of quotients is far too high. The averages are over the last ``window`` rows (default: all so far).

    One row per step for which every layer is logged. Columns: step, layers (how many), reduced_sq (|G|^2), local_sq
    (mean |g_r|^2), gradient_sq and noise (the estimates of this step, either of which can be negative), noise_scale
    (running), low and high (the ends of its 90 % interval, see ``telemetry.running.interval_of_ratio``; with fewer than
    three rows 0 and infinite), kind: "exact", or "one replica" where there is nothing to compare (all estimates are NaN
    then). With ``--grad-layers`` it is the noise scale of those layers.
    """
    table = combine(rows, mesh)
    if table.empty:
        return pd.DataFrame(columns=list(NOISE_COLUMNS))
    once = table.drop_duplicates(["step", "layer", "scope", "norm"])
    reduced = _sums(once[once["scope"] == "reduced"].drop_duplicates(["step", "layer"]))
    of_replica = table[table["scope"] == "local"].assign(
        replica=lambda f: f["rank"] // mesh.replica_size, square=lambda f: f["norm"] ** 2
    )
    of_replica = of_replica.drop_duplicates(["step", "layer", "replica"])
    counted = of_replica.groupby("step").agg(local_sq=("square", "sum"), count=("square", "count"))
    both = reduced.join(counted, how="inner").reset_index()
    layers = table["layer"].nunique()
    both = both[(both["layers"] == layers) & (both["count"] == layers * mesh.dp)]
    both["local_sq"] /= mesh.dp
    both = both[np.isfinite(both["local_sq"]) & np.isfinite(both["reduced_sq"])]
    small, large = batch_size / mesh.dp, float(batch_size)
    if mesh.dp == 1:
        both[["gradient_sq", "noise", "noise_scale", "low", "high"]] = np.nan
        return both.assign(kind="one replica").reset_index(drop=True)[list(NOISE_COLUMNS)]
    both["gradient_sq"] = (large * both["reduced_sq"] - small * both["local_sq"]) / (large - small)
    both["noise"] = (both["local_sq"] - both["reduced_sq"]) / (1 / small - 1 / large)
    length = window or max(1, len(both))
    noise, gradient = both["noise"], both["gradient_sq"]
    products = pd.DataFrame({"a": noise, "b": gradient, "aa": noise**2, "ab": noise * gradient, "bb": gradient**2})
    windows = products.rolling(length, min_periods=1)
    averages, share = windows.mean(), 1 / windows["a"].count().to_numpy()
    top, bottom, *squares = averages.to_numpy().T
    both["low"], both["high"] = interval_of_ratio(top, bottom, (squares[0], squares[1], squares[2]), share)
    # an average that is not positive yet says that the noise drowns the gradient so far, not how much
    both["noise_scale"] = (averages["a"] / averages["b"]).where(averages["b"] > 0)
    return both.assign(kind="exact").reset_index(drop=True)[list(NOISE_COLUMNS)]


def _sums(rows: pd.DataFrame) -> pd.DataFrame:
    squares = rows.assign(square=rows["norm"] ** 2)
    return squares.groupby("step").agg(reduced_sq=("square", "sum"), layers=("square", "count"))


def similarity(
    rows: Columns, sketches: Columns, mesh: Mesh, step: int | None = None, layer: str | None = None
) -> pd.DataFrame:
    """Cosine between the local gradients of every two replicas at a step (default: the last with every layer): a square
    frame, replicas as index and columns; of one ``layer``, or of all.

    Of up to three replicas it is exact: the sum over s of g_r . g_s is R g_r . G, so the pairs follow from norms and
    inner products with the mean. With more there are more pairs than equations, and it is estimated from the sketches:
    64 elements of every parameter. ``frame.attrs["kind"]`` says which: "exact" or "sampled".

    Raises ``ValueError`` for a step or layer of which not enough is logged.
    """
    if mesh.dp > 3:
        return _sampled(sketches, mesh, step, layer)
    table = combine(rows, mesh).query("scope == 'local'")
    table = table[table["layer"] == _known(layer, table)] if layer is not None else table
    complete = table.dropna(subset=["cosine"]).groupby("step")["layer"].nunique()
    chosen = table[table["step"] == _chosen_step(complete, table["layer"].nunique(), step)]
    chosen = chosen.assign(replica=chosen["rank"] // mesh.replica_size).drop_duplicates(["replica", "layer"])
    square = (
        chosen.assign(
            own=chosen["norm"] ** 2,
            dot=chosen["cosine"] * chosen["norm"] ** 2 / chosen["norm_ratio"],
        )
        .groupby("replica")[["own", "dot"]]
        .sum()
    )
    products = _products(square["own"].to_numpy(), square["dot"].to_numpy())
    return _cosines(products, square.index.to_list(), "exact")


def _sampled(sketches: Columns, mesh: Mesh, step: int | None, layer: str | None) -> pd.DataFrame:
    table = once_per_element(pd.DataFrame(sketches).assign(scope="local"), mesh)
    if layer is not None:
        table = table[table["layer"] == _known(layer, table)]
    complete = table.groupby("step")["layer"].nunique()
    chosen = table[table["step"] == _chosen_step(complete, table["layer"].nunique(), step)]
    chosen = chosen.sort_values(["layer", "sharded", "pp", "tp"])
    vectors = [np.concatenate(own["values"].to_list()) for _, own in chosen.groupby("dp")]
    stacked = np.stack(vectors).astype(float)
    return _cosines(stacked @ stacked.T, list(range(mesh.dp)), "sampled")


def _known(layer: str, table: pd.DataFrame) -> str:
    if layer not in set(table["layer"]):
        raise ValueError(f"no gradient of a layer {layer!r} is logged: gradients()['layer'] has the names")
    return layer


def _chosen_step(complete: pd.Series, layers: int, step: int | None) -> int:
    """``step``, or the last of which every layer is there."""
    steps = list(complete.index[complete == layers])
    if not steps or (step is not None and step not in steps):
        raise ValueError(f"no full set of gradient statistics of step {step}: the last ones are of steps {steps[-5:]}")
    return steps[-1] if step is None else step


def _cosines(products: np.ndarray, replicas: list[int], kind: str) -> pd.DataFrame:
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.clip(products / np.outer(norms, norms), -1, 1)
    frame = pd.DataFrame(cosines, index=replicas, columns=replicas)
    frame.attrs["kind"] = kind
    return frame


def _products(own: np.ndarray, with_mean: np.ndarray) -> np.ndarray:
    """All inner products of up to three vectors from their squares and their products with the mean of all."""
    count = own.size
    others = count * with_mean - own  # sum over s != r of g_r . g_s
    products = np.diag(own).astype(float)
    for r in range(count):
        for s in range(r + 1, count):
            third = others.sum() - others[r] - others[s] if count == 3 else 0.0
            products[r, s] = products[s, r] = (others[r] + others[s] - third) / 2
    return products
