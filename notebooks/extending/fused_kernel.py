# A cell of Python, or %run: torch.compile fuses a gate into one kernel. On processors it writes C++, on GPUs Triton.
# A %%dist_train cell uses it in the forward pass of its model as any other function.

import torch
from torch.utils.benchmark import Timer

ROWS, WIDTH = 512, 1024


def gated(x, gate, bias, eps=1e-6):
    """RMS norm of ``x`` ``[rows, width]``, times SiLU of ``gate`` plus ``bias``: seven passes over memory if eager."""
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return normed * torch.nn.functional.silu(gate + bias)


fused = torch.compile(gated, fullgraph=True)


def with_gradients(function, *values):
    """What ``function`` returns, and the gradients of the sum of its square."""
    inputs = [value.clone().requires_grad_() for value in values]
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), inputs)]


def largest_difference(function, reference, *values):
    """Of outputs and gradients in float32 from those of ``reference`` in float64, relative to the largest of each."""
    expected = with_gradients(reference, *(value.double() for value in values))
    pairs = zip(with_gradients(function, *values), expected, strict=True)
    return max(((found - true).abs().max() / true.abs().max()).item() for found, true in pairs)


def milliseconds(function, *values):
    """The median of the time that a forward and backward pass takes."""
    timer = Timer("run(function, *values)", globals={"run": with_gradients, "function": function, "values": values})
    return timer.blocked_autorange(min_run_time=0.5).median * 1e3


torch.manual_seed(0)
values = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH), torch.randn(WIDTH)
for name, function in {"eager": gated, "fused": fused}.items():
    difference, time = largest_difference(function, gated, *values), milliseconds(function, *values)
    print(f"{name}: {difference:.1e} from float64, {time:.2f} ms")
