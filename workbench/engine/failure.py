"""What a rank's failure looks like to others: the value of its event, with the traceback of the user's own code."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import torch.distributed as dist

from workbench.core.live import post_mortem, rank_row
from workbench.engine import collectives
from workbench.engine.agree.shared_slots import PeerLostError
from workbench.engine.share.share import ShareFailed
from workbench.errors import CollectiveReleasedError, WorkbenchError
from workbench.events.outcome import failure


class PeerFailed(RuntimeError):
    """Another rank could not set up its part, so this one does not start."""


#: errors that tell of another rank's failure
_OF_PEERS = (PeerFailed, PeerLostError, ShareFailed, CollectiveReleasedError, dist.DistError, KeyboardInterrupt)


def noted_failure(error: BaseException, cell: Path) -> dict[str, Any]:
    """As ``failure_of``. From now on this rank counts as failing, and a debugger finds the error."""
    rank_row.note_failing()
    post_mortem.keep(error)
    return failure_of(error, cell)


def failure_of(error: BaseException, cell: Path) -> dict[str, Any]:
    """The value of the event ``state failed``. ``cell``: the file of the user's cell.

    A failure that only follows from that of another rank is marked so; an interrupt is one of these, as the process
    that waits sends it.
    """
    is_peers = isinstance(error, _OF_PEERS)
    text = "; ".join(filter(None, [str(error), *getattr(error, "__notes__", ())]))
    return failure(type(error).__name__, text, _traceback_of_user(error, cell), peer=is_peers)


#: the code between the user's line and a collective, which says nothing
_RECORDING = f"{Path(collectives.__file__).parent}{os.sep}"


def _traceback_of_user(error: BaseException, cell: Path) -> str:
    """The traceback as text, from the first frame of the cell on when the cell raised; none for an error of ours that
    it has no part in, whose message says what to change."""
    entries = traceback.TracebackException.from_exception(error)
    frames = [frame for frame in entries.stack if not frame.filename.startswith(_RECORDING)]
    own = [index for index, frame in enumerate(frames) if frame.filename == str(cell)]
    if own:
        entries.stack = traceback.StackSummary.from_list(frames[own[0] :])
    elif isinstance(error, WorkbenchError):
        return ""
    return "".join(entries.format())
