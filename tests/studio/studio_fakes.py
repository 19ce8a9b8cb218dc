"""Stand-ins for the browser and the session, with the fields the studio uses."""

from types import SimpleNamespace


class FakeWindow:
    """A browser that remembers what it was told."""

    def __init__(self):
        self.messages = []
        self.downloads = []
        self.camera = None

    def notify(self, title, body, error):
        self.messages.append((title, body, error))

    def download(self, name, data):
        self.downloads.append((name, data))

    def current_camera(self):
        return self.camera


class FakeSession:
    """The fields of a session that the studio reads, with commands collected instead of done."""

    def __init__(self, scene):
        self.snapshot = SimpleNamespace(version=1, scene=scene, step=0)
        self.store = SimpleNamespace(latest=lambda: self.snapshot)
        self.before_scene = scene
        self.commands = []
        self.activity = 0
        self.subscribers = []
        self.state = SimpleNamespace(
            job=None,
            error=None,
            error_id=0,
            notice=None,
            notice_id=0,
            frames=(),
            preview=None,
            unsaved=False,
            fisher_ready=scene.fisher is not None,
            has_recording=scene.capture is not None,
            device="CPU (test), 2 threads",
            num_gaussians=scene.num_gaussians,
        )

    def submit(self, command):
        self.commands.append(command)

    def subscribe(self, call):
        self.subscribers.append(call)
        return lambda: self.subscribers.remove(call)

    def note_viewer_activity(self):
        self.activity += 1

    def publish(self, scene):
        self.snapshot = SimpleNamespace(version=self.snapshot.version + 1, scene=scene, step=0)
