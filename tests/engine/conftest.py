"""One pool of warm ranks for all tests of the engine, and the plain loop that they are compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.engine.rank_pool import RankPool


@pytest.fixture(scope="package")
def pool() -> Iterator[RankPool]:
    with RankPool() as started:
        yield started


@pytest.fixture(scope="module")
def run_in_kept_ranks(pool: RankPool, request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """``pool.run`` in ranks that are kept for the tests of the module: for functions that leave a process as it was."""
    return functools.partial(pool.run, kept_for=request.module.__name__)


@pytest.fixture(scope="package")
def torch_pool() -> Iterator[RankPool]:
    """Ranks whose warm process knows plain torch only."""
    with RankPool("torch") as started:
        yield started


@pytest.fixture(scope="package")
def plain_loop(pool: RankPool) -> Callable[..., dict[str, Any]]:
    """``plain_loop(model, **options)``: losses and gradient norms of one process without any framework."""

    @functools.cache
    def run(model: str, **options: Any) -> dict[str, Any]:
        return pool.run(1, "tests.engine.plain:train", kept_for="plain loops", model=model, **options)[0]

    return run
