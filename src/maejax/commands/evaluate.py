"""`maejax evaluate`: the encoder of a checkpoint evaluated on labelled images, every protocol in one report."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from maejax.commands.command import check_writable, prepare_devices
from maejax.commands.features import Encode
from maejax.console import plain
from maejax.errors import InputError


@dataclass(frozen=True)
class EvaluateCommand(Encode):
    """Evaluate a frozen encoder on labelled images, and the same encoder untrained as a control.

    Writes OUT/report.json and OUT/report.html.
    """

    ckpt: str = field(metadata={"positional": "CKPT"})
    """Run directory or checkpoint, or anything else that `maejax inspect` takes."""
    train_dataset_shards: str = ""
    """Labelled images to fit the probes on: anything that `maejax train` takes."""
    valid_dataset_shards: str = ""
    """Labelled images to test with."""
    protocol: str = "all"
    """knn, fewshot, linear, attentive, several of these with commas between, or all."""
    out: str = "evaluation"
    """Folder for the report."""
    pool: str = "cls+mean"
    """Features for all protocols but attentive: cls, mean (of the patch tokens) or cls+mean."""
    no_control: bool = False
    """Leave the untrained encoder out."""
    seed: int = 0
    """Seed of the untrained weights, draws and probes."""

    def run(self, console: Console) -> dict[str, Any]:
        """Evaluate, write the report and return what report.json holds; raises InputError before encoding."""
        from maejax.evaluate.protocols import MEASURES, PROTOCOLS, pair, score, untrained_like

        protocols = PROTOCOLS if self.protocol == "all" else tuple(self.protocol.split(","))
        if unknown := [name for name in protocols if name not in PROTOCOLS]:
            raise InputError(f"--protocol {unknown[0]}: choose {', '.join(PROTOCOLS)} (several with commas), or all")
        for flag in ("train_dataset_shards", "valid_dataset_shards"):
            if not getattr(self, flag):
                name = flag.replace("_", "-")
                raise InputError(f"--{name} is missing; name labelled images: class folders, tar shards, .npz")
        out = Path(self.out)
        check_writable("--out", out, folder=True)
        prepare_devices()
        from maejax.data.pipeline import check_readable
        from maejax.data.sources import open_source
        from maejax.evaluate.encoding import POOLS
        from maejax.evaluate.feature_file import encoder_of
        from maejax.weights.files import load

        self.check(self.pool, POOLS)
        train, test = (
            open_source(s, labels=self.labels or None) for s in (self.train_dataset_shards, self.valid_dataset_shards)
        )
        data = pair(train, test)
        encoder = encoder_of(load(self.ckpt))
        for source in (data.train, data.test):
            check_readable(source, encoder.channels)
        encoders = {"pretrained": encoder}
        if not self.no_control:
            encoders["untrained"] = untrained_like(encoder, self.seed)
        scores: dict[str, dict[str, float]] = {}
        seconds: dict[str, float] = {}
        for kind, evaluated in encoders.items():
            start = time.monotonic()
            scores[kind] = score(
                evaluated,
                data,
                protocols,
                pool=self.pool,  # type: ignore[arg-type]
                crop_ratio=self.test_crop_ratio,
                batch_size=self.batch_size,
                workers=self.workers,
                seed=self.seed,
                tell=lambda what, kind=kind: plain(console, f"{kind}: {what}"),
            )
            seconds[kind] = round(time.monotonic() - start, 1)
        result = {
            "checkpoint": self.ckpt,
            "train": self.train_dataset_shards,
            "test": self.valid_dataset_shards,
            "classes": list(data.classes),
            "images": {"train": int((data.train.labels >= 0).sum()), "test": int((data.test.labels >= 0).sum())},
            "features": self.pool,
            "seed": self.seed,
            "scores": scores,
            "seconds": seconds,
        }
        measures = {name: title for name, title in MEASURES.items() if name in scores["pretrained"]}
        return self._write(out, result, measures, protocols)

    def _write(
        self, out: Path, result: dict[str, Any], measures: dict[str, str], protocols: tuple[str, ...]
    ) -> dict[str, Any]:
        """Write report.json and report.html."""
        from maejax.evaluate.report import write_report
        from maejax.evaluate.scores import explain_control
        from maejax.training.rundir import write_json

        level = 100 * (0.16 / result["images"]["test"]) ** 0.5  # the standard error of an accuracy of 80 %
        if not self.no_control:
            result["explanation"] = explain_control(result["scores"], measures, level)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "report.json", result)
        write_report(
            out / "report.html",
            title="A frozen encoder, evaluated",
            scores=result["scores"],
            seconds=result["seconds"],
            losses={},
            picture_paths={},
            config={key: result[key] for key in ("checkpoint", "train", "test", "features", "seed")},
            command=f"maejax evaluate {self.ckpt} --train-dataset-shards '{self.train_dataset_shards}' "
            f"--valid-dataset-shards '{self.valid_dataset_shards}' --protocol {self.protocol} --seed {self.seed}",
            measures=measures,
            sentence=result.get("explanation", NO_CONTROL),
            notes=[_note(protocols, result["images"], self.pool, level)],
        )
        return result

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print the scores as a table, what they mean, and the path of the report."""
        from maejax.evaluate.protocols import MEASURES
        from maejax.evaluate.scores import score_table

        measures = {name: title for name, title in MEASURES.items() if name in result["scores"]["pretrained"]}
        console.print(score_table(result["scores"], measures))
        console.print(result.get("explanation", NO_CONTROL), highlight=False)
        plain(console, f"report   {Path(self.out) / 'report.html'}")


NO_CONTROL = "Accuracies of the frozen encoder, without a control."


def _note(protocols: tuple[str, ...], images: dict[str, int], pool: str, level: float) -> str:
    from maejax.evaluate.protocols import DRAWS

    methods = {
        "knn": "k-NN weighs by cosine similarity at temperature .07",
        "fewshot": f"shots are images of each class, regularised least squares, mean over {DRAWS} draws",
        "linear": "linear is logistic regression on all labels",
        "attentive": "attentive is one learned query over all tokens",
    }
    return (
        f"{images['train']:,} training and {images['test']:,} test images; one standard error is {level:.1f} points. "
        f"Features: {pool}; " + "; ".join(methods[name] for name in protocols) + "."
    )
