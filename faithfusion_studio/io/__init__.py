"""Reading and writing scenes, recordings and camera paths; the content chooses the reader."""

from typing import Any

_HOMES = {
    "FORMATS": "formats",
    "FormatError": "formats",
    "ExportOptions": "export",
    "SPLAT_FORMATS": "export",
    "WRITABLE": "formats",
    "is_writable": "formats",
    "name_of_writable": "formats",
    "load_capture": "formats",
    "load_scene": "formats",
    "save_scene": "formats",
    "sniff": "formats",
    "attach_capture": "attaching",
    "CaptureError": "capture_files",
    "CheckpointError": "checkpoints",
    "NativeFileError": "native",
    "NATIVE_VERSION": "native",
    "SplatFileError": "ply",
    "camera_path_stems": "camera_files",
    "read_camera_path": "camera_files",
    "write_camera_path": "camera_files",
    "read_colmap": "colmap",
    "write_compressed_ply": "compressed_ply",
    "read_splat": "splat",
    "write_splat": "splat",
    "read_spz": "spz",
    "write_spz": "spz",
    "read_ksplat": "ksplat",
    "read_sog": "sog",
    "write_sog": "sog_writer",
    "read_gsplat": "gsplat_files",
    "write_gsplat": "gsplat_files",
    "read_nerfstudio": "nerfstudio_files",
    "read_torch_file": "checkpoints",
    "read_native": "native",
    "write_native": "native",
    "read_ply": "inria_ply",
    "write_ply": "inria_ply",
    "read_compressed_ply": "compressed_ply",
    "write_cameras_json": "captures",
    "write_colmap": "recording_writers",
    "write_transforms_json": "recording_writers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
