"""The command boxes: annotate moving things without a window."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faithfusion_studio.annotating import (
    Annotation,
    Keyframe,
    fit_at,
    follow,
    place_at,
)
from faithfusion_studio.cli.box_arguments import Boxes
from faithfusion_studio.cli.console import ProgressLine
from faithfusion_studio.cli.inputs import CommandLineError, frame_stems, parse_numbers, parse_range
from faithfusion_studio.cli.running import Result
from faithfusion_studio.fusion.moving import MOVING
from faithfusion_studio.scene import Capture

Found = dict[str, Annotation]


def boxes(args: Boxes) -> Result:
    """Change the boxes, write them, draw them, list them."""
    from faithfusion_studio.io import load_capture
    from faithfusion_studio.io.annotations import read_box_tracks, write_box_tracks

    if args.file.suffix.lower() != ".json":
        raise CommandLineError(f"{args.file}: boxes are written as .json; give such a name.")
    capture = load_capture(args.recording)
    tracks = read_box_tracks(args.file) if args.file.exists() else capture.boxes
    before = _by_name(tuple(Annotation.from_track(track) for track in tracks))
    after = _changed(args, capture, dict(before))
    if after != before:
        write_box_tracks([annotation.track() for annotation in after.values()], args.file)
    if args.picture is not None:
        _draw(args, capture, after)
    values = {
        "boxes": [_values(annotation) for annotation in after.values()],
        "written": after != before,
        "file": args.file,
    }
    lines = [_line(box) for box in values["boxes"]] or ["No boxes."]
    if after != before:
        lines.append(f"Saved {args.file}. Learn the scene: ff-studio reconstruct {args.recording} "
                     f"scene.ckpt --boxes {args.file}")  # fmt: skip
    return Result(values, lines)


def _by_name(annotations: tuple[Annotation, ...]) -> Found:
    found = {annotation.name: annotation for annotation in annotations}
    if len(found) < len(annotations):
        raise CommandLineError("several boxes have the same name; give each its own in the file.")
    return found


def _changed(args: Boxes, capture: Capture, found: Found) -> Found:
    """The boxes after every option."""
    for name in args.remove:
        _known(found, name)
        del found[name]
    categories = dict(_pairs("--category", args.category))
    sizes = {name: _size(text) for name, text in _pairs("--size", args.size)}
    headings = {name: _turn("--heading", text) for name, text in _pairs("--heading", args.heading)}
    for name, size in sizes.items():
        if name in found:
            found[name] = _resized(found[name], size)
    for name, category in categories.items():
        if name in found:
            found[name] = replace(found[name], category=category)
    for name, frame, numbers in _at_frames("--add", args.add, capture, (2, 3)):
        at = torch.tensor(numbers) if len(numbers) == 3 else _under(capture, frame, numbers)
        known = found.get(name)
        category = known.category if known else categories.get(name, "car")
        box, time = fit_at(
            capture,
            capture.frames[frame].camera.time,
            at,
            category=category,
            size=known.size if known else sizes.get(name),
            heading=headings.get(name, None if known is None else _heading(known, frame, capture)),
        )
        _key(found, name, category, box.size, Keyframe(time, box.pose))
    for name, frame, numbers in _at_frames("--place", args.place, capture, (4,)):
        known = found.get(name)
        size = known.size if known else sizes.get(name)
        if size is None:
            raise CommandLineError(f"--place: {name} is new; give its --size {name}=L,W,H as well.")
        pose = _upright(numbers, float(size[2]))
        category = known.category if known else categories.get(name, "car")
        _key(found, name, category, size, Keyframe(capture.frames[frame].camera.time, pose))
    for name, frame, numbers in _at_frames("--move", args.move, capture, (3, 4)):
        time = capture.frames[frame].camera.time
        pose = _known(found, name).pose_at(time)
        if pose is None:
            raise CommandLineError(f"--move: {name} has no box at frame {frame}; --place it there.")
        found[name] = found[name].with_keyframe(Keyframe(time, pose @ _step(numbers)))
    for name, frame, _ in _at_frames("--drop", args.drop, capture, (0,)):
        time = capture.frames[frame].camera.time
        found[name] = _known(found, name).without_keyframe(time)
    for name in args.follow:
        found[name] = _followed(capture, _known(found, name))
    return found


def _known(found: Found, name: str) -> Annotation:
    if name not in found:
        names = ", ".join(found) or "none"
        raise CommandLineError(f"there is no box {name!r}; there is {names}.")
    return found[name]


def _key(found: Found, name: str, category: str, size: Tensor, keyframe: Keyframe) -> None:
    if name in found:
        found[name] = found[name].with_keyframe(keyframe)
    else:
        found[name] = Annotation(name, category, size.to(torch.float32), (keyframe,))


def _resized(annotation: Annotation, size: Tensor) -> Annotation:
    """With another size on the same ground: the middle of the bottom stays."""
    lift = torch.eye(4, dtype=torch.float64)
    lift[2, 3] = (float(size[2]) - float(annotation.size[2])) / 2
    keys = tuple(replace(key, pose=key.pose @ lift) for key in annotation.keyframes)
    return replace(annotation, size=size, keyframes=keys)


def _heading(annotation: Annotation, frame: int, capture: Capture) -> float:
    """Of the box at a frame, or at its nearest key frame, rad."""
    time = capture.frames[frame].camera.time
    key = min(annotation.keyframes, key=lambda key: abs(key.time - time))
    pose = annotation.pose_at(time)
    pose = key.pose if pose is None else pose
    return math.atan2(float(pose[1, 0]), float(pose[0, 0]))


def _under(capture: Capture, frame: int, numbers: list[float]) -> Tensor:
    return place_at(capture, frame, (numbers[0], numbers[1]))


def _upright(numbers: list[float], height: float) -> Tensor:
    x, y, z, turn = numbers
    pose = _step([0.0, 0.0, 0.0, turn])
    pose[:3, 3] = torch.tensor([x, y, z + height / 2])
    return pose


def _step(numbers: list[float]) -> Tensor:
    x, y, z, turn = [*numbers, 0.0][:4]
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    step = torch.eye(4, dtype=torch.float64)
    step[:2, :2] = torch.tensor([[cosine, -sine], [sine, cosine]])
    step[:3, 3] = torch.tensor([x, y, z])
    return step


def _followed(capture: Capture, annotation: Annotation) -> Annotation:
    work, line = follow(capture, annotation), ProgressLine(f"following {annotation.name}")
    try:
        while True:
            line.update(*next(work))
    except StopIteration as end:
        return end.value
    finally:
        line.close()


# ---------------------------------------------------------------------------------------- words


def _pairs(option: str, texts: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for text in texts:
        name, equals, rest = text.partition("=")
        if not (name and equals and rest):
            raise CommandLineError(f"{option}: found {text!r}; expected NAME=...")
        yield name, rest


def _at_frames(
    option: str, texts: tuple[str, ...], capture: Capture, counts: tuple[int, ...]
) -> Iterator[tuple[str, int, list[float]]]:
    """Name, frame and numbers of NAME=FRAME:NUMBERS."""
    for name, rest in _pairs(option, texts):
        index, _, text = rest.partition(":")
        if not index.strip().isdigit() or int(index) >= len(capture):
            raise CommandLineError(
                f"{option}: found frame {index!r}; the recording has frames 0 to {len(capture) - 1}."
            )
        numbers = list(parse_numbers(text)) if text else []
        if len(numbers) not in counts:
            wanted = " or ".join(str(count) for count in counts)
            raise CommandLineError(
                f"{option}: found {len(numbers)} numbers in {rest!r}; expected {wanted}."
            )
        yield name, int(index), numbers


def _size(text: str) -> Tensor:
    numbers = parse_numbers(text)
    if len(numbers) != 3 or min(numbers) <= 0 or max(numbers) > 100:
        raise CommandLineError(f"--size: found {text!r}; expected LENGTH,WIDTH,HEIGHT in metres.")
    return torch.tensor(numbers, dtype=torch.float32)


def _turn(option: str, text: str) -> float:
    numbers = parse_numbers(text)
    if len(numbers) != 1:
        raise CommandLineError(f"{option}: found {text!r}; expected degrees.")
    return math.radians(numbers[0])


# --------------------------------------------------------------------------------------- output


def _draw(args: Boxes, capture: Capture, found: Found) -> None:
    """The sheet, or a folder of pictures."""
    from faithfusion_studio.annotating.overlay import captioned, drawn, sheet
    from faithfusion_studio.io.pictures import filled_folder, write_png

    assert args.picture is not None
    limits = {"--every": (args.every, 10_000), "--columns": (args.columns, 20)}
    for option, (value, most) in {**limits, "--width": (args.width, 8192)}.items():
        if not 1 <= value <= most:
            raise CommandLineError(f"{option}: found {value}; expected 1 to {most}.")
    chosen = parse_range(args.frames, len(capture))
    indices = range(chosen.start, chosen.stop, args.every)
    annotations = list(found.values())
    if args.picture.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        stems = frame_stems(capture, len(capture))
        with filled_folder(args.picture, CommandLineError) as folder:
            for index in indices:
                write_png(drawn(capture.frames[index], annotations), folder / f"{stems[index]}.png")
        return
    pictures = [
        captioned(drawn(capture.frames[i], annotations, width=args.width), f"frame {i}")
        for i in indices
    ]
    _write(sheet(pictures, args.columns), args.picture)


def _write(picture: Any, path: Path) -> None:
    import cv2

    from faithfusion_studio.io.atomic import write_atomically

    encoded = cv2.imencode(path.suffix.lower(), picture[:, :, ::-1])[1]
    with write_atomically(path, CommandLineError) as temporary:
        temporary.write_bytes(encoded.tobytes())


def _values(annotation: Annotation) -> dict[str, Any]:
    track = annotation.track()
    return {
        "name": annotation.name,
        "category": annotation.category,
        "size": annotation.size.tolist(),
        "key_frames": len(annotation.keyframes),
        "by_hand": sum(key.by_hand for key in annotation.keyframes),
        "start": annotation.times[0],
        "stop": annotation.times[-1],
        "travel": track.travel,
        "moves": track.travel > MOVING,
    }


def _line(box: dict[str, Any]) -> str:
    length, width, height = box["size"]
    moves = "moves" if box["moves"] else f"stays within {MOVING:g} m, so it is background"
    return (
        f"{box['name']}: {box['category']} {length:.2f} x {width:.2f} x {height:.2f} m, "
        f"{box['key_frames']} key frames ({box['by_hand']} by hand) from {box['start']:g} to "
        f"{box['stop']:g} s, {box['travel']:.1f} m: {moves}."
    )
