"""A real InteractiveShell for each test, its display data caught."""

from collections.abc import Iterator

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.display_pub = CapturingDisplayPublisher()
    shell.history_manager.enabled = False
    yield shell
    shell.run_line_magic("unload_ext", "vllm_nb")
    InteractiveShell.clear_instance()
