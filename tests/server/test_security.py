"""Who is answered: decided by token, Host, Origin and size, before any route."""

import pytest
from starlette.datastructures import Headers

from vllm_nb.errors import VllmNbError
from vllm_nb.server.app import bind
from vllm_nb.server.errors import ApiError
from vllm_nb.server.security import Policy, is_loopback


def status(policy: Policy, **headers: str) -> int:
    """What a request with these headers gets; 200 where the policy lets it pass."""
    given = {"host": "127.0.0.1:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    try:
        policy.check(Headers(given))
    except ApiError as error:
        return error.status
    return 200


SECRET = Policy(token="s3cret")


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        ("Bearer s3cret", 200),
        ("bearer s3cret", 200),
        ("Bearer  s3cret ", 200),
        ("Bearer s3cre", 401),
        ("Bearer s3cret2", 401),
        ("Bearer", 401),
        ("Basic s3cret", 401),
        ("s3cret", 401),
        ("", 401),
        ("Bearer s\xe9cret", 401),
    ],
)
def test_the_token_must_match(authorization, expected):
    assert status(SECRET, authorization=authorization) == expected
    assert status(Policy(token=None), authorization=authorization) == 200


def test_the_token_as_anthropics_clients_send_it():
    assert status(SECRET, x_api_key="s3cret") == 200
    assert status(SECRET, x_api_key="other") == 401
    assert status(SECRET, x_api_key="s3cret", authorization="Bearer other") == 401


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1", "[::1]"])
def test_names_of_this_machine_are_answered(host):
    assert status(Policy(), host=host) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil:80", "", "[::1", "192.168.1.2"]
)
def test_other_names_are_not_for_a_page_may_have_rebound_them(host):
    assert status(Policy(), host=host) == 403
    assert status(SECRET, host=host, authorization="Bearer s3cret") == 403


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://127.0.0.1:8000", 200),
        ("https://127.0.0.1:8000", 200),
        ("http://127.0.0.1:8001", 403),
        ("http://localhost:8000", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
        ("http://[", 403),
    ],
)
def test_pages_of_other_origins_are_refused(origin, expected):
    assert status(Policy(), origin=origin) == expected


def test_large_bodies_are_refused_by_their_announced_length():
    small = Policy(max_body=1000)
    assert status(small, content_length="1000") == 200
    assert status(small, content_length="1001") == 413
    assert status(small, content_length="9" * 5000) == 413


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_which_addresses_only_this_machine_reaches(address, expected):
    assert is_loopback(address) is expected


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.7", "myhost.example"])
def test_an_open_address_needs_a_key(address):
    for no_key in (None, ""):
        with pytest.raises(ValueError, match=rf"host '{address}' can be reached.*--api-key"):
            Policy.for_address(address, no_key)
    policy = Policy.for_address(address, "key")
    assert status(policy, host="any.name.example", authorization="Bearer key") == 200
    assert status(policy, host="any.name.example") == 401
    assert status(policy, authorization="Bearer key", origin="https://evil.example") == 403


def test_a_proxys_name_can_be_allowed():
    policy = Policy.for_address("127.0.0.1", None, ["Hub.example"])
    assert status(policy, host="hub.example") == 200
    assert status(policy, host="other.example") == 403


def test_an_open_address_without_a_key_must_be_meant(caplog):
    policy = Policy.for_address("0.0.0.0", None, without_token=True)
    assert "without an API key: whoever reaches this machine can use the model" in caplog.text
    for host, expected in [("192.168.1.2:8000", 200), ("[fe80::1]:80", 200), ("localhost", 200), ("evil.example", 403)]:
        assert status(policy, host=host) == expected  # a name may be rebound by a page, an address may not


def test_pages_on_the_list_may_ask():
    policy = Policy.for_address("127.0.0.1", None, origins=["https://app.example"])
    assert status(policy, origin="https://app.example") == 200
    assert status(policy, origin="http://app.example") == 403
    for wrong in ("*", "app.example", "https://app.example/", "null", "https://App.example", "https://"):
        with pytest.raises(ValueError, match="an allowed origin must be like"):
            Policy.for_address("127.0.0.1", None, origins=[wrong])


def test_the_token_is_not_shown():
    assert "s3cret" not in repr(SECRET)


def test_a_taken_port_is_named():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(VllmNbError, match=rf"cannot listen on 127\.0\.0\.1 port {port}: Address already in use"):
            bind("127.0.0.1", port)
