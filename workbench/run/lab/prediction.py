"""Which algorithm is predicted to reach a loss first on links of other rates: a table, a sentence and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.core import numbers
from workbench.core.network import Network, rate_in_words
from workbench.history.curves import colour
from workbench.run.lab.step_cost import StepCost, crossover

if TYPE_CHECKING:
    import pandas as pd

#: of links, in bits per second: from 100 kbit/s to 10 Tbit/s, eight to a power of ten
RATES = tuple(10 ** (5 + eighth / 8) for eighth in range(65))


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """``costs``: by algorithm, the cost of a step and the number of steps to the loss (infinite: not reached).
    ``latency_s``: of a message."""

    costs: Mapping[str, tuple[StepCost, float]]
    latency_s: float

    def table(self, rates: Sequence[float] = RATES, ranks: Sequence[int] = ()) -> pd.DataFrame:
        """One row per algorithm, number of ranks (default: as many as were measured) and rate: ``step_s``, the time of
        a step, and ``seconds``, to the loss. What more ranks do to the loss is not predicted."""
        import pandas as pd

        rows = []
        for name, (cost, steps) in self.costs.items():
            for size in ranks or (cost.ranks,):
                for rate in rates:
                    step_s = cost.step_s(Network(bits_per_s=rate, latency_s=self.latency_s), size)
                    row = {"algorithm": name, "ranks": size, "bits_per_s": rate, "latency_s": self.latency_s}
                    rows.append({**row, "step_s": step_s, "seconds": steps * step_s})
        columns = ["algorithm", "ranks", "bits_per_s", "latency_s", "step_s", "seconds"]
        return pd.DataFrame(rows, columns=columns)

    def words(self, *baselines: str) -> list[str]:
        """On which links the others are predicted to reach the loss before the first of the baselines that there is."""
        known = {name: each for name, each in self.costs.items() if each[1] < math.inf}
        baseline = next((name for name in baselines if name in known), "")
        if len(known) < 2 or not baseline:
            return []
        found = []
        for name, each in known.items():
            if name != baseline:
                rate = crossover(each, known[baseline], self.latency_s, (RATES[0], RATES[-1]))
                where = "on any link" if rate == math.inf else f"below {rate_in_words(rate)}" if rate else "on none"
                found.append(f"{name} {where}")
        return [
            f"Predicted (alpha-beta model, compute as measured here, {known[baseline][0].ranks} ranks, a latency of "
            f"{numbers.milliseconds(1e3 * self.latency_s)}): on links of another rate the loss is reached before "
            f"{baseline} by {', '.join(found)}."
        ]


def prediction_figure(predicted: pd.DataFrame, measured: Mapping[str, tuple[float, float]]) -> Any:
    """A Bokeh figure of ``Prediction.table``. ``measured``: by algorithm, a rate and the time there."""
    from workbench.plots import theme

    drawn = theme.new_figure(
        "Predicted time to the loss over the rate of a link",
        x_label="Mbit/s",
        y_label="seconds",
        height=320,
        x_axis_type="log",
        y_axis_type="log",
    )
    items = []
    for index, (name, rows) in enumerate(predicted.groupby("algorithm", sort=False)):
        look = {"color": colour(index), "line_dash": "dashed", "line_width": 2}
        items.append((f"{name}, predicted", [drawn.line(rows["bits_per_s"] / 1e6, rows["seconds"], **look)]))
        if name in measured:
            rate, seconds = measured[str(name)]
            point = drawn.scatter([rate / 1e6], [seconds], color=colour(index), size=9, line_color=None)
            items.append((f"{name}, measured", [point]))
    theme.add_legend(drawn, items)
    return drawn
