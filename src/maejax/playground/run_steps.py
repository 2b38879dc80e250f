"""The models of a run, one for each of its checkpoints, read when they are asked for."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax

from maejax.errors import InputError
from maejax.models.build import initial_model
from maejax.storage import mirror
from maejax.training.checkpoint import saved_steps
from maejax.training.rundir import BEST, CHECKPOINTS, read_config
from maejax.weights import run_directory
from maejax.weights.weights import model_of

KEPT_BYTES = 2**30  # of models in memory, beside the one that was named


class RunSteps:
    """The models of a run by their step, or the only one of other weights, which has no step.

    `first` is the model that was named, and `step` its step, None for weights that are no run. Step 0 is the model
    before training, where nothing but a seed made it. A run that trains may delete its older checkpoints meanwhile.
    """

    def __init__(self, model: Any, checkpoint: Path | None = None, *, raw: bool = False):
        self.first, self.raw, self.run = model, raw, None
        self.step: int | None = None
        self._seed: int | None = None
        self._remote: list[int] = []
        self._kept: OrderedDict[int, Any] = OrderedDict()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
        self._most = max(1, KEPT_BYTES // size)
        if checkpoint is not None:
            self.run, self.step = checkpoint.parent.parent, int(checkpoint.name)
            flags = (read_config(self.run) or {}).get("flags", {})
            if not flags.get("pretrained_ckpt") and flags.get("mode") == "pretrain" and model.components is None:
                self._seed = flags.get("init_seed", 0)

    def listed(self) -> list[int]:
        """Return the steps that there are now, in order; none for weights that are no run.

        Those of a run in a bucket are looked up once: that takes as long as several answers.
        """
        if self.run is None or self.step is None:
            return []
        if self._remote:
            return self._remote
        saved = {step for folder in (CHECKPOINTS, BEST) for step in saved_steps(self.run / folder)}
        found = sorted(saved | {self.step} | ({0} if self._seed is not None else set()))
        self._remote = found if mirror.address_of(self.run) else []
        return found

    def model(self, step: int | None) -> Any:
        """Return the model of a step, None for the one that was named; raises InputError if there is none any more."""
        if step is None or step == self.step:
            return self.first
        if step not in self._kept:
            while len(self._kept) >= self._most:
                self._kept.popitem(last=False)
            self._kept[step] = self._read(step)
        self._kept.move_to_end(step)
        return self._kept[step]

    def _read(self, step: int) -> Any:
        if step == 0 and self._seed is not None:
            return initial_model(self.first.config, self.first.compute, self._seed)
        assert self.run is not None
        for folder in (CHECKPOINTS, BEST):
            if step in saved_steps(self.run / folder):
                try:
                    return model_of(run_directory.read(self.run / folder / str(step), raw=self.raw))
                except Exception:  # Orbax raises nearly anything for files that vanish while it reads
                    if step in saved_steps(self.run / folder):
                        raise
        raise InputError(f"checkpoint {step} is gone: a run in training keeps its newest alone; choose another")
