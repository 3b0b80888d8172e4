"""What a push is said to cost: the bytes of arrays, however they are held."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from magics.push_size import bytes_of, warn_of_copies


def test_bytes_of_arrays_tables_and_containers() -> None:
    array = np.zeros(1000)
    assert bytes_of(array) == bytes_of(torch.zeros(1000, dtype=torch.float64)) == 8000
    assert bytes_of({"x": [array, array], "y": (array,)}) == 24000
    assert bytes_of(pd.DataFrame({"x": array})) >= 8000
    assert bytes_of(torch.utils.data.TensorDataset(torch.zeros(10), torch.zeros(10))) == 80
    assert 0 < bytes_of("text") < 200


def test_only_a_large_push_is_warned_of() -> None:
    large = np.lib.stride_tricks.as_strided(np.zeros(1), (500_000_000 // 8,), (0,))  # no memory is used
    assert warn_of_copies({"x": np.zeros(1000)}, 64) == ""
    told = warn_of_copies({"n": 3, "x": large}, 2)
    assert "500 MB are sent through the kernel to each of 2 ranks, which keep 1,000 MB together" in told
    assert "x = share(lambda: ...)" in told
