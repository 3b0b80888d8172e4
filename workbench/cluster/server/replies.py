"""A rank replies to every cell and call, whatever these did to its output or put into their texts.

Without its reply a rank would be busy for good: ipykernel sends none where a stream cannot be flushed, or where a text
has characters that UTF-8 does not. The reply also says where a cell failed because a collective was broken.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable
from typing import Any

from workbench.core.live import current_cell
from workbench.errors import CollectiveReleasedError

_STREAMS = ("stdout", "stderr")
_RELEASED = CollectiveReleasedError.__name__
#: what torch raises in a rank whose collective was broken
_BROKEN = ("RuntimeError", "DistBackendError", "DistNetworkError")


def encodable(value: Any) -> Any:
    """Returns ``value`` (a message: dicts, lists, texts) with escapes in place of what UTF-8 cannot encode."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {encodable(key): encodable(each) for key, each in value.items()}
        case list() | tuple():
            return [encodable(each) for each in value]
    return value


def packing(pack: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Returns ``pack``, which turns a message into bytes, for messages with texts that UTF-8 cannot encode, too."""

    def packed(message: Any) -> bytes:
        try:
            return pack(message)
        except UnicodeEncodeError:
            return pack(encodable(message))

    return packed


def explained(reply: dict[str, Any]) -> dict[str, Any]:
    """Returns the reply of a cell; of one whose collective was broken, with the reason in place of torch's words."""
    why = current_cell.why_broken()
    if not why or reply["status"] != "error" or reply["ename"] not in _BROKEN:
        return reply
    text = f"{why}; this rank was released from a collective"
    return {
        **reply,
        "ename": _RELEASED,
        "evalue": text,
        "traceback": [*reply["traceback"], f"{_RELEASED}: {text}"],
    }


class Streams:
    """The streams of a rank, which it takes back when a cell left others in their place that cannot be flushed."""

    def __init__(self) -> None:
        self._own: dict[str, Any] = {}

    def keep(self) -> None:
        """Keeps those that the rank began with, before the first cell; what closes them has no effect from then on."""
        if not self._own:
            self._own = {name: getattr(sys, name) for name in _STREAMS}
            for stream in self._own.values():
                stream.close = lambda: None  # the rank could print nothing any more

    def mend(self) -> None:
        """Flushes both streams; takes the rank's own in place of one that raises or was closed, and says so."""
        for name, own in self._own.items():
            try:
                stream = getattr(sys, name)
                stream.flush()
                if getattr(stream, "closed", False):
                    raise ValueError("I/O operation on closed file")
            except Exception as error:  # of a class of the user's
                setattr(sys, name, own)
                what = f"{type(error).__name__}: {error}"
                print(f"sys.{name} is that of the rank again: the one in its place fails ({what})", file=sys.stderr)


def _failed(kernel: Any, error: BaseException) -> dict[str, Any]:
    """Returns the reply of a cell that the kernel could not run."""
    return {
        "status": "error",
        "ename": type(error).__name__,
        "evalue": f"{error} (the kernel of this rank failed; it goes on)",
        "traceback": traceback.format_exception(error),
        "engine_info": kernel.get_engine_info(method="execute"),
    }


def load_ipython_extension(shell: Any) -> None:
    """Lets the kernel of this rank reply to everything."""
    kernel, streams = shell.kernel, Streams()
    kernel.session.pack = packing(kernel.session.pack)
    execute, apply = kernel.do_execute, kernel.do_apply

    async def do_execute(*args: Any, **options: Any) -> Any:
        streams.keep()
        try:
            reply = await execute(*args, **options)
        except (Exception, asyncio.CancelledError) as error:  # of the kernel itself, which would send no reply
            reply = _failed(kernel, error)
        streams.mend()
        return explained(reply)

    def do_apply(*args: Any) -> Any:
        streams.keep()
        reply = apply(*args)
        streams.mend()
        return reply

    kernel.do_execute, kernel.do_apply = do_execute, do_apply
    shell.ask_exit = lambda: print("exit ends no rank: %dist_down does, in the notebook", file=sys.stderr)
