"""Judging the encoder of a checkpoint on labelled images: every protocol in one report (`maejax evaluate`)."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from maejax.data.pipeline import check_readable
from maejax.data.sources import open_source
from maejax.errors import InputError
from maejax.evaluate.encoding import POOLS
from maejax.evaluate.protocols import DRAWS, MEASURES, PROTOCOLS, pair, score, untrained_like
from maejax.evaluate.report import Report, write_report
from maejax.evaluate.scores import explain_control, score_table
from maejax.training.rundir import write_json
from maejax.weights.files import load


def run(
    console: Console,
    ckpt: str,
    train: str,
    test: str,
    out: Path,
    *,
    protocol: str,
    pool: str,
    labels: str | None,
    crop_ratio: float,
    batch_size: int,
    workers: int,
    control: bool,
    seed: int,
    command: str,
) -> dict[str, Any]:
    """Judge a checkpoint, print the table, write report.json and report.html to `out`; returns what the former holds.

    Raises InputError and InputError for wrong input, before anything is encoded.
    """
    protocols = PROTOCOLS if protocol == "all" else tuple(protocol.split(","))
    if unknown := [name for name in protocols if name not in PROTOCOLS]:
        raise InputError(f"--protocol {unknown[0]}: choose {', '.join(PROTOCOLS)} (several with commas), or all")
    if pool not in POOLS:
        raise InputError(f"--pool {pool}: choose {', '.join(POOLS)}")
    if batch_size < 1 or workers < 0 or not 0 < crop_ratio <= 1:
        raise InputError("--batch-size is at least 1, --workers at least 0, --test-crop-ratio above 0 and at most 1")
    for flag, spec in (("--train-dataset-shards", train), ("--valid-dataset-shards", test)):
        if not spec:
            raise InputError(f"{flag} is missing; name labelled images: class folders, tar shards, .npz")
    data = pair(open_source(train, labels=labels), open_source(test, labels=labels))
    encoder = load(ckpt).encoder
    for source in (data.train, data.test):
        check_readable(source, encoder.config.channels)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}; choose another place") from None
    encoders = {"pretrained": encoder} | ({"untrained": untrained_like(encoder, seed)} if control else {})
    scores: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    for kind, judged in encoders.items():
        start = time.monotonic()
        scores[kind] = score(
            judged,
            data,
            protocols,
            pool=pool,
            crop_ratio=crop_ratio,
            batch_size=batch_size,
            workers=workers,  # type: ignore[arg-type]
            seed=seed,
            log=lambda what, kind=kind: console.print(f"{kind}: {what}", highlight=False),
        )
        seconds[kind] = round(time.monotonic() - start, 1)
    measures = {name: title for name, title in MEASURES.items() if name in scores["pretrained"]}
    images = {"train": int((data.train.labels >= 0).sum()), "test": int((data.test.labels >= 0).sum())}
    result = {
        "checkpoint": ckpt,
        "train": train,
        "test": test,
        "classes": list(data.classes),
        "images": images,
        "features": pool,
        "seed": seed,
        "scores": scores,
        "seconds": seconds,
    }
    level = 100 * (0.16 / images["test"]) ** 0.5  # the standard error of an accuracy of 80 %
    sentence = "Accuracies of the frozen encoder, without a control."
    if control:
        sentence = result["explanation"] = explain_control(scores, measures, level)
    write_json(out / "report.json", result)
    report = Report(
        title="Evaluation of a frozen encoder",
        scores=scores,
        seconds=seconds,
        config={key: result[key] for key in ("checkpoint", "train", "test", "features", "seed")},
        command=command,
        measures=measures,
        sentence=sentence,
        notes=[_note(protocols, images, pool, level)],
    )
    write_report(out / "report.html", report)
    console.print(score_table(scores, measures))
    console.print(sentence, highlight=False)
    console.print(f"report   {out / 'report.html'}", highlight=False)
    return result


def _note(protocols: tuple[str, ...], images: dict[str, int], pool: str, level: float) -> str:
    told = {
        "knn": "k-NN weighs by cosine similarity at temperature .07",
        "fewshot": f"shots are images of each class, regularised least squares, mean over {DRAWS} draws",
        "linear": "linear is logistic regression on all labels",
        "attentive": "attentive is one learned query over all tokens",
    }
    return (
        f"{images['train']:,} training and {images['test']:,} test images; one standard error is {level:.1f} points. "
        f"Features: {pool}; " + "; ".join(told[name] for name in protocols) + "."
    )
