"""Plans as people see them: a table, sentences, text and HTML."""

from __future__ import annotations

import html as markup
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.core import numbers
from workbench.core.config import ParallelPlan, TrainSpec
from workbench.core.mesh import Coordinates
from workbench.errors import ConfigError, suggest
from workbench.planner.forecast import Forecast, Refused, why_first
from workbench.planner.holdings import memory
from workbench.planner.machine import Machine
from workbench.planner.model import ModelDescription
from workbench.run.planning import figures
from workbench.run.planning.attempt import Attempt
from workbench.run.planning.errors import Error, errors
from workbench.run.planning.holders import Holders

if TYPE_CHECKING:
    import pandas as pd

_STYLE = (
    "<style>.dw-plans{font:13px/1.45 system-ui,sans-serif}.dw-plans table{border-collapse:collapse;margin:4px 0 12px}"
    ".dw-plans th,.dw-plans td{padding:2px 6px;text-align:right;border-bottom:1px solid #8884;"
    "font-variant-numeric:tabular-nums}.dw-plans td{white-space:nowrap}.dw-plans th{vertical-align:bottom}"
    ".dw-plans td:first-child,.dw-plans th:first-child{text-align:left}"
    ".dw-plans caption{text-align:left;font-weight:600;padding:4px 0}.dw-plans .scroll{overflow-x:auto}</style>"
)
#: what the parts of a rank's memory are called
PARTS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "state": "optimizer state",
    "activations": "activations",
    "buffers": "buffers",
}
_MOST_REASONS = 12


