import numpy as np
import pytest

from workbench.core.mesh import AXES, Mesh


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 2), (2, 3, 1, 4), (4, 1, 1, 1), (2, 1, 3, 1)])
def test_coordinates_are_numpys_unravelled_index(shape: tuple[int, int, int, int]) -> None:
    mesh = Mesh(**dict(zip(AXES, shape, strict=True)))
    for rank in range(mesh.world_size):
        here = mesh.coordinates(rank)
        assert (here.dp, here.pp, here.cp, here.tp) == tuple(np.unravel_index(rank, shape))
        assert mesh.rank(dp=here.dp, pp=here.pp, cp=here.cp, tp=here.tp) == rank
        assert rank == (here.dp * mesh.pp + here.pp) * mesh.peers + mesh.peer(here)
        assert here.leads == (mesh.peer(here) == 0)


def test_a_rank_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="outside a mesh of 2"):
        Mesh(dp=2).coordinates(2)
    with pytest.raises(ValueError, match="at least 1"):
        Mesh(tp=0)
