"""The prompt of the debugger: commands that are typed in the notebook's cell or a terminal go to ranks."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from workbench.cluster.base.calls import call_in_ranks
from workbench.cluster.base.protocol import CallInRanks
from workbench.cluster.debugger import on_rank
from workbench.cluster.debugger.channel import GO_ON, Lines, prompt_path
from workbench.cluster.hosts.placement import parse_ranks
from workbench.core.live.collective_row import read_live
from workbench.errors import ConfigError, format_ranks

#: seconds that a rank has to answer a command until others may be asked, and less where it waits for another
_ANSWER_S, _WAITING_S = 5.0, 0.5
_PASS_OVER = f"{on_rank.__name__}:{on_rank.pass_over.__name__}"
_CHOICE = re.compile(r"@\s*(all|[\d,\-]*)\s*(.*)", re.DOTALL)
_HELP = (
    "commands of pdb: n next line, s step into, c go on, w stack, p and pp print, l list, h all of them. "
    "@1 or @all choose whom they go to, '@1 w' asks one; Ctrl-C leaves"
)


def in_debugger(directory: Path, ranks: Iterable[int]) -> list[int]:
    """Returns the ranks that have stopped in the debugger. ``directory``: that of their rank server."""
    return [rank for rank in ranks if prompt_path(directory, rank).exists()]


class _Peer:
    """The connection to pdb on one rank. ``asks``: whether it waits for a command; ``text``: what it has printed."""

    def __init__(self, rank: int, path: Path) -> None:
        self.rank = rank
        self.asks = self.is_over = False
        self.place = self.text = ""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            raise
        self._lines = Lines(connection)

    def receive(self, timeout_s: float) -> None:
        """Waits for what the rank says next."""
        self._lines.connection.settimeout(max(timeout_s, 0.001))
        try:
            message = self._lines.next()
        except TimeoutError:
            return
        except OSError:
            message = None
        if message is None:
            self.is_over, self.asks = True, False
        else:
            self.text, self.place, self.asks = message["text"], message["place"], message["asks"]
            self.is_over = not self.asks

    def send(self, **message: str) -> None:
        self.asks, self.text = False, ""
        with suppress(OSError):  # it has died, which is seen by what is received
            self._lines.send(**message)

    def close(self) -> None:
        self._lines.connection.close()


class Dialogue:
    """Talks to those of ``ranks`` that stop in the debugger; ``directory``: that of their rank server.

    ``ask(prompt)`` returns a line that is typed (default: ``input``); ``say(text)`` shows a text.
    """

    def __init__(
        self,
        directory: Path,
        ranks: Sequence[int],
        *,
        ask: Callable[[str], str] | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        self._directory, self._ranks = directory, ranks
        self._ask, self._say = ask or _typed, say
        self._peers: dict[int, _Peer] = {}
        self._told: set[int] = set()  # ranks of which it was said that they do not answer
        self._selected: list[int] | None = None  # None: all
        self._was_helped = self._passes_over = False

    def is_due(self) -> bool:
        """Whether there is a rank to talk to."""
        return bool(self._peers or in_debugger(self._directory, self._ranks))

    def talk(self) -> None:
        """Asks for commands as long as a rank stands at its prompt.

        Where nothing can be typed, the ranks go on. On Ctrl-C, ``KeyboardInterrupt`` is raised and the ranks stay:
        ``leave`` lets them go.
        """
        asked: list[int] = []
        if self._passes_over:  # a rank that stops all the same was told later than it came to its next breakpoint
            self.leave(GO_ON)
            return
        if not self._was_helped:
            self._wait_for_others()
        while True:
            self._meet()
            self._await(asked)
            standing = self._standing()
            self._show()
            if not standing:
                return
            chosen = [rank for rank in standing if self._selected is None or rank in self._selected]
            if not chosen:
                chosen, self._selected = standing, None
            if not self._was_helped:
                self._was_helped = True
                self._say(f"{_places(self._peers, standing)} ({_HELP})")
            try:
                line = self._ask(f"({format_ranks(chosen)}) ")
            except (EOFError, NotImplementedError):  # the second: front ends without input, as when nbconvert runs it
                self._say("no commands can be typed here, so ranks go on, and breakpoints of this cell are passed over")
                self.leave(GO_ON)
                return
            asked = self._take(line, chosen, standing)

    def leave(self, how: str) -> None:
        """Lets all ranks out of the debugger. ``how``: see ``channel``; where they go on, also those that run do."""
        if how == GO_ON:
            self._passes_over = True
            request = CallInRanks(ranks=list(self._ranks), function=_PASS_OVER)
            call_in_ranks(self._directory, request)  # one that has ended passes over nothing
        end = time.monotonic() + (_WAITING_S if how == GO_ON else 0.0)  # some may just have stopped
        while True:
            self._meet()
            for peer in self._peers.values():
                peer.send(leave=how)
            self.close()
            if time.monotonic() >= end:
                return
            time.sleep(0.02)

    def close(self) -> None:
        """Closes the connections; ranks that stand at a prompt stay there."""
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    def _standing(self) -> list[int]:
        return sorted(rank for rank, peer in self._peers.items() if peer.asks)

    def _meet(self) -> None:
        """Connects to ranks that have stopped since."""
        for rank in in_debugger(self._directory, self._ranks):
            if rank in self._peers:
                continue
            with suppress(OSError):  # it has just gone on, or died
                self._peers[rank] = _Peer(rank, prompt_path(self._directory, rank))

    def _wait_for_others(self) -> None:
        """Gives ranks that run the same code the time to come to the same line."""
        end = time.monotonic() + _WAITING_S
        while len(in_debugger(self._directory, self._ranks)) < len(self._ranks) and time.monotonic() < end:
            time.sleep(0.01)

    def _await(self, asked: Sequence[int]) -> None:
        """Waits for ranks that were given a command, and for the greeting of new ones."""
        began = time.monotonic()
        for peer in self._peers.values():
            if not peer.asks:
                peer.receive(0.0)
        pending = self._silent(rank for rank, peer in self._peers.items() if rank in asked or not peer.place)
        while pending and (waited := time.monotonic() - began) < _ANSWER_S:
            if waited > _WAITING_S and self._standing() and all(map(self._waits_for_another, pending)):
                break
            for rank in pending:
                self._peers[rank].receive(0.02)
            pending = self._silent(pending)
        standing = self._standing()
        for rank in pending:
            if not self._peers[rank].place:
                self._peers.pop(rank).close()
                if rank not in self._told:
                    self._say(f"rank {rank} does not answer: it computes, or somebody else talks to its debugger")
                self._told.add(rank)
            elif standing:
                why = ", in a collective that others have not entered" if self._waits_for_another(rank) else ""
                self._say(f"rank {rank} runs on{why}")

    def _silent(self, ranks: Iterable[int]) -> list[int]:
        return sorted(rank for rank in ranks if not (self._peers[rank].asks or self._peers[rank].is_over))

    def _waits_for_another(self, rank: int) -> bool:
        live = read_live(self._directory, rank)
        return live is not None and live.waiting

    def _show(self) -> None:
        """Shows what ranks have printed, equal texts once, and forgets those that have left."""
        texts: dict[str, list[int]] = {}
        for rank, peer in sorted(self._peers.items()):
            if peer.text:
                texts.setdefault(peer.text, []).append(rank)
                peer.text = ""
        for text, ranks in texts.items():
            heading = f"{format_ranks(ranks)}\n" if len(self._peers) > 1 else ""
            self._say(f"{heading}{text.rstrip()}")
        for rank in [rank for rank, peer in self._peers.items() if peer.is_over]:
            self._peers.pop(rank).close()

    def _take(self, line: str, chosen: Sequence[int], standing: Sequence[int]) -> list[int]:
        """Carries out a line that was typed; returns the ranks that were given a command."""
        choice = _CHOICE.fullmatch(line.strip())
        if choice is None:
            return self._send(line, chosen)
        ranks, command = choice.groups()
        if not ranks:
            self._say(_places(self._peers, standing))
            return []
        try:
            wanted = None if ranks == "all" else parse_ranks(ranks, max(self._ranks) + 1)
        except ConfigError as error:
            self._say(str(error))
            return []
        there = [rank for rank in standing if wanted is None or rank in wanted]
        missing = sorted(set(wanted or ()) - set(there))
        if missing:
            self._say(f"{format_ranks(missing)} {'is' if len(missing) == 1 else 'are'} not in the debugger")
        if command:
            return self._send(command, there)
        if there:
            self._selected = wanted
        return []

    def _send(self, line: str, ranks: Sequence[int]) -> list[int]:
        for rank in ranks:
            self._peers[rank].send(line=line)
        return list(ranks)


def _typed(prompt: str) -> str:
    return input(prompt)  # which a kernel replaces while a cell runs


def _places(peers: Mapping[int, _Peer], standing: Sequence[int]) -> str:
    """Where ranks stand, in words."""
    by_place: dict[str, list[int]] = {}
    for rank in standing:
        by_place.setdefault(peers[rank].place, []).append(rank)
    return "; ".join(
        f"{format_ranks(ranks)} {'is' if len(ranks) == 1 else 'are'} in the debugger, {place}"
        for place, ranks in by_place.items()
    )
