"""Panels in a real kernel that is busy with a cell."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

SECONDS = 60
FOLLOW = """
import time
panel.frame += 1  # the kernel sends answers to where a widget was last updated from: from now on, this cell
print("running")
until = time.monotonic() + 20
while not panel.visible and time.monotonic() < until:
    time.sleep(0.01)
assert panel.visible
"""


@pytest.fixture
def client() -> Iterator[BlockingKernelClient]:
    manager, client = start_new_kernel(kernel_name="python3")
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def subshell_of(client: BlockingKernelClient) -> str:
    """A new one, as JupyterLab makes one for all widgets."""
    client.control_channel.send(client.session.msg("create_subshell_request"))
    return str(client.get_control_msg(timeout=SECONDS)["content"]["subshell_id"])


def test_a_panel_hears_its_page_while_a_cell_runs(client: BlockingKernelClient, recording: Path) -> None:
    setup = f"import vllm_nb\npanel = vllm_nb.replay({str(recording)!r}).panel('paging')\nprint(panel.comm.comm_id)"
    said: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        said.append(message["content"].get("text", ""))

    client.execute_interactive(setup, output_hook=hear, timeout=SECONDS)
    comm = "".join(said).strip()
    subshell = subshell_of(client)

    def look(message: dict[str, Any]) -> None:
        if message["content"].get("text") != "running\n":
            return
        seen = {"type": "seen", "view": "a", "number": 1, "visible": True}
        content = {"comm_id": comm, "data": {"method": "custom", "content": seen}}
        request = client.session.msg("comm_msg", content)
        request["header"]["subshell_id"] = subshell
        client.shell_channel.send(request)

    reply = client.execute_interactive(FOLLOW, output_hook=look, timeout=SECONDS)
    assert reply["content"]["status"] == "ok", reply["content"]
