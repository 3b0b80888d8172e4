"""Cases of models that ranks split, compared with one process. The ranks run ``tests.engine.split_ranks``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.engine.rank_pool import RankPool

RANKS = "tests.engine.split_ranks"


def compare(pool: RankPool, cases: Sequence[Any], options: dict[str, Any], *, ranks: int = 2, rtol: float) -> None:
    """Each case trains under the plan of ``options`` as in one process: losses and norms differ by ``rtol`` at most."""
    right = pool.run(1, f"{RANKS}:plain", cases=cases)[0]
    found = pool.run(ranks, f"{RANKS}:train", cases=cases, options=options)[0]
    for case, one, several in zip(cases, right, found, strict=True):
        assert not isinstance(several, str), (case, several)
        np.testing.assert_allclose(several, one, rtol=rtol, err_msg=str(case))
