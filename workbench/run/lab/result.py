"""What a lab found: for each algorithm the time and the bytes until a loss, for each framework its steps, memory and
losses, over the seeds."""

from __future__ import annotations

import html as markup
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core import algorithms, numbers
from workbench.core.network import read as read_network
from workbench.history.sources import ComparedRun
from workbench.run.lab.options import called
from workbench.run.lab.prediction import RATES, Prediction, prediction_figure
from workbench.run.lab.step_cost import StepCost
from workbench.telemetry.row_views import smooth

if TYPE_CHECKING:
    import pandas as pd

_STYLE = (
    "<style>.dw-lab{font:13px/1.45 system-ui,sans-serif}.dw-lab table{border-collapse:collapse;margin:4px 0 12px}"
    ".dw-lab th,.dw-lab td{padding:2px 8px;text-align:right;border-bottom:1px solid #8884;white-space:nowrap;"
    "font-variant-numeric:tabular-nums}.dw-lab th{vertical-align:bottom;white-space:normal}"
    ".dw-lab td:first-child,.dw-lab th:first-child{text-align:left}.dw-lab .scroll{overflow-x:auto}</style>"
)
ALGORITHM, FRAMEWORK = "algorithm", "framework"
_HEADS = {
    ALGORITHM: (ALGORITHM, "time to the loss", "bytes until then", "bytes per step", "step", "last loss"),
    FRAMEWORK: (FRAMEWORK, "steps a second", "step", "bytes per step", "memory of a rank", "last loss"),
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a lab. ``choice``: its algorithm ("": whole gradients) or its framework. ``name``: of its run.
    ``run``: its curves over steps, seconds and bytes of all ranks; None where it failed, for the reason ``failed``.
    ``grown``: bytes by which the memory of a rank grew at most while it trained (NaN: not known). ``cost``: of its
    steps, for predictions; None where it is not known."""

    choice: str
    seed: int
    run: ComparedRun | None
    failed: str = ""
    name: str = ""
    grown: float = math.nan
    cost: StepCost | None = None

    def losses(self) -> np.ndarray:
        """The loss of each step, smoothed (an exponential mean with weight 0.2)."""
        return np.empty(0) if self.run is None else smooth(self.run.curve["loss"], math.nan)

    def at(self, target: float, axis: str) -> float:
        """The value of an axis ("time", "bytes", "step") when the smoothed loss first reached ``target``; NaN where it
        did not."""
        reached = np.flatnonzero(self.losses() <= target)
        return float(self.run.curve[axis][reached[0]]) if self.run is not None and reached.size else math.nan

    def step_s(self) -> float:
        """The time of a step: the median, or the mean where only some steps exchange weights."""
        return self._usual("time")

    def step_bytes(self) -> float:
        """The bytes that all ranks sent in a step, likewise."""
        return self._usual("bytes")

    def _usual(self, axis: str) -> float:
        steps = np.diff(self.run.curve[axis]) if self.run is not None else np.empty(0)
        usual = np.mean if algorithms.is_local(self.choice) else np.median
        return float(usual(steps)) if steps.size else math.nan


@dataclass(frozen=True, kw_only=True)
class Result:
    """The trials of one algorithm or framework."""

    choice: str
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        """What it is called."""
        return called(self.choice)

    def values(self, target: float, axis: str) -> list[float]:
        """``Trial.at`` of each seed that did not fail."""
        return [trial.at(target, axis) for trial in self.trials if trial.run is not None]

    def last_losses(self) -> list[float]:
        """The smoothed loss at the end of each trial that took a step."""
        return [float(losses[-1]) for trial in self.trials if (losses := trial.losses()).size]

    def cost(self) -> StepCost | None:
        """The cost of a step in the first trial that knows it."""
        return next((trial.cost for trial in self.trials if trial.cost is not None), None)

    def reached(self, target: float, axis: str) -> float:
        """The median of ``values`` over the seeds; infinite where one did not reach the loss, or failed."""
        found = self.values(target, axis)
        reached = len(found) == len(self.trials) and all(map(math.isfinite, found))
        return statistics.median(found) if reached else math.inf

    def step_s(self) -> float:
        """The median time of a step over the seeds; NaN where a trial failed."""
        return math.nan if any(trial.failed for trial in self.trials) else _median(t.step_s() for t in self.trials)


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Algorithms or frameworks that trained the same model, compared. It shows itself as a sentence and a table.

    ``target``: the smoothed loss whose time is compared. ``compares``: "algorithm" or "framework". ``network``: what
    was emulated, as ``--network`` reads it ("": nothing).
    """

    results: tuple[Result, ...]
    target: float
    compares: str = ALGORITHM
    network: str = ""

    def predicted(
        self, rates: Sequence[float] = RATES, ranks: Sequence[int] = (), latency_s: float | None = None
    ) -> pd.DataFrame:
        """Predicted, not measured: the time of a step, and to the target loss in as many steps as here, of each
        algorithm. One row each: see ``run.lab.prediction.Prediction.table``.

        ``rates``: of links, in bits per second; ``ranks``: how many (default: as many as here); ``latency_s``: of a
        message (default: that of the emulated network, or none).
        """
        return self._prediction(latency_s).table(rates, ranks)

    def _prediction(self, latency_s: float | None = None) -> Prediction:
        own = read_network(self.network).latency_s if self.network else 0.0
        reached = {
            each.name: (cost, each.reached(self.target, "step")) for each in self.results if (cost := each.cost())
        }
        return Prediction(costs=reached, latency_s=own if latency_s is None else latency_s)

    def table(self) -> pd.DataFrame:
        """One row per trial: algorithm or framework, seed, run, seconds and bytes of all ranks until the target loss,
        the median step in seconds and its bytes, the bytes by which the memory of a rank grew at most, and the smoothed
        loss at the end."""
        import pandas as pd

        rows = []
        for result in self.results:
            for trial in result.trials:
                losses = trial.losses()
                rows.append(
                    {
                        self.compares: result.name,
                        "seed": trial.seed,
                        "run": trial.name,
                        "seconds": trial.at(self.target, "time"),
                        "bytes": trial.at(self.target, "bytes"),
                        "steps": trial.at(self.target, "step"),
                        "step_s": trial.step_s(),
                        "step_bytes": trial.step_bytes(),
                        "memory_bytes": trial.grown,
                        "last_loss": float(losses[-1]) if losses.size else math.nan,
                        "failed": trial.failed,
                    }
                )
        return pd.DataFrame(rows)

    def words(self) -> list[str]:
        """What was found, in sentences."""
        if self.compares == FRAMEWORK:
            lines = [*self._fastest(), *self._agreement()]
        else:
            lines = [self._first()]
            baseline = next((result for result in self.results if not result.choice), None)
            if baseline is not None:
                lines += self._beside(baseline)
            lines += self._prediction().words(called("bf16"), called(""))
        failed = [(result, trial) for result in self.results for trial in result.trials if trial.failed]
        lines += [f"{result.name}, seed {trial.seed}: {trial.failed}" for result, trial in failed]
        if max((len(result.trials) for result in self.results), default=0) == 1:
            lines.append("There is one seed, so no spread is known: pass --seeds 3.")
        return lines

    def _fastest(self) -> list[str]:
        """Whose steps are the shortest, and how much longer those of the others are."""
        known = sorted((time, each.name) for each in self.results if (time := each.step_s()) > 0)
        if not known:
            return []
        (least, best), *others = known
        text = f"{best} took {_time_words(least)} a step"
        if others:
            longer = [f"{name} {time / least:.2f}" for time, name in others]
            text += f"; {', '.join(longer)} times as long"
        return [f"{text}."]

    def _agreement(self) -> list[str]:
        """By how much the losses of two frameworks differ at most in a step, with the same seed."""
        found: list[tuple[float, str]] = []
        for one, other in itertools.combinations(self.results, 2):
            for first, second in zip(one.trials, other.trials, strict=True):
                if first.run is None or second.run is None:
                    continue
                steps = min(first.run.curve["loss"].size, second.run.curve["loss"].size)
                apart = np.abs(first.run.curve["loss"][:steps] - second.run.curve["loss"][:steps])
                if np.isfinite(apart).any():
                    step = int(first.run.curve["step"][np.nanargmax(apart)])
                    where = f"({one.name} and {other.name}, seed {first.seed}, step {step})"
                    found.append((float(np.nanmax(apart)), where))
        if not found:
            return []
        most, where = max(found)
        if not most:
            return ["Their losses are equal in every step."]
        return [f"In no step do two losses differ by more than {numbers.number(most)} {where}."]

    def _first(self) -> str:
        """Who reached the loss first, where that can be told."""
        ranked = sorted((each.reached(self.target, "time"), each.name, each) for each in self.results)
        known = [(time, each) for time, _, each in ranked if time < math.inf]
        loss = f"loss {numbers.number(self.target)}"
        if not known:
            return f"No algorithm reached {loss} with every seed."
        time, best = known[0]
        slowest = max(best.values(self.target, "time"))
        close = [each.name for _, each in known[1:] if min(each.values(self.target, "time")) <= slowest]
        text = f"{best.name} reached {loss} first, in {_time_words(time)}"
        return f"{text}; over the seeds it is not told apart from {', '.join(close)}." if close else f"{text}."

    def _beside(self, baseline: Result) -> list[str]:
        """How much faster and smaller than whole gradients the others are."""
        lines = []
        time, sent = baseline.reached(self.target, "time"), _median(trial.step_bytes() for trial in baseline.trials)
        for each in self.results:
            own, size = each.reached(self.target, "time"), _median(trial.step_bytes() for trial in each.trials)
            if each is baseline or not size > 0:
                continue
            fewer = f"{each.name} sent {sent / size:.3g} times fewer bytes a step than {baseline.name}"
            if own < math.inf and time < math.inf:
                fewer += f" and took {own / time:.2f} times as long to the loss"
            elif own == math.inf:
                fewer += f" and did not reach loss {numbers.number(self.target)}"
            lines.append(f"{fewer}.")
        return lines

    def _rows(self) -> list[list[str]]:
        if self.compares == FRAMEWORK:
            return [
                [
                    result.name,
                    _spread([1 / trial.step_s() for trial in result.trials], numbers.number),
                    _spread([trial.step_s() for trial in result.trials], _time_words),
                    _spread([trial.step_bytes() for trial in result.trials], numbers.decimal_bytes),
                    _spread([trial.grown for trial in result.trials], numbers.decimal_bytes),
                    _spread(result.last_losses(), numbers.number),
                ]
                for result in self.results
            ]
        return [
            [
                result.name,
                _spread(result.values(self.target, "time"), _time_words),
                _spread(result.values(self.target, "bytes"), numbers.decimal_bytes),
                _spread([trial.step_bytes() for trial in result.trials], numbers.decimal_bytes),
                _spread([trial.step_s() for trial in result.trials], _time_words),
                _spread(result.last_losses(), numbers.number),
            ]
            for result in self.results
        ]

    def __repr__(self) -> str:
        return "\n".join([*self.words(), "", numbers.format_table(self._rows(), _HEADS[self.compares])])

    def _repr_html_(self) -> str:
        words = "".join(f"<p>{markup.escape(line)}</p>" for line in self.words())
        table = numbers.html_table(self._rows(), _HEADS[self.compares])
        return f'{_STYLE}<div class="dw-lab">{words}<div class="scroll">{table}</div></div>'

    def compared(self) -> list[ComparedRun]:
        """The runs of the first seed, one per algorithm or framework."""
        return [trial.run for result in self.results for trial in result.trials[:1] if trial.run is not None]

    def figures(self) -> list[Any]:
        """Loss over seconds, over bytes and over steps, of the first seed, and the predicted time to the loss over the
        rate of a link: Bokeh figures."""
        from workbench.history.compare import compare_loaded
        from workbench.history.curves import figures

        runs = self.compared()
        if len(runs) < 2:
            return []
        drawn = []
        for axis, title in (("time", "Loss over time"), ("bytes", "Loss over bytes sent"), ("step", "Loss over steps")):
            figure = figures(compare_loaded(runs, axis))[0]
            figure.title.text = title
            drawn.append(figure)
        predicted = self.predicted() if self.compares == ALGORITHM else None
        if predicted is not None and np.isfinite(predicted["seconds"].astype(float)).any():
            drawn.append(prediction_figure(predicted, self._measured()))
        return drawn

    def _measured(self) -> dict[str, tuple[float, float]]:
        """By algorithm, the rate of the emulated network and the time to the loss on it; none where it was not
        emulated."""
        rate = read_network(self.network).bits_per_s if self.network else math.nan
        times = {each.name: (rate, each.reached(self.target, "time")) for each in self.results}
        return {name: point for name, point in times.items() if all(map(math.isfinite, point))}

    def picture(self) -> bytes:
        """A PNG of the figures, for viewers without scripts."""
        from workbench.plots.still.png import Pane, side_by_side

        return side_by_side([Pane(figure=each, title=str(each.title.text)) for each in self.figures()], height=320)


def common_loss(trials: Sequence[Trial]) -> float:
    """The lowest smoothed loss that all trials reach which took a step; NaN where none did."""
    lowest = [float(np.nanmin(losses)) for trial in trials if (losses := trial.losses()).size]
    return max(lowest, default=math.nan)


def _time_words(value: float) -> str:
    return numbers.milliseconds(1e3 * value)


def _median(values: Any) -> float:
    known = [value for value in values if math.isfinite(value)]
    return statistics.median(known) if known else math.nan


def _spread(values: Sequence[float], shown: Any) -> str:
    """The median with the lowest and the highest of several; a dash where one is not known."""
    if not values or not all(map(math.isfinite, values)):
        return numbers.number(None)
    middle = shown(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({shown(min(values))} to {shown(max(values))})"
