"""Who gets in at the page, and what every answer tells a browser to forbid."""

import hmac
import logging
import ssl
from pathlib import Path

import pytest

from deploy.certs import init
from server.monitor.web.gate import HEADERS, is_token, new_token
from tests.unit.server.monitor.web.pages import State, ask, cookie_of, port_of, served

PATHS = ("/", "/page.css", "/page.js", "/state", "/events", "/nothing")
SECRET = State(run="only-for-those-with-the-token")


def test_without_the_token_nothing_is_shown() -> None:
    with served(SECRET) as page:
        name = cookie_of(page)[1].partition("=")[0]
        for path in PATHS:
            for headers in (
                (),
                (("Cookie", f"{name}=x"),),
                (("Cookie", f"{name}={new_token()}"),),
                (("Cookie", "é=ü"),),
            ):
                answer = ask(page, path, *headers)
                assert answer.status == 401, path
                assert "only-for" not in answer.body
    assert SECRET.asked <= 1, "only the goodbye, to nobody"


def test_the_token_becomes_a_cookie_that_opens_the_page() -> None:
    with served() as page:
        token = page.url.partition("token=")[2]
        assert is_token(token)
        answer = ask(page, f"/enter?token={token}")
        assert (answer.status, answer.headers["location"], answer.body) == (303, "/", "")
        name, *attributes = answer.headers["set-cookie"].split("; ")
        assert name == f"breakwater-{port_of(page)}={token}", "cookies know no ports, so the name does"
        assert set(attributes) == {"HttpOnly", "Path=/", "SameSite=strict"}
        cookie = cookie_of(page)
        for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
            answer = ask(page, path, cookie)
            assert answer.status == 200
            assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
            assert token not in answer.body
        assert ask(page, "/state", cookie).body == '{"round": 1}'
        assert ask(page, "/nothing", cookie).status == 404


@pytest.mark.parametrize("token", ["", "x", "%00", "é", "a" * 5000])
def test_a_wrong_token_opens_nothing(token: str) -> None:
    with served() as page:
        answer = ask(page, f"/enter?token={token}".replace("é", "%C3%A9"))
        assert answer.status == 403
        assert "set-cookie" not in answer.headers
        assert ask(page, "/enter").status == 403


def test_every_answer_forbids_foreign_scripts_frames_referrers_and_caches() -> None:
    with served() as page:
        cookie = cookie_of(page)
        token = page.url.partition("token=")[2]
        answers = [
            ask(page, "/", cookie),
            ask(page, "/page.js", cookie),
            ask(page, "/state", cookie),
            ask(page, "/nothing", cookie),
            ask(page, "/"),
            ask(page, f"/enter?token={token}"),
            ask(page, "/enter?token=x"),
            ask(page, "/", method="POST"),
            ask(page, "/", host="evil.example"),
        ]
        assert [answer.status for answer in answers] == [200, 200, 200, 404, 401, 303, 403, 405, 421]
        for answer in answers:
            for name, value in HEADERS.items():
                assert answer.headers[name.lower()] == value, answer.status
            assert "server" not in answer.headers
            assert answer.headers["connection"] == "close"
    assert "'unsafe" not in HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "get"])
def test_only_get(method: str) -> None:
    with served() as page:
        answer = ask(page, "/", cookie_of(page), method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET")


def test_another_sites_name_cannot_be_made_to_lead_here() -> None:
    with served() as page:
        cookie = cookie_of(page)
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1", f"127.0.0.1:{port_of(page)}", "[::1]:80", "127.9.9.9"):
            assert ask(page, "/", cookie, host=host).status == 200, host
        for host in (
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
            "[::1",
            "10.0.0.1",
            "a b",
            "@",
        ):
            assert ask(page, "/", cookie, host=host).status in (400, 421), host
        assert ask(page, "/", cookie, ("Host", "localhost"), host="evil.example").status in (400, 421)
        assert ask(page, "/", cookie, host=None).status in (400, 421)


def test_tokens_are_compared_in_constant_time_and_never_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[bool] = []
    digest = hmac.compare_digest

    def compare(shown: bytes, token: bytes) -> bool:
        found.append(digest(shown, token))
        return found[-1]

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for name in ("breakwater", "uvicorn.error", "uvicorn.access"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    with caplog.at_level(logging.DEBUG), served() as page:
        token = page.url.partition("token=")[2]
        cookie = cookie_of(page)
        ask(page, "/", cookie)
        ask(page, "/enter?token=guessed-" + token)
    assert found == [True, True, False]
    assert token not in caplog.text
    assert "guessed" not in caplog.text
    assert "page: 127.0.0.1: a wrong token" in caplog.text


def test_over_tls_the_cookie_is_secure_and_the_certificate_names_the_hosts(tmp_path: Path) -> None:
    init(tmp_path, ["fed.example.org", "north.clinic.example", "127.0.0.1"])
    trusted = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    with served(tls=tmp_path / "server") as page:
        assert page.url.startswith("https://127.0.0.1:")
        parts = page.url.partition("/enter")
        answer = ask(page, parts[1] + parts[2], trusted=trusted)
        name, *attributes = answer.headers["set-cookie"].split("; ")
        assert name.startswith(f"__Host-breakwater-{port_of(page)}=")
        assert set(attributes) == {"HttpOnly", "Path=/", "SameSite=strict", "Secure"}
        cookie = cookie_of(page, trusted)
        for host, status in (
            ("fed.example.org:8443", 200),
            ("north.clinic.example", 200),
            ("example.org", 421),
            ("a.north.clinic.example", 421),
        ):
            assert ask(page, "/state", cookie, host=host, trusted=trusted).status == status, host
    with served(tls=tmp_path / "server", host="0.0.0.0") as page:  # noqa: S104  # what is tested
        assert page.url.startswith("https://fed.example.org:"), "a name that a browser can take the certificate for"
