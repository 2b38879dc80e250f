"""A training as it was asked for: its flags completed by weights and images, then done."""

from collections.abc import Sequence

from rich.console import Console

from maejax.config import Config
from maejax.tasks import chosen, classify, pretrain
from maejax.tasks.configured import saved_run
from maejax.tasks.images import Sources
from maejax.tasks.run import Finished
from maejax.tasks.settings import Asked
from maejax.tasks.transfer import FACTS, with_facts_of_file
from maejax.training.log import Callback


def resolve(
    asked: Asked, budget: str | None, console: Console, *, opens: bool, sources: Sources | None = None
) -> tuple[Config, Sources | None]:
    """Complete the flags that were asked for by the file of `--pretrained-ckpt` and, if `opens`, by the images.

    With a `budget`, "" for the usual one, sizes, batch, epochs and rate are chosen; without one, epochs become steps.
    Also returns the images if they are open already, as `sources` may be. Raises InputError if something is wrong.
    """
    config, run = asked.config, asked.config.run
    saved = saved_run(config) if opens or (run.pretrained_ckpt and not run.eval_only) else None
    config, lines = with_facts_of_file(config, asked.given, saved)
    for line in lines:
        console.print(f"weights  {line}", highlight=False)
    if not opens:
        return config, sources
    known = {*asked.given, *(FACTS if run.pretrained_ckpt else ())}
    return chosen.fill_in(asked._replace(config=config, given=known), budget, saved, console, sources)


def run(
    config: Config, console: Console, *, sources: Sources | None = None, callbacks: Sequence[Callback] = ()
) -> Finished:
    """Do the task of `--mode`, as `pretrain.run` and `classify.run`; each callback gets every line of metrics."""
    task = pretrain if config.run.mode == "pretrain" else classify
    return task.run(config, console, sources=sources, callbacks=callbacks)
