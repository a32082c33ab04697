"""The runtime folder is ours alone, or there is a clear refusal; its lock is exclusive and never stale."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_nb.client.runtime_dir import ENVIRONMENT_NAME, runtime_dir, secure_folder, start_lock
from vllm_nb.errors import VllmNbError


def test_it_is_made_private_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_NAME, str(tmp_path / "a" / "b"))
    folder = runtime_dir()
    assert folder == tmp_path / "a" / "b"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert runtime_dir() == folder


def test_without_the_variable_it_is_the_systems(tmp_path, monkeypatch):
    (tmp_path / "xdg").mkdir(mode=0o700)
    monkeypatch.delenv(ENVIRONMENT_NAME, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "xdg"))
    assert runtime_dir() == tmp_path / "xdg" / "vllm_nb"


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_open_to_others_is_refused_with_the_remedy(tmp_path, mode):
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(VllmNbError, match=rf"mode {mode:04o}.*chmod 700 {folder}"):
        secure_folder(folder)


def test_a_link_and_a_file_are_refused(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("")
    with pytest.raises(VllmNbError, match="not a folder"):
        secure_folder(tmp_path / "link")
    with pytest.raises(VllmNbError, match="cannot be made"):
        secure_folder(tmp_path / "file")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, -1)
    with pytest.raises(VllmNbError, match=r"belongs to another user.*12345"):
        secure_folder(folder)


def test_a_parent_in_which_anyone_can_rename_is_refused(tmp_path):
    parent = tmp_path / "shared"
    parent.mkdir()
    parent.chmod(0o777)
    with pytest.raises(VllmNbError, match="any user can replace"):
        secure_folder(parent / "run")
    parent.chmod(0o1777)  # as /tmp is
    assert secure_folder(parent / "run").is_dir()


HOLD = """
import sys
from pathlib import Path
from vllm_nb.client.runtime_dir import start_lock
with start_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def _holder(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_one_process_holds_the_lock_until_it_ends_or_dies(tmp_path):
    first, second = _holder(tmp_path), _holder(tmp_path)
    with first, second:
        held, waiting = (first, second) if _says_held(first, second) is first else (second, first)
        held.kill()  # leaves no stale lock
        assert waiting.stdout.readline() == "held\n"
        waiting.stdin.close()
    with start_lock(tmp_path):
        assert waiting.returncode == 0


def _says_held(*holders: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """The one that has the lock; the other must not have it too within half a second."""
    import select

    ready, _, _ = select.select([holder.stdout for holder in holders], [], [], 30)
    assert len(ready) == 1
    both, _, _ = select.select([holder.stdout for holder in holders if holder.stdout not in ready], [], [], 0.5)
    assert both == []
    (held,) = [holder for holder in holders if holder.stdout is ready[0]]
    assert held.stdout.readline() == "held\n"
    return held
