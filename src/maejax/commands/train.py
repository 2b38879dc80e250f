"""`maejax train`: pre-training, probing, fine-tuning or scoring, by the flags of a configuration."""

import json
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from rich.console import Console

from maejax.commands.command import DONE, STOPPED, Command, check_writable, prepare_devices
from maejax.commands.early_stop import early_stop
from maejax.config import Config, flags
from maejax.console import plain


@dataclass(frozen=True)
class TrainCommand(Command):
    """Train a masked autoencoder on your images, or probe, fine-tune or score one (--mode).

    Results go to OUTPUT_DIR/NAME: config.json, metrics.jsonl, checkpoints, pictures of reconstructions. The same
    command started again continues where it stopped. Underscores and hyphens in flags mean the same.
    """

    config: Config = field(default_factory=Config, metadata={"title": ""})
    json: bool = field(default=False, init=False)  # --print-config prints JSON; a run writes it into its folder

    given: frozenset[str] = field(default=frozenset(), metadata={"hidden": True})
    """Names of the flags on the command line; the file of --pretrained-ckpt decides about some of the others."""

    to_stdout: ClassVar[bool] = True

    def run(self, console: Console) -> dict[str, Any]:
        """Train, or score with --eval-only; returns the flags with --print-config, else whether the run is done."""
        run = self.config.run
        if run.print_config:
            from maejax.training.schedule import peak_rate

            rate, batch = self.config.optimization.learning_rate, self.config.data.train_batch_size
            return {**flags(self.config), "peak_learning_rate": peak_rate(rate, batch)}
        with early_stop():
            return self._train(console)

    def _train(self, console: Console) -> dict[str, Any]:
        """Train or score in this process, perhaps one of several."""
        run, machine = self.config.run, self.config.machine
        from maejax.distributed.processes import join

        first = prepare_devices(
            partial(
                join,
                distributed=machine.distributed,
                coordinator=machine.coordinator,
                num_processes=machine.num_processes,
                process_id=machine.process_id,
                silent_seconds=machine.silent_seconds,
            )
        )
        console = console if first else Console(quiet=True)
        if first and "://" not in run.output_dir:
            check_writable("--output-dir", f"{run.output_dir}/{run.name or run.mode}", folder=True)
        from maejax.storage.mirror import shown
        from maejax.tasks import classify, pretrain
        from maejax.tasks.configured import saved_run
        from maejax.tasks.transfer import with_facts_of_file

        saved = saved_run(self.config) if run.pretrained_ckpt and not run.eval_only else None
        config, lines = with_facts_of_file(self.config, self.given, saved)
        for line in lines:
            console.print(f"weights  {line}", highlight=False)
        if run.eval_only:
            from maejax.tasks import eval_only  # training from scratch reads no weights

            eval_only.run(config, console)
            return {"done": True}
        finished = (pretrain if run.mode == "pretrain" else classify).run(config, console)
        if finished.done:
            say_next(console, shown(finished.directory), run.mode)
        else:
            say_stopped(console, shown(finished.directory))
        return {"done": finished.done}

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print the flags of --print-config; a run has printed its log."""
        if self.config.run.print_config:
            print(json.dumps(result, indent=2))

    def exit_code(self, result: dict[str, Any]) -> int:
        """Return 75 for a run that was stopped after saving."""
        return DONE if result.get("done", True) else STOPPED


def say_next(console: Console, directory: str, mode: str) -> None:
    """Print what to do with a run that is done."""
    use = f"maejax train --mode {mode} --eval-only --pretrained-ckpt {directory} --valid-dataset-shards IMAGES"
    if mode == "pretrain":
        use = f"maejax reconstruct {directory} PHOTO.jpg, maejax evaluate {directory} (needs labelled images)"
    use += f", maejax export {directory}, maejax compare {directory} OTHER_RUN"
    plain(console, f"page     {directory}/report.html")
    plain(console, f"done     {directory}; next: {use}")


def say_stopped(console: Console, directory: str) -> None:
    """Print how to continue after a stop."""
    console.print(f"stopped and saved in {directory}; start the same command again to go on", highlight=False)
