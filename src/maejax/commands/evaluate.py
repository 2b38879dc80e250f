"""`maejax evaluate`: the encoder of a checkpoint evaluated on labelled images, every protocol in one report."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from maejax.commands.command import check_writable, command_line
from maejax.commands.features import Encode
from maejax.console import plain
from maejax.errors import InputError
from maejax.storage.redact import redact

NO_CONTROL = "Accuracies of the frozen encoder, without a control."


@dataclass(frozen=True)
class EvaluateCommand(Encode):
    """Evaluate an encoder on labelled images, and untrained for control; writes OUT/report.json and OUT/report.html."""

    ckpt: str = field(metadata={"positional": "CKPT"})
    """Run directory or checkpoint, or anything else that `maejax inspect` takes."""
    train_dataset_shards: str = ""
    """Labelled images to fit the probes on: anything that `maejax train` takes."""
    valid_dataset_shards: str = ""
    """Labelled images to test with."""
    protocol: str = "all"
    """knn, fewshot, linear, attentive, efficient, several of these with commas between, or all."""
    out: str = "evaluation"
    """Folder for the report."""
    pool: str = ""
    """Features for all protocols but attentive and efficient: cls, mean (of the patch tokens), cls+mean, or map (the
    encoder's own attention pooling). Empty: cls+mean, or mean where there is no cls token."""
    cache_dir: str = ""
    """Folder that keeps fetched shards. Empty: two are here at most, and each is fetched again for the control and for
    pictures."""
    no_control: bool = False
    """Leave the untrained encoder out."""
    seed: int = 0
    """Seed of the untrained weights, draws and probes."""

    def outputs(self) -> dict[str, bool]:
        """Name what is written."""
        return {"out": True}

    def run(self, console: Console) -> dict[str, Any]:
        """Evaluate, write the report and return what report.json holds; raises InputError before encoding."""
        from maejax.data.form import form_for
        from maejax.evaluation.evaluated import evaluate_encoder, named_protocols
        from maejax.evaluation.labelled import open_labelled, pair

        protocols = named_protocols(self.protocol)
        self.check(self.pool)
        shards = {"train": self.train_dataset_shards, "valid": self.valid_dataset_shards}
        for name in [name for name, spec in shards.items() if not spec]:
            remedy = "name labelled images: class folders, tar shards, .npz"
            raise InputError(f"--{name}-dataset-shards is missing; {remedy}")
        check_writable("--out", self.out, folder=True)
        first = self.join()
        console = console if first else Console(quiet=True)
        given: dict[str, Any] = {"labels": self.labels or None, "cache_dir": self.cache_dir}
        data = pair(*(open_labelled(spec, **given) for spec in shards.values()))
        encoder = self.load(self.ckpt).encoder
        found = evaluate_encoder(
            encoder,
            data,
            protocols,
            form_for(encoder.config, self),
            pool=self.chosen_pool(self.pool, encoder.config, -1),
            control=not self.no_control,
            seed=self.seed,
            closely=first,
            log=partial(plain, console),
            **self.reading,
        )
        result = {
            "checkpoint": redact(self.ckpt),
            "train": redact(self.train_dataset_shards),
            "test": redact(self.valid_dataset_shards),
            "classes": list(found.classes),
            "images": found.images,
            "unreadable": found.unreadable,
            "features": found.pool,
            "seed": self.seed,
            "scores": found.scores,
            "seconds": found.seconds,
        }
        if not first:
            return {}
        return self._write(result, protocols, found.attention, found.closeup, encoder.config)

    def _write(
        self, result: dict[str, Any], protocols: tuple[str, ...], attention: Any, closeup: Any, config: Any
    ) -> dict[str, Any]:
        from maejax.evaluation.attention_map import LEGEND, write_attention
        from maejax.evaluation.protocols import DRAWS
        from maejax.evaluation.scores import explain
        from maejax.pages.closeup_parts import closeup_parts
        from maejax.pages.report import Report, write_report
        from maejax.training.rundir import write_json

        methods = {
            "knn": "k-NN weighs by cosine similarity at temperature .07",
            "fewshot": f"shots are images of each class, regularised least squares, mean over {DRAWS} draws",
            "linear": "linear is logistic regression on all labels",
            "attentive": "attentive is one learned query over all tokens",
            "efficient": "efficient is a few learned queries over the patch tokens, without keys",
        }
        train, test, out = result["images"]["train"], result["images"]["test"], Path(self.out)
        level = 100 * (0.16 / test) ** 0.5  # the standard error of an accuracy of 80 %
        note = f"{train:,} training and {test:,} test images; one standard error is {level:.1f} points. "
        note += f"Features: {result['features']}; {'; '.join(methods[name] for name in protocols)}."
        if lost := {name: count for name, count in result["unreadable"].items() if count}:
            note += f" Unreadable images were left out: {', '.join(f'{lost[name]:,} of {name}' for name in lost)}."
        if not self.no_control:
            result["explanation"] = explain(result["scores"], measured(result), level)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "report.json", result)
        pictures = {}
        if attention is not None:
            write_attention(out / "attention.png", attention, config)
            pictures[LEGEND] = out / "attention.png"
        report = Report(
            title="Evaluation of a frozen encoder",
            scores=result["scores"],
            seconds=result["seconds"],
            config={key: result[key] for key in ("checkpoint", "train", "test", "features", "seed")},
            command=f"maejax evaluate {result['checkpoint']} --train-dataset-shards '{result['train']}' "
            f"--valid-dataset-shards '{result['test']}' --protocol {self.protocol} --seed {self.seed}",
            measures=measured(result),
            sentence=result.get("explanation", NO_CONTROL),
            notes=[note],
            pictures=pictures,
            more=closeup_parts(closeup, result["classes"]),
        )
        write_report(out / "report.html", report)
        return result

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print the scores as a table, what they mean, and the path of the report."""
        from maejax.evaluation.scores import score_table

        if not result:  # the first process has it
            return
        console.print(score_table(result["scores"], measured(result)))
        console.print(result.get("explanation", NO_CONTROL), highlight=False)
        plain(console, f"report   {self.out.rstrip('/')}/report.html")

    def following(self, result: dict[str, Any]) -> str:
        """Return what makes use of the encoder."""
        features = command_line("features", self.ckpt, "IMAGES", "--out", "features.npz", *self.stated())
        return f"{features}, {command_line('export', self.ckpt, *self.stated())}" if result else ""


def measured(result: dict[str, Any]) -> dict[str, str]:
    """Return the titles of the measures that a result has, by name."""
    from maejax.evaluation.protocols import MEASURES

    return {name: title for name, title in MEASURES.items() if name in result["scores"]["pretrained"]}
