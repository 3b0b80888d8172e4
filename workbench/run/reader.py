"""Reads a run directory: the spec, the tables as data frames, the verdict, settings, output, reports and exports."""

from __future__ import annotations

import pkgutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core import controls
from workbench.core.columns import Columns
from workbench.core.config import ParallelPlan, TrainSpec
from workbench.core.controls import Control
from workbench.core.records import EventKind
from workbench.events.decode import decode, of_kind
from workbench.events.settings import CurrentSettings, declared
from workbench.rundir import checkpoints, state
from workbench.rundir.directory import OUTPUT_FILE
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from workbench.telemetry.logged.media import Logged
    from workbench.telemetry.verdict import Verdict


def _in_engine(function: str) -> Any:
    """A function of ``engine.trained_model``, which imports torch: the notebook does so when weights are asked for."""
    return pkgutil.resolve_name(f"workbench.engine.trained_model:{function}")


class RunReader:
    """Reads one run. ``name`` is a run directory, a run's name, or None for the newest run.

    Raises ``RunDirectoryError`` when there is no such run, ``SchemaError`` when a newer version wrote it.
    """

    def __init__(self, name: str | Path | None = None) -> None:
        self.path = state.find(name)
        self.store = Store(self.path)
        self._lock = threading.RLock()

    @property
    def spec(self) -> TrainSpec:
        """The spec of the run."""
        return self.store.spec

    @property
    def plan(self) -> ParallelPlan:
        """How the training is spread over ranks."""
        return self.spec.plan

    @property
    def name(self) -> str:
        """The run's name, as given with ``--name``."""
        return self.spec.name

    @property
    def last_step(self) -> int:
        """The step that any rank finished last; 0 before the first. A rollback lowers it."""
        steps = self._table("steps")
        return int(steps["step"][steps["time"].argmax()]) if steps["step"].size else 0

    def step_of(self, rank: int) -> int | None:
        """Return the last step that one rank finished; None before its first."""
        steps = self._table("steps")
        own = steps["step"][steps["rank"] == rank]
        return int(own[-1]) if own.size else None

    def metrics(self, *, per_rank: bool = False) -> pd.DataFrame:
        """One row per step that all ranks finished: step, loss, lr, grad_norm, tps, step_time_ms and more.

        Values are global (``telemetry.derive.global_metrics``); ``tps`` is tokens per second per device. With
        ``per_rank`` a column ``rank`` is added and each step has a row per rank as well, with that rank's own loss, lr,
        step_time_ms, data_wait_ms and tps; the global rows have rank -1. ``tokens_per_s`` is the total of all devices,
        ``tflops`` 10**12 model operations per second and device, ``mfu`` their share of the device's peak in percent.
        A validation has columns ``validation_loss``, ``validation_NAME`` of each metric that is a number, NaN in steps
        without one. What the cell logged has a column per name (``NAME/rank R`` where ranks are not combined,
        ``log/NAME`` where a column has that name already), NaN in steps without a value.
        """
        from workbench.telemetry.derive import metrics_frame
        from workbench.telemetry.flops import cost_of

        events = self._events()
        cost = cost_of(events, self.plan.ranks)
        steps, logged = self._table("steps"), self._table("values")
        return metrics_frame(steps, self.plan.mesh, per_rank=per_rank, cost=cost, events=events, logged=logged)

    def values(self) -> pd.DataFrame:
        """What the cell logged with ``log``, at every step: step, name, rank (-1: of all ranks), reduce, value."""
        from workbench.telemetry.logged.curves import values_frame

        return values_frame(self._table("values"), self.plan.mesh)

    def media(self) -> list[Logged]:
        """Images and texts that the cell logged, in order of steps: objects with step, rank, name, kind ("image" or
        "text"), text, file (path of the PNG), width and height."""
        from workbench.telemetry.logged.media import media

        return media(self._table("media"), self.path)

    def devices(self) -> pd.DataFrame:
        """Device samples: time, rank, cpu_percent, rss_bytes, GPU columns, network and disk bytes, phase, step."""
        from workbench.telemetry.derive import devices_frame

        return devices_frame(self._table("devices"))

    def gradients(self) -> pd.DataFrame:
        """Gradient statistics per step, rank, layer and scope: see ``telemetry.gradients.combine``."""
        from workbench.telemetry.gradients import combine

        return combine(self._gradient_rows(), self.plan.mesh)

    def histograms(self) -> pd.DataFrame:
        """Histograms of gradient magnitudes over powers of two: see ``telemetry.gradients.combine_histograms``."""
        from workbench.telemetry.gradients import combine_histograms

        return combine_histograms(self._table("histograms"), self.plan.mesh)

    def weights(self) -> pd.DataFrame:
        """Norms of weights, updates and moments per step and layer: see ``telemetry.gradients.combine_weights``."""
        from workbench.telemetry.gradients import combine_weights

        return combine_weights(self._table("weights"), self.plan.mesh)

    def activations(self, *, whole_batch: bool = True) -> pd.DataFrame:
        """Statistics of modules' outputs and of their gradients, per step and layer (``whole_batch`` of
        ``telemetry.inside.activations``); with ``whole_batch=False`` per replica and micro-batch (``combine``)."""
        from workbench.telemetry.inside import activations

        compute = activations.whole_batch if whole_batch else activations.combine
        return compute(self._table("activations"), self.plan.mesh)

    def attention(self) -> pd.DataFrame:
        """Entropy and largest logit of attention, per step and layer: see ``telemetry.inside.activations``."""
        from workbench.telemetry.inside.activations import combine_attention

        return combine_attention(self._table("attention"), self.plan.mesh)

    def routers(self) -> pd.DataFrame:
        """Load of the experts and entropy of each router: see ``telemetry.inside.activations.combine_routers``."""
        from workbench.telemetry.inside.activations import combine_routers

        return combine_routers(self._table("routers"), self.plan.mesh)

    def spectra(self) -> pd.DataFrame:
        """Stable rank and largest singular value of weights: see ``telemetry.inside.spectra.combine_spectra``."""
        from workbench.telemetry.inside.spectra import combine_spectra

        return combine_spectra(self._table("spectra"))

    def noise_scale(self, *, window: int | None = None) -> pd.DataFrame:
        """Gradient noise scale, averaged over the last ``window`` full sets: see ``telemetry.noise.noise_scale``."""
        from workbench.telemetry.noise import noise_scale

        return noise_scale(self._gradient_rows(), self.plan.mesh, self._batch_size(), window=window)

    def _batch_size(self) -> int:
        """Samples of a global batch; from the events when a cell's dataloader sets it, as the spec then says 0."""
        from workbench.telemetry.derive import batch_of

        return self.spec.batch_size or batch_of(self._table("events"))[0]

    def similarity(self, step: int | None = None, layer: str | None = None) -> pd.DataFrame:
        """Cosine similarities of the replicas' gradients, a square frame: see ``telemetry.noise.similarity``."""
        from workbench.telemetry.noise import similarity

        return similarity(self._gradient_rows(), self._table("sketches"), self.plan.mesh, step, layer)

    def phases(self) -> pd.DataFrame:
        """Phases of each step on each rank: step, rank, phase, micro_batch, start_ms, duration_ms."""
        from workbench.telemetry.phases import phases_frame

        return phases_frame(self._table("phases"))

    def collectives(self) -> pd.DataFrame:
        """Collectives and messages of the recorded steps, with algorithm bandwidth and bus bandwidth."""
        from workbench.telemetry.phases import collectives_frame

        return collectives_frame(self._table("collectives"))

    def verdict(self) -> Verdict:
        """What limits the run, as a sentence (``print`` it) and as numbers: see ``telemetry.verdict.Verdict``."""
        from workbench.telemetry.phases import posting_time
        from workbench.telemetry.verdict import verdict

        return verdict(self._table("phases"), self.plan.mesh, posting_time(self._table("collectives")))

    def events(self) -> pd.DataFrame:
        """Events: time, step, rank, kind, name, value, old_value, who (values decoded)."""
        import pandas as pd

        frame = pd.DataFrame(self._events())
        for column in ("value", "old_value"):
            frame[column] = [decode(text) for text in frame[column]]
        return frame.sort_values("time", kind="stable", ignore_index=True)

    def alerts(self) -> pd.DataFrame:
        """Alerts by step, of one step in the order of the computation: step, name, text, rank, layer, value, limit,
        where, order, ended (the step of the end, 0: not yet), explanation."""
        from workbench.events.alerts import alerts_of, table_of

        return table_of(alerts_of(self._events()))

    def samples(self) -> list[tuple[int, str]]:
        """Texts sampled from the model, as (step, text)."""
        return [(event.step, str(event.value)) for event in of_kind(self._events(), EventKind.SAMPLE)]

    def output(self, rank: int = 0) -> str:
        """What a rank printed during the training."""
        file = self.path / f"rank-{rank:05d}" / OUTPUT_FILE
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def report(self, out: str | Path | None = None, *, light: bool = False, pdf: bool = False) -> Path:
        """Write the run's report (default: ``report.html`` in its directory) and return its path: see ``render``."""
        from workbench.report import render

        return render(self.path, out, light=light, pdf=pdf)

    def export(self, to: str, out: str | Path | None = None) -> Path:
        """Write the run as csv, parquet, tensorboard, trace, wandb, mlflow or dcp: see ``workbench.export.export``."""
        from workbench.export import export

        return export(self, to, out)

    def settings(self) -> dict[str, Any]:
        """The values in force: name -> value of all settings and knobs, and ``frozen``, the layers not updated."""
        found = CurrentSettings()
        found.take(self._events())
        steps = self._table("steps")
        if steps["time"].size:
            newest = steps["time"].argmax()
            found.take_lr(float(steps["lr"][newest]), float(steps["time"][newest]))
        return {name: value for name, value in found.values.items() if name != "interval"}

    def declared(self) -> list[Control]:
        """The knobs that the training script declared."""
        return declared(self._events())

    def checkpoints(self) -> list[int]:
        """The steps that have a checkpoint."""
        return checkpoints.steps(self.path)

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """The weights of a checkpoint (default: the newest), whole and on the CPU: see
        ``engine.state.weights.whole_weights``. Raises ``ConfigError`` when there is no such checkpoint."""
        checkpoint = self._checkpoint(step)
        return _in_engine("whole_weights")(checkpoint)

    def load_model(self, model: Any = None, *, step: int | str | None = None, device: str = "cpu") -> Any:
        """The trained model, whole, in this process, from a checkpoint (a step, or "best"; default: the newest), in
        evaluation mode.

        ``model``: a model of the same parameters that takes the weights (default: the run's recipe or cell builds one,
        for which the cell is run here). Raises as ``engine.trained_model.load_model``.
        """
        checkpoint = self._checkpoint(step)
        return _in_engine("load_model")(self.path, checkpoint, self.spec, model, device)

    def save_pretrained(self, out: str | Path, *, step: int | str | None = None, merge: bool = True) -> Path:
        """Write the trained model of a checkpoint (default: the newest) into the directory ``out``, as
        ``from_pretrained`` of the transformers library reads it. ``merge``: adapters are added to the weights; False:
        the adapters alone are written, as ``peft.PeftModel.from_pretrained`` reads them. Raises ``ConfigError`` for
        any other model."""
        checkpoint = self._checkpoint(step)
        return _in_engine("save_pretrained")(self.path, checkpoint, self.spec, Path(out), merge)

    def _checkpoint(self, step: int | str | None) -> Path:
        return checkpoints.find(self.path, checkpoints.NEWEST if step is None else step)

    def controls(self) -> list[Control]:
        """All controls of this run, including the knobs that its training script declared."""
        return [*controls.CONTROLS, *self.declared()]

    def _table(self, table: str) -> Columns:
        with self._lock:
            self.store.refresh()
            return self.store.table(table)

    def _gradient_rows(self) -> Columns:
        from workbench.telemetry.layer_norms import gradient_rows

        with self._lock:
            self.store.refresh()
            return gradient_rows(self.store)

    def event_rows(self) -> Columns:
        """Return the events as they are logged, their values as JSON texts; ``events`` decodes them."""
        return self._table("events")

    def _events(self) -> Columns:
        return self.event_rows()
