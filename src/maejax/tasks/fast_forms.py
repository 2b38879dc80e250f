"""Choice of the fast forms of a run: those that its devices compute as plain products do."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from maejax.config import Config
from maejax.distributed.processes import name_of
from maejax.models.description import MAE, Compute, Network
from maejax.models.stack import Stack
from maejax.ops.check import Comparison, Sizes, compare_fast_forms
from maejax.tasks.checks import compute_of
from maejax.training.mesh import gather, make_mesh


def layer_sizes(model: Network, rows: int) -> list[Sizes]:
    """List the sizes at which training runs the layers of a model, with so many samples on a device."""
    encoder, everything = model.encoder, model.encoder.prefix + model.encoder.patches

    def sizes(part: str, stack: Stack, queries: int, tokens: int) -> Sizes:
        return Sizes(part, rows, queries, tokens, stack.dim, stack.heads, stack.mlp_dim, stack.activation)

    if not isinstance(model, MAE):
        return [sizes("encoder", encoder, everything, everything)]
    seen = encoder.prefix + (model.visible if model.mask_tokens == "decoder" else encoder.patches)
    teacher = model.teacher
    taught = [sizes("teacher", teacher, everything, everything)] if teacher else []
    if model.decoder.attention == "cross":
        crossed = replace(sizes("decoder", model.decoder, model.predicted, seen), crosses=True)
        return [sizes("encoder", encoder, seen, seen), crossed, *taught]
    return [
        sizes("encoder", encoder, seen, seen),
        *([sizes("decoder", model.decoder, everything, everything)] if model.decoder.layers > 1 else []),
        sizes("decoder's last block", model.decoder, model.predicted, everything),
        *taught,
    ]


def choose_forms(config: Config, model: Network) -> tuple[Compute, list[str]]:
    """Choose how a run computes its model: with the fast forms that pass their comparison in all processes.

    "auto" attention becomes the name of the form that passes, or "xla". Returns also a line for each form: its worst
    comparison. All processes call this together, before anything else is compiled. A comparison takes seconds, so it is
    repeated at every start of a run: devices and versions may be others then. On CPU nothing is compared.
    """
    compute, rows = compute_of(config), config.data.train_batch_size // config.optimization.grad_accum
    layers = layer_sizes(model, rows // jax.device_count())
    found = compare_fast_forms(layers, jnp.dtype(compute.dtype), attention=compute.attention == "auto")
    if not found:
        return compute, []
    worst = worst_of_each(found)
    outcomes = gather({form: [each.ok, str(each)] for form, each in worst.items()}, make_mesh())
    passed, lines = [], []
    for form in worst:
        failed = [i for i, outcome in enumerate(outcomes) if not outcome[form][0]]
        line = outcomes[failed[0] if failed else 0][form][1]
        if failed and len(outcomes) > 1:
            line = f"{name_of(failed[0])}: {line}"
        lines.append(f"{line}; left out, plain products run" if failed else line)
        passed += [] if failed else [form]
    attention = next((form for form in ("pallas", "cudnn") if form in passed), "xla")
    if compute.attention != "auto":
        attention = compute.attention
    return replace(compute, attention=attention, pieces="pieces" in passed), lines


def worst_of_each(comparisons: Sequence[Comparison]) -> dict[str, Comparison]:
    """Return the comparison of each form that decides about it: one that failed, or else the largest deviation."""
    return {each.form: each for each in sorted(comparisons, key=lambda each: (not each.ok, each.gradient))}
