"""Magics that manage ranks and run cells on them: ``%dist_up/down/status``, ``%%dist``, ``%dist_push/pull``."""

from __future__ import annotations

import html
import keyword
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments
from IPython.display import clear_output, publish_display_data

from magics.push_size import warn_of_copies
from magics.words import parse
from workbench.cluster.captured import CapturedCell
from workbench.cluster.cells import Submission
from workbench.cluster.debugger.dialogue import in_debugger
from workbench.cluster.hosts.placement import parse_ranks
from workbench.cluster.output import (
    Block,
    RankOutput,
    elide,
    group_errors,
    group_output,
)
from workbench.cluster.screen import on_screen
from workbench.cluster.session import Session
from workbench.cluster.spare import close_spare
from workbench.cluster.startup_notice import print_when_slow
from workbench.cluster.status import RankStatus
from workbench.core.numbers import format_table, html_table
from workbench.errors import CellError, CellInterrupt, CellTimeoutError, ClusterError, ConfigError, format_ranks
from workbench.run.stalls import below_a_cell
from workbench.run.why import why_session

#: the argument of magics that act on some of the ranks
TARGETS = argument("-t", "--targets", metavar="RANKS", default="all", help="ranks: 0,2 or 0-3 or all (default)")
#: seconds until the preview of a running cell's output appears, and the largest number of its lines
_PREVIEW_AFTER_S = 1.0
_PREVIEW_LINES = 40
#: a widget of a rank, which the front end cannot reach
_WIDGET = "application/vnd.jupyter.widget-view+json"