@dataclass(frozen=True, kw_only=True)
class Plans:
    """The plans for a model on a number of ranks, the best first. It shows itself as tables, in a notebook as HTML.

    ``forecasts``: what each plan takes; ``refused``: the others, and why; ``machine``: what was measured of this
    machine (None: nothing, so no times are known); ``limit``: bytes of memory that a rank has; ``tried``: what a few
    steps of a plan gave; ``specs``: the spec of a training with each plan; ``configs``: what the configuration file
    of a framework says, and what each plan makes of it.
    """

    model: ModelDescription
    ranks: int
    machine: Machine | None
    limit: float
    forecasts: tuple[Forecast, ...]
    refused: tuple[Refused, ...] = ()
    tried: Mapping[ParallelPlan, Attempt]
    specs: Mapping[ParallelPlan, TrainSpec]
    configs: tuple[str, ...] = ()

    @property
    def chosen(self) -> Forecast | None:
        """The first choice; None when no plan can be predicted."""
        return self.forecasts[0] if self.forecasts else None

    @property
    def why(self) -> str:
        """Why the first plan is the first choice, in a sentence."""
        return why_first(self.forecasts)

    def table(self) -> pd.DataFrame:
        """One row per plan: bytes of the rank that holds most, bytes that it sends per step, estimated seconds; and
        what was measured, where plans were tried."""
        import pandas as pd

        return pd.DataFrame([self._row(item) for item in self.forecasts])

    def ranks_table(self) -> pd.DataFrame:
        """One row per plan and rank: its place on the mesh, and the bytes that it holds."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"plan": item.name, "rank": rank, **_place(here), **_parts(memory(self.model, item.job, here))}
                for item in self.forecasts
                for rank in range(self.ranks)
                for here in [item.job.plan.mesh.coordinates(rank)]
            ]
        )

    def traffic_table(self) -> pd.DataFrame:
        """One row per plan, pipeline stage and kind of collective: axis, ranks, calls and bytes of one step."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"plan": item.name, "stage": stage, "kind": each.kind, "axis": each.axis, "ranks": each.ranks}
                | {"calls": each.calls, "bytes": each.bytes}
                for item in self.forecasts
                for stage, messages in enumerate(item.messages)
                for each in messages
            ]
        )

    def errors(self) -> list[Error]:
        """Predicted beside measured, of each plan that was tried."""
        return [
            error
            for item in self.forecasts
            if item.job.plan in self.tried
            for error in errors(self.model, item, self.tried[item.job.plan])
        ]

    def holders(self, plan: str) -> Holders:
        """Who holds what under a plan of the table, such as "pp2": a picture in a notebook, else lines of text.

        Raises ``ConfigError`` for a plan that is not among ``forecasts``.
        """
        names = {item.name: item for item in self.forecasts}
        if plan not in names:
            raise ConfigError(f"no plan {plan!r} was predicted: {suggest(plan, list(names))}", field="plan")
        return Holders(model=self.model, job=names[plan].job)

    def _row(self, item: Forecast) -> dict[str, Any]:
        held, time = item.largest, item.time
        row = {"plan": item.name, "fits": item.fits, **_parts(held), "total": held.total}
        row |= {"sent_bytes": item.sent_bytes, "step_s": math.nan if time is None else time.total}
        for name in ("compute", "bubble", "communication", "update"):
            row[f"{name}_s"] = math.nan if time is None else getattr(time, name)
        found = self.tried.get(item.job.plan)
        if found is not None:
            row |= {"measured_step_s": found.step_s, "measured_sent_bytes": max(found.sent_bytes, default=math.nan)}
            row |= {"measured_parameters": max(found.parameters, default=math.nan)}
            row |= {"measured_state": max(found.state, default=math.nan)}
        return row

    def words(self) -> list[str]:
        """What was found, in sentences."""
        said = [self.why] if self.forecasts else ["No plan can be predicted."]
        said.append(
            f"{self.model.title}: {numbers.number(self.model.elements)} parameters; global batch of "
            f"{self.model.batch_size} samples on {self.ranks} rank{'s' if self.ranks != 1 else ''}. Sizes are those of "
            "the rank that holds most, without what the process itself takes."
        )
        said.append(_of_machine(self.machine, self.ranks))
        for what, why in (("optimizer state", self.model.state_unknown), ("activations", self.model.activity_unknown)):
            if why:
                said.append(f"Not predicted: {what}, as {why}.")
        return [*said, *self.configs]

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, heads and rows of text of each table. A part of the memory that no plan needs has no column."""
        parts = [part for part in PARTS if any(getattr(item.largest, part) != 0 for item in self.forecasts)]
        heads = ["plan", *(PARTS[part] for part in parts), "total", "sent per step", "step (estimated)"]
        rows = [self._cells(item, parts) for item in self.forecasts]
        shown = [(f"Plans for {self.ranks} ranks", heads, rows)] if rows else []
        found = self.errors()
        if found:
            shown.append(
                (
                    "Predicted and measured",
                    ["plan", "of the rank with most", "predicted", "measured", "error"],
                    [[error.plan, error.what, error.predicted, error.measured, error.share] for error in found],
                )
            )
        return shown

    def _cells(self, item: Forecast, parts: Sequence[str]) -> list[str]:
        held = item.largest
        sizes = [_size(getattr(held, part)) for part in parts]
        time = "\N{EN DASH}" if item.time is None else numbers.milliseconds(1e3 * item.time.total)
        name = item.name if item.fits else f"{item.name} (does not fit)"
        return [name, *sizes, _size(held.total), _size(item.sent_bytes), time]

    def figures(self) -> list[Any]:
        """A stacked bar of memory for each plan, and one of the estimated step: Bokeh figures."""
        return figures.drawn(self.forecasts, self.limit)

    def picture(self) -> bytes:
        """A PNG of the figures, for viewers without scripts."""
        return figures.picture(self.forecasts, self.limit)

    def __repr__(self) -> str:
        parts = ["\n".join(self.words())]
        parts += [f"{title}\n{_plain(heads, rows)}" for title, heads, rows in self.tables()]
        if self.chosen is not None:
            parts.append(repr(self.holders(self.chosen.name)))
        if self.refused:
            parts.append("\n".join(["Not possible:", *self._reasons()]))
        return "\n\n".join(parts)

    def _reasons(self) -> list[str]:
        said = [f"{each.name}: {each.reason}" for each in self.refused[:_MOST_REASONS]]
        more = len(self.refused) - _MOST_REASONS
        return [*said, f"and {more} more"] if more > 0 else said

    def _repr_html_(self) -> str:
        parts = [_STYLE, '<div class="dw-plans">']
        parts += [f"<p>{markup.escape(line)}</p>" for line in self.words()]
        for title, heads, rows in self.tables():
            parts.append(f'<div class="scroll"><table><caption>{markup.escape(title)}</caption>')
            parts.append(
                f"<thead>{_line('th', heads)}</thead><tbody>{''.join(_line('td', row) for row in rows)}</tbody>"
            )
            parts.append("</table></div>")
        if self.chosen is not None:
            parts.append(self.holders(self.chosen.name)._repr_html_())
        if self.refused:
            items = "".join(f"<li>{markup.escape(line)}</li>" for line in self._reasons())
            parts.append(f"<details><summary>{_count(self.refused)} not possible</summary><ul>{items}</ul></details>")
        return "".join([*parts, "</div>"])


def _of_machine(machine: Machine | None, ranks: int) -> str:
    if machine is None:
        return (
            "Step times are not known: this machine was never measured with as many ranks (leave out --no-calibrate)."
        )
    link = ""
    if not math.isnan(machine.latency_s):
        link = (
            f", a message takes {numbers.milliseconds(1e3 * machine.latency_s)} and "
            f"{numbers.decimal_bytes(machine.link_bytes_per_s)}/s"
        )
    ranks_measured = f"{machine.ranks} rank{'s' if machine.ranks != 1 else ''}"
    said = (
        f"Measured on {machine.date.replace('T', ' ')} on {machine.host} with {ranks_measured} ({machine.device}): "
        f"{machine.flops_per_s / 1e9:.3g} GFLOP/s per rank in {machine.precision}{link}."
    )
    if ranks > machine.ranks:
        said += f" {ranks} ranks are more than were measured: estimated as if every link were like these."
    return said


def _count(refused: Sequence[Refused]) -> str:
    return "1 plan is" if len(refused) == 1 else f"{len(refused)} plans are"


def _place(here: Coordinates) -> dict[str, int]:
    return {"dp": here.dp, "pp": here.pp, "cp": here.cp, "tp": here.tp}


def _parts(held: Any) -> dict[str, float]:
    return {part: getattr(held, part) for part in PARTS}


def _size(value: float) -> str:
    return "\N{EN DASH}" if math.isnan(value) else numbers.decimal_bytes(value)


def _plain(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in (heads, *rows)) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in (heads, *rows)
    )


def _line(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{markup.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
