"""Who may talk to the studio: Host, Origin and token checks in front of viser.

viser serves its page and its websocket from one port through the `process_request` hook of the
websockets package and checks nothing itself. `guarded_server` puts `AccessRule.refusal` in front of
that hook while the server starts. A browser proves itself once by the token in the URL and from then
on by a cookie, because viser's page opens its websocket without our query.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http
import ipaddress
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from faithfusion_studio.errors import StudioError

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class AccessError(StudioError):
    """A host or token the studio cannot be served with."""


@dataclass(frozen=True)
class AccessRule:
    """What a request must show to be served."""

    host: str
    """The address that is bound."""
    token: str | None
    """What the URL or the cookie must carry; None where only this machine can connect."""

    @property
    def cookie_name(self) -> str:
        """Cookies ignore ports, so two studios on one machine need different names."""
        return "ff_studio_" + hashlib.sha256((self.token or "").encode()).hexdigest()[:12]

    def refusal(self, path: str, headers: Mapping[str, str]) -> str | None:
        """Why a request is refused, one sentence; None if it may pass.

        Args:
            path: Request target with its query.
            headers: Request headers; Host, Origin and Cookie are read.
        """
        host_header = headers.get("Host", "")
        if not self._known_host(_hostname(host_header)):
            return (
                f"This studio does not answer for the host name {_hostname(host_header)!r}; "
                "open it as localhost, or serve it with --host and a token."
            )
        origin = headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host_header.lower():
            return "This request comes from another site."
        if self.token is None or self._has_token(path, headers):
            return None
        return "A token is needed: open the full address that ff-studio printed."

    def _known_host(self, name: str) -> bool:
        if name in LOCAL_NAMES:
            return True
        if self.token is None:
            return False
        own = {self.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
        return name in own or name.split(".", maxsplit=1)[0] in own or _is_address(name)

    def _has_token(self, path: str, headers: Mapping[str, str]) -> bool:
        given = parse_qs(urlsplit(path).query).get("token", [""])[0]
        if self._equal(given):
            return True
        try:
            cookie = SimpleCookie(headers.get("Cookie", "")).get(self.cookie_name)
        except CookieError:
            return False
        return cookie is not None and self._equal(cookie.value)

    def _equal(self, given: str) -> bool:
        assert self.token is not None
        return hmac.compare_digest(given.encode(), self.token.encode())


def access_rule(host: str, token: str | None) -> AccessRule:
    """The rule for an address: local ones need no token, others always get one of 128 random bits.

    Raises:
        AccessError: The token is too short to protect anything.
    """
    if token is not None and len(token) < 16:
        raise AccessError(
            f"the token has {len(token)} characters; give at least 16, or none to get a random one."
        )
    local = host.lower() in LOCAL_NAMES
    return AccessRule(host, token if local or token else secrets.token_urlsafe(16))


_start_lock = threading.Lock()


@contextlib.contextmanager
def guarded_server(rule: AccessRule) -> Iterator[None]:
    """While this is open, a websockets server that starts gets the rule in front of its hook."""
    import websockets.asyncio.server as module

    original = module.serve

    def serve(*args: Any, **kwargs: Any) -> Any:
        inner = kwargs.get("process_request")
        kwargs["process_request"] = lambda connection, request: _process(
            rule, inner, connection, request
        )
        return original(*args, **kwargs)

    with _start_lock:
        module.serve = serve  # type: ignore[misc, assignment]
        try:
            yield
        finally:
            module.serve = original  # type: ignore[misc]


def _process(rule: AccessRule, inner: Any, connection: Any, request: Any) -> Any:
    reason = _refusal(rule, request)
    if reason is not None:
        return connection.respond(http.HTTPStatus.FORBIDDEN, reason + "\n")
    response = None if inner is None else inner(connection, request)
    if response is not None and rule.token is not None:
        response.headers["Set-Cookie"] = (
            f"{rule.cookie_name}={rule.token}; Path=/; HttpOnly; SameSite=Strict"
        )
    return response


def _refusal(rule: AccessRule, request: Any) -> str | None:
    """A repeated header is refused: which of the two counts would be a guess."""
    headers: dict[str, str] = {}
    for name in ("Host", "Origin", "Cookie"):
        values = request.headers.get_all(name)
        if len(values) > 1 and name != "Cookie":
            return f"The request has {len(values)} {name} headers."
        if values:
            headers[name] = "; ".join(values)
    return rule.refusal(request.path, headers)


def _hostname(netloc: str) -> str:
    try:
        return (urlsplit("//" + netloc).hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