@magics_class
class ClusterMagics(Magics):
    """Manage ranks and run cells on them."""

    shell: InteractiveShell

    @magic_arguments()
    @argument("-n", "--nproc-per-node", type=int, metavar="N", help="number of ranks (default: one per GPU or core)")
    @argument("--master-port", type=int, metavar="PORT", help="MASTER_PORT of the ranks (default: a free one)")
    @argument("--devices", metavar="IDS", help="GPUs to use, such as 0,1; 'cpu' for none (default: all visible)")
    @argument(
        "--framework", metavar="NAME", help="framework of the ranks (default: that of the live ranks, or colossal)"
    )
    @argument("--python", metavar="PATH", help="Python interpreter of the ranks (default: this one)")
    @line_magic
    def dist_up(self, line: str) -> None:
        """Start ranks: one process each, bound to a GPU or a share of the cores. Live ranks that fit are kept."""
        arguments = parse(self.dist_up, line)
        devices = arguments.devices
        if devices is not None and devices != "cpu":
            devices = [entry.strip() for entry in devices.split(",")]
        started = time.monotonic()
        before = Session.current()
        with print_when_slow():
            session = Session.up(
                arguments.nproc_per_node,
                master_port=arguments.master_port,
                devices=devices,
                framework=arguments.framework,
                python=arguments.python,
            )
        if before is not None and session is not before:
            print(
                f"warning: {format_ranks(range(before.n))} {'was' if before.n == 1 else 'were'} restarted: the "
                "variables of cells that ran there are lost",
                file=sys.stderr,
            )
        if before is session and session.renewal is not None:
            print(session.renewal)
        for warning in session.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        ranks = "1 rank is" if session.n == 1 else f"{session.n} ranks are"
        print(f"{ranks} up ({time.monotonic() - started:.1f} s), MASTER_PORT {session.master_port}")

    @magic_arguments()
    @line_magic
    def dist_down(self, line: str) -> None:
        """End all ranks, the controller and the rank server."""
        parse(self.dist_down, line)
        session = Session.current()
        if session is None:
            close_spare()
            print("no ranks are up")
            return
        session.down()
        print(f"{format_ranks(range(session.n))} ended")

    @magic_arguments()
    @line_magic
    def dist_status(self, line: str) -> StatusTable | None:
        """Show the pid, host, device, cores, memory, state and step of each rank."""
        parse(self.dist_status, line)
        session = Session.current()
        if session is None:
            print("no ranks are up: %dist_up starts them (%dist_up -n 2: two)")
            return None
        return StatusTable(tuple(session.status()), session.warnings)

    @magic_arguments()
    @TARGETS
    @argument(
        "--capture",
        metavar="NAME",
        help="show nothing and assign the output of the ranks to this variable of the notebook, with the values of the "
        "cell's last expression in NAME.values, by rank",
    )
    @argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="interrupt the cell when it takes longer, and say what its ranks waited for (default: no limit)",
    )
    @cell_magic
    def dist(self, line: str, cell: str) -> None:
        """Run a cell on ranks and show their output. Identical output is shown once, with its ranks."""
        arguments = parse(self.dist, line)
        session = current_session()
        targets = parse_ranks(arguments.targets, session.n)
        limit_s = arguments.timeout
        if limit_s is not None and not limit_s > 0:
            raise ConfigError(f"--timeout must be above 0 seconds, not {limit_s:g}", field="--timeout")
        if arguments.capture is not None:
            check_name(arguments.capture, "--capture")
            self._capture(session, cell, targets, arguments.capture, limit_s)
            return
        preview = _Preview(live=hasattr(self.shell, "kernel"))
        stalls = below_a_cell(session)

        def while_waiting(submission: Submission) -> None:
            if in_debugger(session.directory, submission.ranks):
                preview.end()
                return
            preview.show(submission)
            stalls.look()

        submission = session.submit(cell, targets)
        try:
            _wait(session, submission, limit_s, while_waiting)
        finally:
            preview.clear()
            show(submission.outputs)
        submission.result().raise_on_error()

    def _capture(self, session: Session, cell: str, targets: list[int], name: str, limit_s: float | None) -> None:
        """Run a cell and assign what it gave, also when it fails or is interrupted."""
        submission = session.submit(cell, targets)
        values: dict[int, Any] = {}
        try:
            _wait(session, submission, limit_s)
            with_value = [rank for rank, output in submission.outputs.items() if output.result is not None]
            values |= _last_values(session, with_value) if with_value else {}
        finally:
            self.shell.user_ns[name] = CapturedCell(submission.outputs, values=values)
        submission.result().raise_on_error()

    @magic_arguments()
    @TARGETS
    @argument("names", nargs="+", help="variables of the notebook")
    @line_magic
    def dist_push(self, line: str) -> None:
        """Copy variables from the notebook to ranks."""
        arguments = parse(self.dist_push, line)
        session = current_session()
        missing = [name for name in arguments.names if name not in self.shell.user_ns]
        if missing:
            raise ConfigError(f"not defined in the notebook: {', '.join(missing)}; define it or correct the name")
        values = {name: self.shell.user_ns[name] for name in arguments.names}
        ranks = parse_ranks(arguments.targets, session.n)
        warning = warn_of_copies(values, len(ranks))
        if warning:
            print(warning, file=sys.stderr)
        session.push(values, ranks)

    @magic_arguments()
    @TARGETS
    @argument("--into", metavar="NAMES", help="assign to these variables of the notebook (a,b) instead of returning")
    @argument("names", nargs="+", help="variables of the ranks")
    @line_magic
    def dist_pull(self, line: str) -> Any:
        """Return variables of ranks: ``loss = %dist_pull loss``. Nothing is assigned without ``--into``.

        From several ranks a value is a dict rank -> value, from one rank (``-t 0``) it is the value itself. Several
        variables are returned as a dict name -> value.
        """
        arguments = parse(self.dist_pull, line)
        session = current_session()
        into = None if arguments.into is None else [name.strip() for name in arguments.into.split(",")]
        if into is not None and not (len(into) == len(arguments.names) and all(map(str.isidentifier, into))):
            raise ConfigError(
                f"--into {arguments.into} does not name {len(arguments.names)} variable(s): for {arguments.names} pass "
                f"--into {','.join(arguments.names)}",
                field="--into",
            )
        ranks = parse_ranks(arguments.targets, session.n)
        found = session.pull(arguments.names, ranks)
        pulled = {name: {rank: found[rank][name] for rank in ranks} for name in arguments.names}
        values = {name: of[ranks[0]] if len(ranks) == 1 else of for name, of in pulled.items()}
        if into is None:
            return values if len(values) > 1 else next(iter(values.values()))
        self.shell.user_ns.update(zip(into, values.values(), strict=True))
        return None


