"""The connection file: whatever lies at its path, reading gives a connection or one clear error."""

import json
import os
import stat
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_nb.connection import Connection, ConnectionFileError, load, save

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def connection() -> Connection:
    return Connection.new(name="tiny", key="k", model="/m", config={"threads": 2}, idle_timeout=60)


def test_what_is_saved_is_loaded_and_private(tmp_path, connection):
    path = tmp_path / "c.json"
    save(path, connection)
    connection.port, connection.pid, connection.create_time = 4242, 7, 1.5
    save(path, connection)
    assert load(path) == connection
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["c.json"]
    assert connection.url == "http://127.0.0.1:4242"


def test_ids_and_tokens_are_fresh_and_the_token_is_not_shown(connection):
    other = Connection.new(name="tiny", key="k", model="/m")
    assert other.id != connection.id
    assert other.token != connection.token
    assert len(other.token) >= 40
    assert other.token not in repr(other)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'"text"'])
def test_a_corrupt_file_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "c.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConnectionFileError, match=r"c\.json"):
        load(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_change_of_one_field_loads_or_is_refused(tmp_path, connection, data):
    values = asdict(connection)
    name = data.draw(st.sampled_from(sorted(values)))
    values[name] = data.draw(JSON)
    path = tmp_path / "c.json"
    path.write_text(json.dumps(values))
    path.chmod(0o600)
    assert _loaded_or_refused(path) in (values, name)


def _loaded_or_refused(path: Path) -> object:
    """The values, or the field that the error names."""
    try:
        return asdict(load(path))
    except ConnectionFileError as error:
        return str(error).rpartition("wrong value in ")[2]


def test_fields_of_other_versions_are_ignored_and_missing_ones_named(tmp_path, connection):
    path = tmp_path / "c.json"
    save(path, connection)
    path.write_text(json.dumps(asdict(connection) | {"from_the_future": 1}))
    assert load(path) == connection
    path.write_text(json.dumps({"id": "x"}))
    with pytest.raises(ConnectionFileError, match=r"incomplete.*token"):
        load(path)


def test_files_that_others_may_read_or_that_are_links_are_refused(tmp_path, connection):
    path, link = tmp_path / "c.json", tmp_path / "link.json"
    save(path, connection)
    link.symlink_to(path)
    with pytest.raises(ConnectionFileError):
        load(link)
    path.chmod(0o644)
    with pytest.raises(ConnectionFileError, match="0600"):
        load(path)
    with pytest.raises(ConnectionFileError, match="no connection file"):
        load(tmp_path / "none.json")
