"""Reconstructions of the same few images over the time of a run: one small file, and a slider of them on a page."""

import json
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maejax.storage.atomic import write_whole

FILE = "reconstructions.json"
IMAGES = 4  # of each validation
FRAMES = 24  # validations that are kept
_SIDE = 224  # pixels of an image at most
_SMALL = 100  # pixels of a side below which an image is kept without loss and shown with sharp edges


def add_frame(directory: Path, step: int, original: np.ndarray, masked: np.ndarray, pasted: np.ndarray) -> None:
    """Add the pictures [B, H, W, C] of a step to a run directory, as uint8; those of later steps are dropped.

    Of more than 24 validations those are kept that are most evenly spread, with the first and the last.
    """
    kept = read_frames(directory) or {}
    frames = {k: frame for k, frame in kept.get("frames", {}).items() if int(k) < step}
    frames[str(step)] = as_urls(pasted[:IMAGES])
    while len(frames) > FRAMES:
        steps = [int(k) for k in frames]
        crowded = min(range(1, len(steps) - 1), key=lambda i: steps[i + 1] - steps[i - 1])
        del frames[str(steps[crowded])]
    fixed = {"original": as_urls(original[:IMAGES]), "masked": as_urls(masked[:IMAGES])}
    write_whole(directory / FILE, json.dumps({**fixed, "side": min(original.shape[1:3]), "frames": frames}))


def read_frames(directory: Path) -> dict[str, Any] | None:
    """Read the pictures of a run: `original`, `masked` and `frames` by step, each as the addresses of pictures."""
    path = directory / FILE
    return json.loads(path.read_text()) if path.exists() else None


def as_urls(pictures: np.ndarray, most: int = _SIDE) -> list[str]:
    """Return pictures [B, H, W, C], uint8, as addresses that hold them, of `most` pixels a side."""
    urls, side = [], min(pictures.shape[1:3])
    kind, options = ("png", {"optimize": True}) if side < _SMALL else ("jpeg", {"quality": 85})
    for picture in pictures:
        image = Image.fromarray(picture if picture.shape[-1] == 3 else picture[..., 0])
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
        image.save(file := BytesIO(), kind, **options)
        urls.append(f"data:image/{kind};base64,{b64encode(file.getvalue()).decode()}")
    return urls


def draw_slider(runs: Mapping[str, tuple[dict[str, Any] | None, float]]) -> str:
    """Return the pictures of runs as HTML, with one slider over all their validations; "" without any.

    `runs` holds what `read_frames` returns of each, and the step up to which they are shown.
    """
    shown: dict[str, dict[int, list[str]]] = {}
    for name, (kept, until) in runs.items():
        frames = {int(k): urls for k, urls in (kept or {}).get("frames", {}).items() if int(k) <= until}
        if frames:
            shown[name] = frames
    if not shown:
        return ""
    first, *others = (kept for kept, _ in runs.values() if kept)
    same = all(kept["masked"] == first["masked"] for kept in others)
    every = sorted({step for frames in shown.values() for step in frames})
    steps = [f"step {step:,}" for step in every]
    slider = (
        f'<div class="slider"><input type="range" min="0" max="{len(every) - 1}" value="{len(every) - 1}" '
        f'aria-label="validation" autocomplete="off"><output data-steps="{"|".join(steps)}">{steps[-1]}</output></div>'
    )
    rows = {"what the encoder sees": _quad(first["masked"], "with hidden patches")} if same else {}
    rows |= {name: _over_time(frames, every) for name, frames in shown.items()}
    rows |= {"original": _quad(first["original"], "original")} if same else {}
    small = " small" * (first["side"] < _SMALL)
    strip = "".join(f"<span>{escape(name)}</span><div>{row}</div>" for name, row in rows.items())
    return f'<figure>{slider if len(every) > 1 else ""}<div class="strip{small}">{strip}</div></figure>'


def _over_time(frames: Mapping[int, list[str]], steps: list[int]) -> str:
    """Return the frames of one run, each for the steps from its own to that of the next."""
    parts, own = [], sorted(frames)
    for step, following in zip(own, [*own[1:], float("inf")], strict=True):
        begins = -1 if step == own[0] else step
        at = [i for i, each in enumerate(steps) if begins <= each < following]
        numbers, hidden = " ".join(map(str, at)), " hidden" * (len(steps) - 1 not in at)
        row = _quad(frames[step], f"reconstructed at step {step:,}")
        parts.append(f'<div data-frame="{numbers}"{hidden}>{row}</div>')
    return "".join(parts)


def _quad(urls: list[str], about: str) -> str:
    images = "".join(f'<img src="{url}" alt="image {i + 1}, {escape(about)}">' for i, url in enumerate(urls))
    return f'<div class="quad">{images}</div>'
