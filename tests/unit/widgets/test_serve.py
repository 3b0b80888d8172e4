"""``wait_serving_comms`` in a real kernel, without a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

from tests.waiting import until
from widgets.page.serve import wait_serving_comms

SETUP = """
import time
from comm import get_comm_manager
from widgets.page.serve import wait_serving_comms
got = []
def opened(comm, message):
    comm.on_msg(lambda m: got.append(m["content"]["data"]["number"]))
get_comm_manager().register_target("test", opened)
order = []
"""
WAIT = "wait_serving_comms(lambda: len(got) >= 3); order.append(('waited', list(got)))"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(Path(__file__).parents[3]))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=300)
        run(client, SETUP)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run(client: Any, code: str) -> Any:
    reply = client.execute_interactive(code, timeout=300, store_history=False, output_hook=lambda _: None)
    assert reply["content"]["status"] == "ok", reply["content"]
    return reply


def evaluate(client: Any, expression: str) -> str:
    reply = client.execute_interactive(
        "", timeout=300, user_expressions={"x": expression}, output_hook=lambda _: None, store_history=False
    )
    return str(reply["content"]["user_expressions"]["x"]["data"]["text/plain"])


def send(client: Any, kind: str, content: dict[str, Any]) -> None:
    client.shell_channel.send(client.session.msg(kind, content))


def opened_comm(client: Any, comm_id: str) -> str:
    """A comm that appends the numbers it is sent to ``got``; open when this returns."""
    send(client, "comm_open", {"comm_id": comm_id, "target_name": "test", "data": {}})
    evaluate(client, "1")  # messages are handled in their order
    return comm_id


def reply_to(client: Any, message_id: str) -> Any:
    while True:
        reply = client.get_shell_msg(timeout=300)
        if reply["parent_header"].get("msg_id") == message_id:
            return reply


def test_messages_of_widgets_are_handled_while_the_cell_waits_and_cells_keep_their_order(client: Any) -> None:
    waiting = client.execute(WAIT)
    after = [client.execute(f"order.append({number})") for number in range(3)]
    send(client, "comm_open", {"comm_id": "c1", "target_name": "test", "data": {}})
    for number in range(3):
        send(client, "comm_msg", {"comm_id": "c1", "data": {"number": number}})
    assert reply_to(client, waiting)["content"]["status"] == "ok"
    for message_id in after:
        assert reply_to(client, message_id)["content"]["status"] == "ok"
    assert evaluate(client, "order") == "[('waited', [0, 1, 2]), 0, 1, 2]"


def execute_until_it_waits(client: Any, condition: str, waits: Path) -> str:
    """Execute a cell that waits for ``condition``; returns its message's id once it looks at that."""
    code = (
        f"import pathlib; got.clear()\nwait_serving_comms(lambda: pathlib.Path({str(waits)!r}).touch() or {condition})"
    )
    waiting = client.execute(code)
    until(waits.exists, "the cell waits")
    return str(waiting)


def test_a_page_that_comes_back_is_answered_while_the_cell_waits(client: Any, tmp_path: Path) -> None:
    comm = opened_comm(client, "c2")
    waiting = execute_until_it_waits(client, "bool(got)", tmp_path / "waits")
    assert reply_to(client, client.kernel_info())["msg_type"] == "kernel_info_reply"
    assert reply_to(client, client.comm_info())["msg_type"] == "comm_info_reply"
    send(client, "comm_msg", {"comm_id": comm, "data": {"number": 9}})
    assert reply_to(client, waiting)["content"]["status"] == "ok"


def test_interrupt_ends_the_wait_and_the_kernel_goes_on(client: Any, tmp_path: Path) -> None:
    comm = opened_comm(client, "c3")
    waiting = execute_until_it_waits(client, "False", tmp_path / "waits")
    client.control_channel.send(client.session.msg("interrupt_request", {}))
    reply = reply_to(client, waiting)
    assert (reply["content"]["status"], reply["content"]["ename"]) == ("error", "KeyboardInterrupt")
    # cells sent too soon are dropped with it
    until(lambda: reply_to(client, client.execute("1"))["content"]["status"] == "ok", "the kernel runs cells")
    assert evaluate(client, "1 + 1") == "2"
    send(client, "comm_msg", {"comm_id": comm, "data": {"number": 7}})
    assert evaluate(client, "got[-1]") == "7"  # messages outside a wait are handled as ever


def test_without_a_kernel_it_waits() -> None:
    left = iter([False, False, True])
    wait_serving_comms(lambda: next(left), poll_s=0.001)
    assert next(left, None) is None
