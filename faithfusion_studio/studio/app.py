"""Serve the studio: the viser server behind its access rule, and one `ClientStudio` per browser."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
import webbrowser
from typing import Any

import numpy as np
import viser

from faithfusion_studio.errors import StudioError
from faithfusion_studio.scene import Scene
from faithfusion_studio.studio.access import AccessRule, access_rule, guarded_server
from faithfusion_studio.studio.client import ClientStudio, reported
from faithfusion_studio.studio.lens import pose_of
from faithfusion_studio.studio.window import LOOK_DISTANCE


class ServeError(StudioError):
    """The studio cannot be served at this address."""


class _Server(viser.ViserServer):
    """viser without its public share relay, which any client could open."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        del verbose
        return None


class Studio:
    """A running studio; close it before the session."""

    def __init__(self, server: viser.ViserServer, session: Any, rule: AccessRule) -> None:
        self._server = server
        self._session = session
        self._rule = rule
        self._clients: dict[int, ClientStudio] = {}
        self._lock = threading.Lock()
        server.on_client_connect(self._connected)
        server.on_client_disconnect(self._left)

    @property
    def port(self) -> int:
        """The port really taken; a busy one was passed over."""
        return self._server.get_port()

    @property
    def token(self) -> str | None:
        """What the URL carries; None where only this machine can connect."""
        return self._rule.token

    @property
    def url(self) -> str:
        """The address to open, with its token if there is one."""
        host = self._rule.host
        host = {"0.0.0.0": "localhost", "::": "localhost", "": "localhost"}.get(host, host)
        host = f"[{host}]" if ":" in host else host
        query = "" if self.token is None else f"?token={self.token}"
        return f"http://{host}:{self.port}/{query}"

    @property
    def clients(self) -> tuple[ClientStudio, ...]:
        """Connected browsers."""
        with self._lock:
            return tuple(self._clients.values())

    def close(self) -> None:
        """Disconnect everybody and free the port; the session lives on."""
        for one in self.clients:
            one.close()
        self._server.stop()

    def _connected(self, client: viser.ClientHandle) -> None:
        one = ClientStudio(client, self._session)
        with self._lock:
            self._clients[client.client_id] = one
        with reported(one.view):
            one.open()

    def _left(self, client: viser.ClientHandle) -> None:
        with self._lock:
            one = self._clients.pop(client.client_id, None)
        if one is not None:
            one.close()


def launch(
    session: Any,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    open_browser: bool = False,
    token: str | None = None,
) -> Studio:
    """Serve the studio of a session to browsers.

    Args:
        session: The shared scene and its state.
        host: Address to bind; anything but this machine needs a token, which is made if none is given.
        port: First port to try; a busy one is passed over.
        open_browser: Open the page in the default browser.
        token: At least 16 characters that the URL must carry.

    Returns:
        The running studio with its `port` and `url`.

    Raises:
        AccessError: The token is too short.
        ServeError: No port near this one is free, or the address does not exist here.
    """
    # A browser may leave at any moment, also while its window is being built or updated.
    warnings.filterwarnings("ignore", "Queued a .* on a closed connection", UserWarning)
    rule = access_rule(host, token)
    _require_bindable(host, port)
    with guarded_server(rule), contextlib.redirect_stdout(io.StringIO()):  # viser's own banner
        server = _Server(host=host, port=port, label="FaithFusion Studio", verbose=False)
    server.scene.set_up_direction("+z")
    _set_initial_camera(server, session.store.latest().scene)
    studio = Studio(server, session, rule)
    if open_browser:
        webbrowser.open(studio.url)
    return studio


def _require_bindable(host: str, port: int) -> None:
    """viser retries a thousand ports on any error; an address that is not ours must not look busy."""
    import errno
    import socket

    if not 0 <= port <= 65535:
        raise ServeError(f"port {port} does not exist; choose one of 1024 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError as error:
        known = error.errno in (errno.EADDRNOTAVAIL, socket.EAI_NONAME)
        reason = "is not an address of this machine" if known else f"cannot be used ({error})"
        raise ServeError(f"the host {host!r} {reason}; use 127.0.0.1 or 0.0.0.0.") from error


def _set_initial_camera(server: viser.ViserServer, scene: Scene) -> None:
    """New pages, and viser's reset button, start on the first recorded camera, not at the origin."""
    if scene.capture is None or not scene.capture.trajectory.cameras:
        position, look_at = overview(scene)
        server.initial_camera.position = position
        server.initial_camera.look_at = look_at
        return
    camera = scene.capture.trajectory.cameras[0]
    pose = camera.camtoworld.numpy()
    server.initial_camera.position = pose[:3, 3]
    server.initial_camera.look_at = pose[:3, 3] + LOOK_DISTANCE * pose[:3, 2]
    server.initial_camera.up = -pose[:3, 1]
    server.initial_camera.fov = pose_of(camera, (camera.width, camera.height)).fov


def overview(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Position and target, m, from which most of a scene without a recording is seen.

    Half of the Gaussians, the middle ones along each axis, decide: a few far ones do not.
    """
    means = scene.background.means.detach().cpu().numpy()
    if len(means) == 0:
        return np.array([-3.0, 0.0, 1.0]), np.zeros(3)
    low, middle, high = np.percentile(means, (25, 50, 75), axis=0)
    size = max(float(np.linalg.norm(high - low)), 0.5)
    return middle + size * np.array([-1.0, 0.0, 0.35]), middle
