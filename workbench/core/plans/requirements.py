"""What a run needs of its plan, and whether the plan's plugin can do it."""

from __future__ import annotations

from workbench.core import algorithms, network
from workbench.core.config import TrainSpec
from workbench.core.frameworks import Capability, Feature, framework
from workbench.core.rules.values import check


def check_capabilities(spec: TrainSpec) -> None:
    """Raise ``ConfigError``, with the reason, when the plan's plugin lacks a capability that the spec needs, or when
    there is no such algorithm."""
    if spec.plan.algorithm and algorithms.chosen(spec.plan.algorithm).is_local:
        _check_local(spec)
    _check_network(spec)
    for asked, flag, capability in (
        (bool(spec.clip), "--clip", Capability.NORMED),
        (bool(spec.save_every), "--save-every", Capability.CHECKPOINTABLE),
        (bool(spec.snapshot_every), "--snapshot-every", Capability.CHECKPOINTABLE),
        (bool(spec.save_best), "--save-best", Capability.CHECKPOINTABLE),
        (bool(spec.save_best), "--save-best", Capability.EVALUATING),
        (bool(spec.resume), "--resume", Capability.CHECKPOINTABLE),
        (bool(spec.monitor.grad_every), "--grad-every", Capability.WATCHABLE),
        (bool(spec.monitor.grad_layers), "--grad-layers", Capability.WATCHABLE),
        (bool(spec.monitor.watch), "--watch", Capability.INSPECTABLE),
        (spec.plan.pp > 1, "--pp", Capability.PIPELINED),
        (True, "--precision", Feature(spec.precision)),
        (spec.accumulate > 1, "--accumulate", Feature.ACCUMULATED),
    ):
        reason = spec.plan.why_unavailable(capability) if asked else ""
        check(not reason, flag, f"{flag}: {reason}; leave it out, or choose another --plugin or --framework")


def _check_local(spec: TrainSpec) -> None:
    """Refuse what makes ranks that step by themselves wait for each other in every step, or part for good."""
    flag = f"--algorithm {spec.plan.algorithm} lets ranks step by themselves"
    check(
        spec.precision != "fp16",
        "--precision",
        f"--precision fp16: {flag}, and each would skip other steps as its own gradients overflow: use bf16",
    )
    check(
        not spec.plan.sync_batchnorm,
        "--sync-batchnorm",
        f"--sync-batchnorm: {flag}, and their batch normalisation would wait for all ranks in every step: leave out "
        "one of them (running statistics are averaged with the weights)",
    )


def _check_network(spec: TrainSpec) -> None:
    """Refuse a network that cannot be emulated for the plan."""
    if not spec.network:
        return
    plan = spec.plan
    is_able = "algorithm" in framework(plan.framework).plugin(plan.plugin).options
    check(
        is_able,
        "--network",
        f"--network emulates the messages of --plugin ddp (torch, colossal), not those of {plan.framework} "
        f"{plan.plugin}: leave one of them out",
    )
    check(plan.mesh.dp > 1, "--network", "--network: one rank sends no messages: pass -n 2, or leave it out")
    asked = network.read(spec.network)
    missing = [rank for rank in asked.stragglers if rank >= plan.ranks]
    check(not missing, "--network", f"--network {spec.network}: there is no rank {missing}, of {plan.ranks} ranks")
