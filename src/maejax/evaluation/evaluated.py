"""An encoder evaluated on labelled images, beside the same encoder untrained."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from maejax.data.agreement import agree
from maejax.data.form import Form
from maejax.data.pipeline import check_readable
from maejax.data.sources import Source
from maejax.errors import InputError
from maejax.evaluation.attention_map import AttentionMaps
from maejax.evaluation.closeup import Closeup
from maejax.evaluation.labelled import EvalSplits
from maejax.evaluation.protocols import PROTOCOLS, score, untrained_like
from maejax.models.pooling import Pool
from maejax.models.vit import VisionTransformer


class Evaluated(NamedTuple):
    """The scores of an encoder and of its control on labelled images.

    `scores` has accuracies in percent, {"pretrained": {"linear": 86.4, ...}, "untrained": {...}}; `NAME_std` is a
    standard deviation over draws. `images` counts those that were used, "train" and "test", and `unreadable` those with
    a label that could not be read. `pool` names the features. `seconds` are those of each encoder. `attention` and
    `closeup` are for the report.
    """

    scores: dict[str, dict[str, float]]
    images: dict[str, int]
    unreadable: dict[str, int]
    classes: tuple[str, ...]
    pool: Pool
    seconds: dict[str, float]
    attention: AttentionMaps | None
    closeup: Closeup | None


def named_protocols(text: str) -> tuple[str, ...]:
    """Read a value of `--protocol`: names with commas between, or all. Raises InputError for an unknown one."""
    protocols = PROTOCOLS if text == "all" else tuple(text.split(","))
    if unknown := [name for name in protocols if name not in PROTOCOLS]:
        raise InputError(f"--protocol {unknown[0]}: choose {', '.join(PROTOCOLS)} (several with commas), or all")
    return protocols


def evaluate_encoder(
    encoder: VisionTransformer,
    data: EvalSplits,
    protocols: Sequence[str],
    form: Form,
    *,
    pool: Pool,
    control: bool = True,
    seed: int = 0,
    closely: bool = False,
    log: Callable[[str], None] = lambda _: None,
    **reading: Any,
) -> Evaluated:
    """Evaluate an encoder by each protocol and, with `control`, the same encoder untrained.

    `form` is that of the images. `closely` looks at single images too. `log` receives the problems of the images and a
    line before each stage; `reading` is as of `encode_source`. Raises InputError if no image can be read.
    """
    for source in (each for each in data[:2] if isinstance(each, Source)):
        check_readable(source, agree(source, form).channels)
        for problem in source.problems:
            log(problem)
    encoders = {"pretrained": encoder} | ({"untrained": untrained_like(encoder, seed)} if control else {})
    scored, seconds = {}, {}
    for kind, each in encoders.items():
        start = time.monotonic()
        say: Callable[[str], None] = lambda what, kind=kind: log(f"{kind}: {what}")  # noqa: E731
        closer = closely and kind == "pretrained"
        more = {"log": say, "closely": closer, "form": form}
        scored[kind] = score(each, data, protocols, pool=pool, seed=seed, **more, **reading)
        seconds[kind] = round(time.monotonic() - start, 1)
    first = scored["pretrained"]
    scores = {kind: each.accuracies for kind, each in scored.items()}
    return Evaluated(
        scores, first.images, first.unreadable, first.classes, pool, seconds, first.attention, first.closeup
    )
