"""What FSDP2 cannot shard right, refused before the first step."""

from __future__ import annotations

from workbench.core.config import TrainSpec
from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch.tensor_parallel.plan import TensorPlan, plan_of
from workbench.engine.frameworks.torch_common.gradient_hooks import check_hooks
from workbench.engine.frameworks.torch_common.optimizer_checks import check_parts
from workbench.engine.frameworks.torch_common.trained import trained
from workbench.errors import ConfigError

_INSTEAD = "use --plugin ddp"


def check(spec: TrainSpec, workload: Workload) -> None:
    """Raise ``ConfigError`` for a model or an optimizer that would train another model, or none, when it is sharded."""
    module = trained(workload)
    dtypes: set[str] = set()
    for name, parameter in module.named_parameters():
        named = users_name(name)
        dtypes.add(str(parameter.dtype).removeprefix("torch."))
        if not parameter.dim():
            raise ConfigError(
                f"{named} is a single number, which --plugin fsdp cannot shard: make it a tensor of one element, "
                f"torch.nn.Parameter(torch.zeros(1)), or {_INSTEAD}",
                field="model",
            )
        if parameter.is_complex():
            raise ConfigError(f"{named} is complex, which --plugin fsdp cannot reduce: {_INSTEAD}", field="model")
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:  # type: ignore[attr-defined]
            raise ConfigError(
                f"{named} has a gradient hook, which --plugin fsdp cannot call with the whole gradient: {_INSTEAD}",
                field="model",
            )
    if len(dtypes) > 1:
        raise ConfigError(
            f"parameters have the types {', '.join(sorted(dtypes))}, and --plugin fsdp gathers and reduces one type "
            f"only: convert the model with model.float(), or {_INSTEAD}",
            field="model",
        )
    for name, layer in module.named_modules():
        if getattr(layer, "sparse", False) is True:
            raise ConfigError(
                f"{users_name(name)} has sparse gradients, which --plugin fsdp cannot reduce: leave out sparse=True, "
                f"or {_INSTEAD}",
                field="model",
            )
    if spec.plan.tp > 1:
        tensor_plan(spec, workload)
    check_hooks(spec, module, workload.optimizer, has_copies=True)
    check_parts(workload.optimizer, "fsdp", tp=spec.plan.tp, pp=1, has_slices=spec.plan.mesh.dp > 1)


def tensor_plan(spec: TrainSpec, workload: Workload) -> TensorPlan:
    """How tensor parallelism cuts the model: by the cell's ``tp_plan``, or as its family is known to be cut."""
    return plan_of(workload.model, spec.plan.tp, workload.names.get("tp_plan"))
