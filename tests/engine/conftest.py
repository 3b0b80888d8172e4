"""One pool of warm ranks for all tests of the engine, and the plain loop that they are compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.engine.rank_pool import RankPool, RankPools


@pytest.fixture(scope="package")
def pool() -> Iterator[RankPool]:
    with RankPools() as started:
        yield started


@pytest.fixture(scope="module")
def run_kept(pool: RankPool, request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """``pool.run`` in ranks that are kept for the tests of the module: for functions that leave a process as it was."""
    return functools.partial(pool.run, kept_for=request.module.__name__)


@pytest.fixture(scope="package")
def torch_pool() -> Iterator[RankPool]:
    """Ranks whose warm process knows plain torch only."""
    with RankPool("torch") as started:
        yield started


@pytest.fixture(scope="package")
def run_alone(pool: RankPool) -> Callable[..., Any]:
    """What a function returns in one process, which trains nothing but plain loops; each call is made once."""

    @functools.cache
    def run(function: str, **arguments: Any) -> Any:
        return pool.run(1, function, kept_for="plain loops", **arguments)[0]

    return run


@pytest.fixture(scope="package")
def plain_loop(run_alone: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """``plain_loop(model, **options)``: losses and gradient norms of one process without any framework."""
    return lambda model, **options: run_alone("tests.engine.plain:train", model=model, **options)
