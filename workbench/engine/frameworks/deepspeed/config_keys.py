"""The keys of DeepSpeed's configuration (0.19): which its engine is given, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

#: kind of a value -> the Python types that it may have, and its name in messages
KINDS: Mapping[str, tuple[tuple[type, ...], str]] = MappingProxyType(
    {
        "switch": ((bool,), "true or false"),
        "count": ((int, float), "a whole number of at least 0"),
        "size": ((int, float), "a whole number of at least 1"),
        "number": ((int, float), "a number of at least 0"),
        "dtype": ((str,), "fp32, fp16 or bf16"),
        "text": ((str,), "a string"),
        "section": ((dict,), "an object"),
    }
)
DTYPES = ("fp32", "fp16", "bf16")

#: keys that stand for an option of a run -> kind
TRANSLATED: Mapping[str, str] = MappingProxyType(
    {
        "train_batch_size": "count",
        "train_micro_batch_size_per_gpu": "count",
        "gradient_accumulation_steps": "count",
        "gradient_clipping": "number",
        "zero_optimization.stage": "count",
        "zero_optimization.offload_optimizer.device": "text",
        "fp16.enabled": "switch",
        "bf16.enabled": "switch",
        "optimizer.params.lr": "number",
    }
)
#: keys that the engine is given as they are -> kind
PASSED: Mapping[str, str] = MappingProxyType(
    {
        "communication_data_type": "dtype",
        "zero_optimization.contiguous_gradients": "switch",
        "zero_optimization.reduce_scatter": "switch",
        "zero_optimization.reduce_bucket_size": "size",
        "zero_optimization.use_multi_rank_bucket_allreduce": "switch",
        "zero_optimization.allgather_partitions": "switch",
        "zero_optimization.allgather_bucket_size": "size",
        "zero_optimization.overlap_comm": "switch",
        "zero_optimization.round_robin_gradients": "switch",
        "zero_optimization.sub_group_size": "count",
        "zero_optimization.stage3_prefetch_bucket_size": "count",
        "zero_optimization.stage3_param_persistence_threshold": "count",
        "zero_optimization.stage3_model_persistence_threshold": "count",
        "zero_optimization.stage3_max_live_parameters": "count",
        "zero_optimization.stage3_max_reuse_distance": "count",
        "zero_optimization.stage3_use_all_reduce_for_fetch_params": "switch",
        "zero_optimization.stage3_allgather_sequential": "switch",
        "zero_optimization.offload_optimizer.pin_memory": "switch",
        "zero_optimization.offload_optimizer.buffer_count": "count",
        "fp16.loss_scale": "number",
        "fp16.initial_scale_power": "count",
        "fp16.loss_scale_window": "size",
        "fp16.hysteresis": "size",
        "fp16.consecutive_hysteresis": "switch",
        "fp16.min_loss_scale": "size",
        "bf16.check_grad_overflow": "switch",
    }
)
#: keys whose value has to be that of the optimizer that the cell or the recipe makes
OF_OPTIMIZER = ("optimizer.type", "optimizer.params")
_WEIGHTS_ARE_CHECKPOINTS = "checkpoints are written whole or in shards by this program (--save-every)"
_PHASES = "the log has the phases of each step (%dist_report)"
#: keys that change nothing of a training -> why the engine is not given them
UNUSED: Mapping[str, str] = MappingProxyType(
    {
        "steps_per_print": "the log has every step",
        "wall_clock_breakdown": _PHASES,
        "memory_breakdown": "the log has each rank's memory",
        "dump_state": "ds_config.json of the run directory has the configuration",
        "log_level": "ranks log warnings",
        "dataloader_drop_last": "batches are the trainer's (--batch-size)",
        "zero_allow_untested_optimizer": "the cell's optimizer is always allowed",
        "checkpoint": _WEIGHTS_ARE_CHECKPOINTS,
        "zero_optimization.load_from_fp32_weights": _WEIGHTS_ARE_CHECKPOINTS,
        "zero_optimization.elastic_checkpoint": _WEIGHTS_ARE_CHECKPOINTS,
        "zero_optimization.stage3_gather_16bit_weights_on_model_save": _WEIGHTS_ARE_CHECKPOINTS,
        "zero_optimization.stage3_gather_fp16_weights_on_model_save": _WEIGHTS_ARE_CHECKPOINTS,
        "zero_optimization.ignore_unused_parameters": "a step may leave parameters unused; they are left as they are",
        "zero_optimization.log_trace_cache_warnings": "ranks log warnings",
    }
)
_NVME = "weights and states on NVMe need DeepSpeed's aio extension, which is not built here"
_TRACKER = "what a run records is written by 'workbench export'"
_OWN_DATA = "samples are those of the cell's dataset, in an order that all frameworks share"
_QUANTIZED = "quantised weights and gradients would not be those that are shown and compared with one process"
_MODULES = "weights are gathered module by module"
#: keys that would change a training, and cannot be had -> why
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "scheduler": "the learning rate is followed and changed here: define lr_scheduler in the cell",
        "amp": "Apex is not used: write bf16 or fp16",
        "torch_autocast": "the engine casts the model: write bf16 or fp16",
        "activation_checkpointing": "the cell asks its model: model.gradient_checkpointing_enable()",
        "sparse_attention": "the cell's model has its own attention",
        "sparse_gradients": "gradients of ZeRO are dense",
        "compression_training": _QUANTIZED,
        "weight_quantization": _QUANTIZED,
        "quantize_training": _QUANTIZED,
        "data_efficiency": _OWN_DATA,
        "curriculum_learning": _OWN_DATA,
        "data_types": "gradients are accumulated in the type that the engine chooses for the precision",
        "progressive_layer_drop": "it leaves out layers, so that losses are not those of one process",
        "eigenvalue": "it is for quantised training",
        "elasticity": "the number of ranks is that of -n",
        "autotuning": "it starts trainings of its own: compare plans with %dist_plans --try",
        "aio": _NVME,
        "hybrid_engine": "it is for generating text between steps of reinforcement learning",
        "tensor_parallel": "use --framework torch or colossal with --tp",
        "expert_parallel": "no plan here puts experts on different ranks",
        "sequence_parallel_size": "use --framework colossal with --sequence-parallel",
        "seq_parallel_communication_data_type": "use --framework colossal with --sequence-parallel",
        "use_data_before_expert_parallel": "no plan here puts experts on different ranks",
        "pipeline": "use --framework torch or colossal with --pp",
        "compile": "DeepSpeed's compiler was not tried here",
        "prescale_gradients": "DeepSpeed's ZeRO has no prescaling where gradients are scattered",
        "gradient_predivide_factor": "DeepSpeed's ZeRO has none where gradients are scattered",
        "gradient_allreduce_op": "gradients are averages over the ranks",
        "managed_gradient_accumulation": "the trainer tells the engine which piece is the last one",
        "disable_allgather": "weights that were updated on one rank have to reach the others",
        "disable_python_gc": "the trainer leaves the garbage collector to the cell",
        "zero_force_ds_cpu_optimizer": "the optimizer is the cell's, also with offload",
        "comms_logger": "the log has each collective (run.collectives())",
        "flops_profiler": "the log has FLOP/s of each step",
        "tensorboard": _TRACKER,
        "wandb": _TRACKER,
        "csv_monitor": _TRACKER,
        "comet": _TRACKER,
        "monitor_config": _TRACKER,
        "nebula": _WEIGHTS_ARE_CHECKPOINTS,
        "datastates_ckpt": _WEIGHTS_ARE_CHECKPOINTS,
        "timers": _PHASES,
        "optimizer.legacy_fusion": "the optimizer is the cell's",
        "fp16.auto_cast": "inputs are cast by the trainer",
        "fp16.fp16_master_weights_and_grads": "weights are updated and written in fp32",
        "bf16.bf16_master_weights_and_grads": "weights are updated and written in fp32",
        "bf16.bf16_optimizer_states": "states are kept and written in fp32",
        "bf16.immediate_grad_update": "it is for a bf16 optimizer without ZeRO",
        "zero_optimization.offload_param": "weights stay where they compute; offload_optimizer moves states",
        "zero_optimization.cpu_offload": 'it is an old name: write "offload_optimizer": {"device": "cpu"}',
        "zero_optimization.cpu_offload_param": "weights stay where they compute",
        "zero_optimization.stage3_module_granularity_threshold": _MODULES,
        "zero_optimization.leaf_module": _MODULES,
        "zero_optimization.memory_efficient_linear": "the cell's model keeps its own linear layers",
        "zero_optimization.override_module_apply": "the cell has made its model before DeepSpeed sees it",
        "zero_optimization.enable_sanity_checks": "they refuse what a checkpoint writes into weights",
        "zero_optimization.cpu_offload_use_pin_memory": "it is an old name: write offload_optimizer.pin_memory",
        "zero_optimization.compute_grad_norm": "clipping and the figures need the norm",
        "zero_optimization.legacy_stage1": "DeepSpeed has no other stage 1 any more",
        "zero_optimization.parameter_alignment": "it is for Adam kernels of GPUs",
        "zero_optimization.zenflow": "it updates weights steps later, so that losses are not those of one process",
        "zero_optimization.zero_hpz_partition_size": "shards within a host are --framework torch --replicate",
        "zero_optimization.zero_quantized_weights": _QUANTIZED,
        "zero_optimization.zero_quantized_nontrainable_weights": _QUANTIZED,
        "zero_optimization.zero_quantized_gradients": _QUANTIZED,
        "zero_optimization.mics_shard_size": "shards within a group are --framework torch --replicate",
        "zero_optimization.mics_hierarchical_params_gather": "shards within a group are --framework torch --replicate",
        "zero_optimization.pipeline_loading_checkpoint": _WEIGHTS_ARE_CHECKPOINTS,
        "zero_optimization.save_muon_momentum_buffer_in_memory": "the optimizer is the cell's",
        "zero_optimization.offload_optimizer.nvme_path": _NVME,
        "zero_optimization.offload_optimizer.pipeline_read": _NVME,
        "zero_optimization.offload_optimizer.pipeline_write": _NVME,
        "zero_optimization.offload_optimizer.fast_init": _NVME,
        "zero_optimization.offload_optimizer.ratio": "all of the optimizer's state is offloaded, or none",
        "zero_optimization.offload_optimizer.super_offload": "it needs DeepSpeed's Adam for processors",
        "zero_optimization.offload_optimizer.cpuadam_cores_perc": "it needs DeepSpeed's Adam for processors",
    }
)
#: old names of sections -> their names now
RENAMED: Mapping[str, str] = MappingProxyType({"bfloat16": "bf16"})
_ALL = (*TRANSLATED, *PASSED, *OF_OPTIMIZER, *UNUSED, *REFUSED)
#: objects that hold keys of these tables
SECTIONS = frozenset(key.rsplit(".", 1)[0] for key in _ALL if "." in key) - {"optimizer.params"}


def known_in(section: str) -> list[str]:
    """The names that a section ("": the top of the file) knows."""
    depth = section.count(".") + 1 if section else 0
    inside = [key for key in (*_ALL, *SECTIONS) if not section or key.startswith(f"{section}.")]
    return sorted({key.split(".")[depth] for key in inside})


def is_off(value: Any) -> bool:
    """Whether a value asks for nothing: null, false, or a section whose ``enabled`` is false."""
    return value is None or value is False or value == {} or (isinstance(value, dict) and value.get("enabled") is False)
