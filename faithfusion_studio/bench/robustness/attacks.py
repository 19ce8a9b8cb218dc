"""Files that try to run code when they are opened: thirty pickles, none of which may do anything.

Each would create a canary file. They are built with pickle's own opcodes, so that making one runs
nothing either.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import tarfile
import zipfile
from pathlib import Path

_CALLS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "os.system": ("os", "system", ("touch {canary}",)),
    "posix.system": ("posix", "system", ("touch {canary}",)),
    "subprocess": ("subprocess", "getoutput", ("touch {canary}",)),
    "eval": ("builtins", "eval", ("open({canary!r}, 'w')",)),
    "exec": ("builtins", "exec", ("open({canary!r}, 'w')",)),
    "open": ("builtins", "open", ("{canary}", "w")),
    "python2 builtins": ("__builtin__", "eval", ("open({canary!r}, 'w')",)),
    "io.open": ("io", "open", ("{canary}", "w")),
    "codecs.open": ("codecs", "open", ("{canary}", "w")),
    "pathlib": ("pathlib", "Path.touch", ("{canary}",)),
    "runpy": ("runpy", "run_path", ("{canary}",)),
    "pdb": ("pdb", "run", ("open({canary!r}, 'w')",)),
    "timeit": ("timeit", "timeit", ("open({canary!r}, 'w')",)),
    "numpy runstring": ("numpy.testing._private.utils", "runstring", ("open({canary!r}, 'w')",)),
    "numpy save": ("numpy", "savetxt", ("{canary}", "0")),
    "numpy load": ("numpy", "load", ("{canary}",)),
    "torch load": ("torch", "load", ("{canary}",)),
    "torch save": ("torch", "save", ("0", "{canary}")),
    "torch hub": ("torch.hub", "load", ("{canary}",)),
    "torch extension": ("torch.utils.cpp_extension", "load", ("{canary}",)),
    "torch jit": ("torch.jit", "load", ("{canary}",)),
    "torch library": ("torch.ops", "load_library", ("{canary}",)),
    "attribute": ("operator", "attrgetter", ("system",)),
    "method": ("operator", "methodcaller", ("system", "touch {canary}")),
    "pickle again": ("pickle", "loads", ("{canary}",)),
}


def malicious_files(canary: Path) -> dict[str, bytes]:
    """Thirty files by name; each would create `canary` if anything in it ran."""
    where = str(canary)
    files = {
        name: _zipped(_call(module, function, [a.format(canary=where) for a in arguments]))
        for name, (module, function, arguments) in _CALLS.items()
    }
    plain = _call("os", "system", [f"touch {where}"])
    inner = _zipped(plain)
    files["bare pickle"] = plain
    files["stack global"] = _zipped(_stack_global("os", "system", f"touch {where}"))
    files["nested archive"] = _zipped(
        _harmless(), {"archive/data/0": inner, "other/data.pkl": plain}
    )
    files["old tar"] = _tarred(plain)
    files["object scalar"] = _zipped(_object_scalar(plain))
    return files


def _call(module: str, function: str, arguments: list[str]) -> bytes:
    """A pickle of protocol 2 whose loading would call a function with texts."""
    texts = b"".join(pickle.BINUNICODE + _sized(text) for text in arguments)
    name = f"{module}\n{function}\n".encode()
    return b"\x80\x02}U\x06splats" + b"c" + name + b"(" + texts + b"tRs."


def _stack_global(module: str, function: str, text: str) -> bytes:
    parts = [pickle.BINUNICODE + _sized(word) for word in (module, function)]
    return b"\x80\x04" + b"".join(parts) + b"\x93" + pickle.BINUNICODE + _sized(text) + b"\x85R."


def _object_scalar(payload: bytes) -> bytes:
    """A NumPy scalar of objects, which old readers unpickled a second time."""
    kind = b"cnumpy\ndtype\n" + pickle.BINUNICODE + _sized("O8") + b"\x85R"
    data = b"B" + len(payload).to_bytes(4, "little") + payload
    return b"\x80\x03cnumpy.core.multiarray\nscalar\n" + kind + data + b"\x86R."


def _harmless() -> bytes:
    return pickle.dumps({"splats": {}}, protocol=2)


def _sized(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4, "little") + data


def _zipped(data: bytes, more: dict[str, bytes] | None = None) -> bytes:
    pickletools.dis(data, out=io.StringIO())  # it must at least be a pickle
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        for name, content in (more or {}).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _tarred(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