def check_name(name: str, flag: str) -> None:
    """Raise ``ConfigError`` for a text that cannot name a variable of the notebook."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigError(f"{flag} {name} is not a variable's name", field=flag)


def _last_values(session: Session, ranks: list[int]) -> dict[int, Any]:
    """The value of the last expression of the last cell, by rank; none, with a warning, where it cannot be copied."""
    try:
        return session.pull("Out[max(Out)]", ranks)
    except CellError as error:
        print(f"warning: the output is kept, but not the value of the last expression: {error}", file=sys.stderr)
        return {}


def current_session() -> Session:
    """The session that is up. Raises ``ClusterError`` without one."""
    session = Session.current()
    if session is None:
        raise ClusterError("no ranks are up: %dist_up starts them (%dist_up -n 2: two)")
    return session


def _wait(
    session: Session,
    submission: Submission,
    limit_s: float | None,
    while_waiting: Callable[[Submission], None] | None = None,
) -> None:
    """Wait for a cell; interrupt it after ``limit_s`` seconds (None: never), or on Ctrl-C."""
    try:
        session.wait(submission, limit_s, while_waiting=while_waiting)
    except KeyboardInterrupt:
        raise interrupted(submission) from None
    except CellTimeoutError:
        headline = why_session(session).headline
        session.interrupt_cell(submission)
        raise CellTimeoutError(f"the cell was interrupted after {limit_s:g} s (--timeout): {headline}") from None


def interrupted(submission: Submission) -> CellInterrupt:
    """Return what Ctrl-C did to a cell: where ranks stopped, and which of them had to be ended."""
    stopped = submission.result().outputs
    groups = [group for group in group_errors(stopped) if group[1].ename == "KeyboardInterrupt"]
    return CellInterrupt(
        stopped=[rank for ranks, _ in groups for rank in ranks],
        ended=submission.dead_ranks(),
        traceback=groups[0][1].traceback if groups else "",
    )


def show(outputs: Mapping[int, RankOutput]) -> None:
    """Print and display the output of ranks, identical output once.

    The first error is left out, because the caller raises it; each other error is printed as one line.
    """
    for block in group_output(outputs):
        print(format_ranks(block.ranks))
        for piece in block.pieces:
            if piece.kind in ("stdout", "stderr"):
                stream = sys.stdout if piece.kind == "stdout" else sys.stderr
                print(elide(on_screen(str(piece.text))).rstrip("\n"), file=stream)
                continue
            shown = {kind: data for kind, data in piece.data.items() if kind != _WIDGET}
            if set(shown) == {"text/plain"}:
                print(elide(shown["text/plain"]))
            elif shown:
                publish_display_data(shown, piece.metadata)
    for ranks, error in group_errors(outputs)[1:]:
        print(f"{format_ranks(ranks)}: {error.ename}: {error.evalue}", file=sys.stderr)


def preview_text(blocks: Sequence[Block]) -> str:
    """Return the text that ``blocks`` have printed so far, shortened."""
    parts = []
    for block in blocks:
        text = "".join(str(piece.text) for piece in block.pieces if piece.kind in ("stdout", "stderr"))
        parts.append(f"{format_ranks(block.ranks)}\n{elide(on_screen(text), lines=_PREVIEW_LINES, last=30)}")
    return "\n".join(parts)


class _Preview:
    """Redraws the output of a running cell in place. ``live``: whether the front end can do so (a notebook can)."""

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._started = time.monotonic()
        self._shown = -1

    def show(self, submission: Submission) -> None:
        """Redraw when there is new output."""
        version = submission.version
        if not self._live or version in (0, self._shown) or time.monotonic() - self._started < _PREVIEW_AFTER_S:
            return
        self._shown = version
        clear_output(wait=True)
        print(preview_text(group_output(submission.outputs)))

    def clear(self) -> None:
        """Remove the preview. Called before the complete output is shown."""
        if self._live and self._shown >= 0:
            clear_output(wait=True)

    def end(self) -> None:
        """Remove the preview and draw none any more: what the debugger says stays."""
        self.clear()
        self._live = False


@dataclass(frozen=True)
class StatusTable:
    """The result of ``%dist_status``, displayed as text or as HTML."""

    ranks: tuple[RankStatus, ...]
    warnings: tuple[str, ...] = ()

    _HEADER = ("rank", "pid", "host", "device", "cores", "memory", "state", "step", "")

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows of the table as texts."""
        return [
            (
                str(each.rank),
                str(each.pid),
                each.host,
                each.device,
                format_ranks(each.cores).split(" ", 1)[1] if each.cores else "not pinned",
                f"{each.memory_bytes / 2**30:.2f} GiB" if each.memory_bytes else "",
                each.state,
                "" if each.step is None else str(each.step),
                each.warning,
            )
            for each in self.ranks
        ]

    def __repr__(self) -> str:
        return "\n".join(
            [format_table(self.rows(), self._HEADER), *(f"warning: {warning}" for warning in self.warnings)]
        )

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>warning: {html.escape(warning)}</p>" for warning in self.warnings)
        return html_table(self.rows(), self._HEADER) + notes
