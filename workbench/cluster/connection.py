"""The connection of a session to its ranks: the engines' controller, and a client of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from workbench.cluster import engines
from workbench.cluster.base import protocol as p
from workbench.cluster.cells import Submission, send
from workbench.cluster.client import RankServer, wait_for_reply
from workbench.errors import ClusterError

#: seconds that ranks have to start: enough to import a large framework, uncompiled, from a slow disk
_START_TIMEOUT_S = 180.0


class Connection:
    """Starts ranks of ``server`` and reaches them. ``check()``, called while waiting, raises when a rank has died."""

    def __init__(self, server: RankServer, check: Callable[[], None]) -> None:
        self._server = server
        self._check = check
        self._client: Any = None
        self._engine_info: dict[str, Any] = {}

    @property
    def is_known(self) -> bool:
        """Whether the address of the controller is known."""
        return bool(self._engine_info)

    def open(self, make_specs: Callable[..., Sequence[p.RankSpec]]) -> None:
        """Starts a controller and ranks, and waits until each rank can run cells and its output arrives.

        ``make_specs(connection=...)``: the ranks, which find the controller by ``connection``. Raises ``ClusterError``
        when that takes longer than 180 s, or the server fails.
        """
        server = self._server
        wait_for_reply(server.ensure_controller(), _START_TIMEOUT_S, self._check)
        self._engine_info = engines.read_connection_file(server.profile_dir, "engine")
        specs = make_specs(connection=json.dumps(self._engine_info))
        started = server.start_ranks(specs)
        self._client = engines.connect(engines.read_connection_file(server.profile_dir, "client"))
        wait_for_reply(started, _START_TIMEOUT_S, self._check)
        self._wait_for_engines([spec.rank for spec in specs], len(specs))

    def add(self, make_specs: Callable[..., Sequence[p.RankSpec]], ranks: Sequence[int]) -> None:
        """Starts ``ranks`` of those that ``make_specs`` makes, beside the others, and waits as ``open`` does.

        Ranks of the same numbers have died before. Errors: see ``open``.
        """
        engines.wait_until_gone(self._client, ranks, timeout_s=_START_TIMEOUT_S, check=self._check)
        specs = make_specs(connection=json.dumps(self._engine_info))
        started = self._server.start_ranks([spec for spec in specs if spec.rank in ranks])
        wait_for_reply(started, _START_TIMEOUT_S, self._check)
        self._wait_for_engines(ranks, len(specs))

    def _wait_for_engines(self, ranks: Sequence[int], registered: int) -> None:
        """Waits until so many engines are ``registered``, and the output of ``ranks`` arrives."""
        try:
            engines.wait_until_registered(self._client, registered, timeout_s=_START_TIMEOUT_S, check=self._check)
            engines.wait_for_output(self._client, ranks, timeout_s=_START_TIMEOUT_S, check=self._check)
        except TimeoutError as error:
            raise ClusterError(f"{error}: run %dist_up again, with fewer ranks if the machine is overloaded") from error

    def send(self, submission: Submission, *, follows: bool = True) -> None:
        """Sends a cell to its ranks. ``follows``: see ``cells.send``."""
        send(self._client, submission, follows=follows)

    def view(self, ranks: Sequence[int]) -> Any:
        """An ipyparallel ``DirectView`` of ranks."""
        return self._client.direct_view(list(ranks))

    def unregister(self, ranks: Iterable[int]) -> None:
        """Tells the controller that ranks have ended."""
        engines.unregister(self._engine_info, ranks)

    def unregister_and_wait(self, ranks: Iterable[int], *, timeout_s: float) -> None:
        """``unregister``, and waits until this client knows it. Raises ``TimeoutError``."""
        engines.unregister_and_wait(self._client, self._engine_info, ranks, timeout_s=timeout_s)

    def close(self) -> None:
        """Closes the client, if there is one. What was not sent is dropped."""
        if self._client is not None:
            self._client.close(linger=0)
