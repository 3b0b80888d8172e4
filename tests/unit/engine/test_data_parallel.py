"""What plain data parallelism does not average is refused with the reason, before the first step."""

from __future__ import annotations

import pytest
import torch

from workbench.engine.frameworks.torch.data_parallel import check_dense
from workbench.errors import ConfigError


def test_sparse_gradients_and_complex_weights_are_refused() -> None:
    check_dense(torch.nn.Sequential(torch.nn.Embedding(4, 2), torch.nn.Linear(2, 2)), "mpi")
    with pytest.raises(ConfigError, match="1 has sparse gradients, which --framework mpi does not average"):
        check_dense(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Embedding(4, 2, sparse=True)), "mpi")
    with pytest.raises(ConfigError, match=r"weight has complex numbers, which --framework mpi"):
        check_dense(torch.nn.Linear(2, 2, dtype=torch.complex64), "mpi")
