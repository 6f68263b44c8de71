"""Which proxy a connection takes, as gRPC decides it, but for this machine."""

import pytest

from link.address import Address
from link.proxy import Route, route_to

PROXY = "http://me:hush@proxy.example:3128/"
OTHER = Address("server.example", 9090)


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_a_proxy_is_named_without_user_and_password(variable: str) -> None:
    route = route_to(OTHER, {variable: PROXY})
    assert route == Route("proxy.example:3128", variable)
    assert route.options == ()
    said = route.explain("HTTP proxy returned response code 403")
    assert said.startswith("HTTP proxy returned response code 403 (through the proxy proxy.example:3128 that ")
    assert variable in said
    assert "hush" not in said + repr(route)


def test_a_password_with_anything_in_it_is_not_shown() -> None:
    assert route_to(OTHER, {"http_proxy": "http://me:a@b@proxy.example:1"}).proxy == "proxy.example:1"
    for value in ("http://me:a/hush@proxy.example:1", "http://me:hush/@proxy.example", "me:hush@proxy.example:1"):
        assert "hush" not in repr(route_to(OTHER, {"http_proxy": value}))


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({"grpc_proxy": PROXY, "https_proxy": "http://b:1", "http_proxy": "http://c:1"}, "grpc_proxy"),
        ({"https_proxy": PROXY, "http_proxy": "http://c:1"}, "https_proxy"),
        ({"grpc_proxy": "", "http_proxy": PROXY}, ""),
        ({}, ""),
    ],
)
def test_the_first_that_is_set_counts(environment: dict[str, str], variable: str) -> None:
    assert route_to(OTHER, environment).variable == variable


@pytest.mark.parametrize(
    ("host", "exceptions", "direct"),
    [
        ("server.example", "server.example", True),
        ("server.example", "a, EXAMPLE ,b", True),
        ("server.example", ".other", False),
        ("server.example", "*", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "192.168.0.0/16,not/a/net", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("2001:db8::7", "2001:db8::/32", True),
    ],
)
def test_hosts_that_are_excluded_are_reached_directly(host: str, exceptions: str, direct: bool) -> None:
    for variable in ("no_proxy", "no_grpc_proxy"):
        route = route_to(Address(host, 1), {"http_proxy": PROXY, variable: exceptions})
        assert (route.proxy == "") is direct
    assert route_to(Address(host, 1), {"http_proxy": PROXY, "no_grpc_proxy": "x.y", "no_proxy": exceptions}).proxy


HERE = ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "0.0.0.0", "LocalHost", "a.localhost")  # noqa: S104


@pytest.mark.parametrize("host", HERE)
def test_this_machine_is_reached_directly(host: str) -> None:
    route = route_to(Address(host, 9090), {"grpc_proxy": PROXY})
    assert route == Route()
    assert ("grpc.enable_http_proxy", 0) in route.options
    assert route.explain("Connection refused") == "Connection refused"


def test_a_name_for_this_machine_is_found_by_looking_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("127.0.1.1", 9090))])
    assert route_to(Address("my-laptop", 9090), {"http_proxy": PROXY}) == Route()


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"HTTPS_PROXY": PROXY}, "gRPC does not read HTTPS_PROXY, only https_proxy"),
        ({"http_proxy": "proxy.example:3128"}, "http_proxy is not http://HOST:PORT"),
        ({"https_proxy": "https://proxy.example:3128"}, "https_proxy is not http://HOST:PORT"),
        ({"http_proxy": "socks5://proxy.example:3128"}, "http_proxy is not http://HOST:PORT"),
        ({"http_proxy": "http://[oops"}, "http_proxy is not http://HOST:PORT"),
    ],
)
def test_a_proxy_that_grpc_does_not_use_is_told(environment: dict[str, str], told: str) -> None:
    route = route_to(OTHER, environment)
    assert route.proxy == ""
    assert f"(directly: {told}" in route.explain("Connection refused")
    assert route_to(OTHER, {"HTTPS_PROXY": PROXY, "NO_PROXY": "example"}) == Route()
