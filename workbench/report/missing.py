"""Says why a run has no data for a figure: because of an option, or of a fault. Of what a run of its kind cannot have,
such as the accuracy of a language model, nothing is said."""

from __future__ import annotations

from workbench.core import algorithms
from workbench.core.config import TrainSpec
from workbench.report.figures import ReportFigure
from workbench.report.run_data import RunData

#: figures by the data that they need: see ``plots``
_BETWEEN_RANKS = frozenset({"traffic", "bandwidth", "exposed", "lag"})
_BETWEEN_REPLICAS = frozenset({"cosine", "noise"})
_OF_EVALUATIONS = frozenset({"validation", "metrics", "confusion"})
_OF_FULL_STATISTICS = frozenset({"histogram", "update_ratio", *_BETWEEN_REPLICAS})
_OF_REDUCED_GRADIENTS = frozenset({"gradients", *_BETWEEN_REPLICAS})
_OF_THE_MONITOR = ("ranks", "gradients", "communication", "timeline")


def why_missing(run: RunData, figure: ReportFigure) -> str:
    """A sentence that says why the run has no data for ``figure``; "" if nothing has to be said.

    Nothing is said of a run without steps either, as one of its notes says so.
    """
    if not run.store.table("steps")["step"].size or not _can_have(run, figure.name):
        return ""
    by_option = _of_algorithm(run.spec, figure) or _switched_off(run.spec, figure) if run.spec else ""
    of_its_own = "" if figure.tab in _OF_THE_MONITOR else figure.empty_text
    return by_option or of_its_own or "The run logged no data."


def _can_have(run: RunData, name: str) -> bool:
    """Whether a run of this kind, with any monitoring, has data for a figure."""
    if name in _BETWEEN_RANKS:
        return run.mesh.world_size > 1
    if name in _BETWEEN_REPLICAS:
        scopes = set(run.store.table("gradients")["scope"].tolist())
        return run.mesh.dp > 1 and scopes != {"reduced"}  # some plans never show a rank's own gradient
    if name in _OF_EVALUATIONS:  # of a classifier; a recipe that was never evaluated may be one
        return bool(run.spec and run.spec.recipe and not run.spec.eval_every)
    return True


def _of_algorithm(spec: TrainSpec, figure: ReportFigure) -> str:
    """What there is not under the communication algorithm; "" if it is not that."""
    if figure.name not in _OF_REDUCED_GRADIENTS or not algorithms.is_local(spec.plan.algorithm):
        return ""
    return f"Ranks stepped by themselves ({spec.plan.algorithm}): no gradient was averaged over them."


def _switched_off(spec: TrainSpec, figure: ReportFigure) -> str:
    """The option without which the run would have had the data; "" if there is none."""
    monitor = spec.monitor
    if figure.name in _OF_EVALUATIONS:
        return "The run has no evaluations: train with --eval-every N."
    if figure.tab not in _OF_THE_MONITOR:
        return ""
    if monitor.level == "off":
        return "Nothing was monitored: train without --monitor off."
    if figure.tab == "gradients" and monitor.grad_every == 0:
        return "No gradient statistics were taken: train without --grad-every 0."
    if figure.name in _OF_FULL_STATISTICS and monitor.level != "full":
        return "No full gradient statistics were taken: train with --monitor full."
    return ""
