"""A run starts from torch's defaults, whatever was left behind, and gives back what it found."""

from __future__ import annotations

import torch

from workbench.engine.frameworks.torch_common.torch_settings import torch_defaults


def test_a_run_starts_from_the_defaults_and_gives_back_what_it_found() -> None:
    with torch_defaults():
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.autograd.set_detect_anomaly(True)
        torch.set_float32_matmul_precision("medium")
        torch.set_autocast_enabled("cpu", True)
        torch.set_default_device("meta")
        with torch_defaults() as changed:
            made = torch.ones(2, requires_grad=True) @ torch.ones(2)
            assert (made.dtype, made.requires_grad, made.device.type) == (torch.float32, True, "cpu")
            assert not torch.are_deterministic_algorithms_enabled() and not torch.is_anomaly_enabled()
            assert torch.get_float32_matmul_precision() == "highest" and not torch.is_autocast_enabled("cpu")
            torch.set_default_dtype(torch.bfloat16)  # the run's own setting ends with it
        for name in (
            "default dtype",
            "default device",
            "gradient mode",
            "deterministic",
            "anomaly",
            "matmul",
            "autocast",
        ):
            assert name in changed
        assert "threads" not in changed
        assert torch.get_default_dtype() == torch.float64 and torch.get_default_device().type == "meta"
        assert not torch.is_grad_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_anomaly_enabled() and torch.is_autocast_enabled("cpu")
    with torch_defaults() as changed:
        assert changed == ""
