"""Who is let in: unit rules, and a real server on this machine."""

import http.client

import pytest

from faithfusion_studio.studio.access import AccessError, AccessRule, access_rule

TOKEN = "0123456789abcdef0123"
OPEN = AccessRule("127.0.0.1", None)
GUARDED = AccessRule("0.0.0.0", TOKEN)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost:8080"},
        {"Host": "127.0.0.1:9000"},
        {"Host": "[::1]:8080"},
        {"Host": "localhost:8080", "Origin": "http://localhost:8080"},
    ],
)
def test_this_machine_is_served_without_a_token(headers):
    assert OPEN.refusal("/", headers) is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "evil.test"},
        {"Host": "127.0.0.1.evil.test:8080"},
        {"Host": "localhost:8080", "Origin": "http://evil.test"},
        {"Host": "localhost:8080", "Origin": "http://localhost:9999"},
        {"Host": "localhost:8080", "Origin": "null"},
        {"Host": "[::1"},
    ],
)
def test_foreign_hosts_and_origins_are_refused(headers):
    assert OPEN.refusal("/", headers)


@pytest.mark.parametrize(
    "path, headers",
    [
        ("/", {"Host": "192.168.1.5:8080"}),
        ("/?token=", {"Host": "192.168.1.5:8080"}),
        ("/?token=wrong", {"Host": "192.168.1.5:8080"}),
        (f"/?token={TOKEN[:-1]}", {"Host": "192.168.1.5:8080"}),
        (f"/?token={TOKEN.upper()}", {"Host": "192.168.1.5:8080"}),
        ("/", {"Host": "localhost:8080", "Cookie": "ff_studio_x=1"}),
        (f"/?token={TOKEN}", {"Host": "evil.test"}),
        (f"/?token={TOKEN}", {"Host": "192.168.1.5:8080", "Origin": "http://evil.test"}),
        ("/?token=%ff%fe", {"Host": "192.168.1.5:8080"}),
    ],
)
def test_without_the_right_token_nothing_is_served(path, headers):
    assert GUARDED.refusal(path, headers)


def test_the_token_passes_in_the_address_and_later_in_the_cookie():
    host = {"Host": "192.168.1.5:8080", "Origin": "http://192.168.1.5:8080"}
    assert GUARDED.refusal(f"/?token={TOKEN}", host) is None
    cookie = {"Cookie": f"other=1; {GUARDED.cookie_name}={TOKEN}"}
    assert GUARDED.refusal("/assets/x.js", host | cookie) is None


def test_other_addresses_always_get_a_token_and_this_machine_none():
    assert access_rule("127.0.0.1", None).token is None
    first, second = access_rule("0.0.0.0", None).token, access_rule("0.0.0.0", None).token
    assert first and second and first != second
    assert len(first) >= 21
    with pytest.raises(AccessError, match="at least 16"):
        access_rule("0.0.0.0", "short")


def _get(port, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("GET", path, skip_host=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


@pytest.fixture(scope="module")
def guarded_port():
    import viser

    from faithfusion_studio.studio.access import guarded_server

    with guarded_server(GUARDED):
        server = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
    yield server.get_port()
    server.stop()


def test_a_real_server_gives_403_without_and_the_page_and_a_cookie_with_the_token(guarded_port):
    host = f"127.0.0.1:{guarded_port}"
    assert _get(guarded_port, "/", Host=host)[0].status == 403
    assert _get(guarded_port, f"/?token={TOKEN}", Host="evil.test")[0].status == 403
    response, body = _get(guarded_port, f"/?token={TOKEN}", Host=host)
    assert response.status == 200
    assert b"<html" in body.lower()
    cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    again, _ = _get(guarded_port, "/", Host=host, Cookie=cookie.split(";", maxsplit=1)[0])
    assert again.status == 200


@pytest.mark.parametrize(
    "path", ["/../pyproject.toml", "/%2e%2e/%2e%2e/etc/passwd", "/..%5c..%5cx"]
)
def test_paths_out_of_the_page_are_not_found(guarded_port, path):
    host = f"127.0.0.1:{guarded_port}"
    response, _ = _get(guarded_port, f"{path}?token={TOKEN}", Host=host)
    assert response.status == 404


def test_a_websocket_without_cookie_or_from_another_site_is_refused(guarded_port):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    address = f"ws://127.0.0.1:{guarded_port}"
    cookie = {"Cookie": f"{GUARDED.cookie_name}={TOKEN}"}
    for headers, origin in [({}, None), (cookie, "http://evil.test")]:
        with pytest.raises(InvalidStatus) as refusal:
            connect(address, additional_headers=headers, origin=origin, proxy=None)
        assert refusal.value.response.status_code == 403
    with connect(address, additional_headers=cookie, proxy=None, subprotocols=["viser-v1.1.1"]):
        pass
