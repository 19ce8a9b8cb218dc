"""`ff-studio PATH`: from a file to a page in the browser, and back to the shell without losing work."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import redirect_stdout
from pathlib import Path

from faithfusion_studio import __version__
from faithfusion_studio.cli import arguments as a
from faithfusion_studio.cli.console import EXIT_CODES, Interruption, interruptible, say
from faithfusion_studio.cli.inputs import CommandLineError, with_capture
from faithfusion_studio.cli.running import Result, chosen_device
from faithfusion_studio.render.device import device_name
from faithfusion_studio.scene import Scene

DEFAULT_PORT = 8080


def view(args: a.View) -> Result:
    """Serve the studio until Ctrl+C, then keep unsaved work."""
    from faithfusion_studio.io import load_scene, sniff

    path = args.path
    if sniff(path) == "capture":
        scene_path = offer_reconstruction(path)
        if scene_path is None:
            return Result({}, exit_code=2)
        path = scene_path
    port = free_port(args.host, args.port)
    scene = with_capture(load_scene(path), args.capture).to(chosen_device(args.device))
    from faithfusion_studio.session import Session
    from faithfusion_studio.studio.app import launch

    with interruptible("keeping unsaved work") as stop:
        session = Session(scene, path=path)
        with redirect_stdout(sys.stderr):  # viser greets and says goodbye on standard output
            studio = launch(session, args.host, port, open_browser=args.open, token=args.token)
        _announce(args, path, scene, studio.url, studio.port)
        _wait(stop)
        with redirect_stdout(sys.stderr):
            studio.close()
        kept = session.close(save=True)
    say("closed; nothing was unsaved." if kept is None else f"unsaved work was kept in {kept}.")
    return Result({}, exit_code=stop.exit_code)


def _wait(stop: Interruption) -> None:
    """Until a signal came; short waits let the handler run on every platform."""
    never = threading.Event()
    while not stop.requested:
        never.wait(0.2)


def _announce(args: a.View, path: Path, scene: Scene, url: str, port: int) -> None:
    from faithfusion_studio.cli import announce, tell

    frames = 0 if scene.capture is None else len(scene.capture)
    device = device_name(scene.device)
    if args.json:
        announce(
            {
                "name": "FaithFusion Studio",
                "version": __version__,
                "device": device,
                "gaussians": scene.num_gaussians,
                "frames": frames,
                "url": url,
                "port": port,
            }
        )
        return
    lines = [
        f"FaithFusion Studio {__version__} on {device}",
        f"{path}: {scene.num_gaussians:,} Gaussians, {frames} recorded frames",
        *(str(note) for note in scene.metadata.get("notes", [])),
        f"open {url}",
    ]
    if os.environ.get("SSH_CONNECTION"):
        lines.append(
            f"from your own machine first: ssh -L {port}:127.0.0.1:{port} "
            f"{os.environ.get('USER', 'user')}@{socket.gethostname()}"
        )
    if args.host not in ("127.0.0.1", "localhost", "::1"):
        lines.append(
            f"from another machine replace localhost by {socket.gethostname()}; everyone who knows "
            "this address can use the studio."
        )
    tell([*lines, "Ctrl+C ends it and keeps unsaved work."])


def free_port(host: str, port: int | None) -> int:
    """A port that can be bound: the one asked for, or from 8080 on the first that is free.

    Raises:
        CommandLineError: The port is in use, or the host is not an address of this machine.
    """
    if port is not None and not 0 < port < 65536:
        raise CommandLineError(f"--port: found {port}; expected 1 to 65535.")
    candidates = [port] if port is not None else list(range(DEFAULT_PORT, DEFAULT_PORT + 100))
    for candidate in candidates:
        reason = _busy(host, candidate)
        if reason is None:
            return candidate
        if "assign" in reason or "not known" in reason:
            raise CommandLineError(
                f"--host: {host} cannot be served ({reason}); give an address of this machine."
            )
    what = f"port {port}" if port is not None else f"ports {DEFAULT_PORT} to {candidates[-1]}"
    raise CommandLineError(f"{what} on {host} cannot be used ({reason}); choose another --port.")


def _busy(host: str, port: int) -> str | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return None


def offer_reconstruction(path: Path) -> Path | None:
    """Say how a recording becomes a scene, and do it at once when the person agrees.

    Returns:
        The scene that was written, or None.
    """
    from faithfusion_studio.io import load_capture

    capture = load_capture(path)
    out = Path(f"{path.resolve().name}.ckpt")
    say(
        f"{path}: is a recording of {len(capture)} frames, not a scene yet. Reconstruct it first "
        f"(about 10 minutes on 2 cores):\n\n    ff-studio reconstruct {path} {out}\n"
    )
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or out.exists():
        return None
    sys.stderr.write(f"Do that now, then open {out}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        return None
    from faithfusion_studio.cli.learn import reconstruct

    result = reconstruct(a.Reconstruct(capture=path, out=out))
    for line in result.lines:
        say(line)
    if result.exit_code == EXIT_CODES[signal.Signals.SIGINT.name]:
        raise KeyboardInterrupt
    return out
