"""Groups of cells: each has a name of its own."""

from __future__ import annotations

import re
from pathlib import Path

from workbench.cluster.cell_group import CellGroup


def test_sessions_that_share_a_directory_never_make_groups_of_the_same_name(tmp_path: Path) -> None:
    """Ranks that were killed leave the file by which they met: those of the next session must not read it."""
    codes: list[str] = []
    for _ in range(2):
        group = CellGroup(tmp_path)
        for _ in range(2):
            group.make(2, lambda submission: codes.append(submission.code))
            group.mark_left()
    names = [re.findall(r"cells-\d+", code) for code in codes]
    assert len({name for (name,) in names}) == 4
