"""Masked-autoencoder pre-training (He et al. 2022): the task behind `maejax train --mode pretrain`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from maejax.config import Config
from maejax.data.pipeline import Batch
from maejax.data.sources import Source
from maejax.errors import InputError
from maejax.models.code import name_code
from maejax.models.description import MAE, Compute
from maejax.models.flops import pretrain_flop
from maejax.models.mae import MaskedAutoencoder
from maejax.models.trees import array_name
from maejax.options.network import Mae
from maejax.storage import mirror
from maejax.tasks.checks import before_images, decoder_config, encoder_config, refuse_ignored
from maejax.tasks.configured import configured_optimizer, configured_rate, faults_allowed
from maejax.tasks.diagnosis import describe_batch, first_bad_layer
from maejax.tasks.images import Sources, normalised_as
from maejax.tasks.masks import Masked, Masks, check_custom, mask_ratios
from maejax.tasks.predicted import (
    PARTS,
    follow,
    initial_with_teacher,
    principal_components,
    read_teacher,
    target_of_flags,
)
from maejax.tasks.quality import Quality, open_watched, watch_interval
from maejax.tasks.run import Finished, train
from maejax.tasks.task import Phase, Task
from maejax.tasks.transfer import as_found, as_saved, place_weights, with_weights
from maejax.tasks.validation import Validation
from maejax.training.checkpoint import saved_steps
from maejax.training.log import Callback
from maejax.training.mesh import first_device, local_copy
from maejax.training.optim import for_trained
from maejax.training.rundir import BEST
from maejax.training.state import Frozen, TrainState, make_step

NEW_NORM = {"scale": 1, "bias": 0}


def run(
    config: Config, console: Console, *, sources: Sources | None = None, callbacks: Sequence[Callback] = ()
) -> Finished:
    """Pre-train; `sources` are the training and the validation images if they are open already.

    Raises InputError if the input is wrong, and Failed if the loss became non-finite.
    """
    return train(Pretraining(config, sources), console, callbacks)


class Pretraining(Task[MAE]):
    """Pre-training of a masked autoencoder."""

    def __init__(self, config: Config, sources: Sources | None = None):
        super().__init__(config, sources)
        self.of_target: dict[str, Any] = {}  # arrays to start from that only the target needs

    def check_flags(self) -> None:
        """Check the flags, and that the sizes of the model fit together. Raises InputError at the first fault."""
        check_flags(self.config)
        model_config(before_images(self.config))

    def prepare(self) -> None:
        """Prepare as every task, then what the target needs: a teacher, or principal components."""
        super().prepare()
        self.watched = open_watched(self.config)
        check_custom(self.config.mae.mask, self.model.encoder.grid)
        target = self.config.mae.target
        if target == "ema":
            self.model = replace(self.model, teacher=replace(self.model.encoder, attention_pool=False))
            own = {n.removeprefix("encoder."): a for n, a in self.arrays.items() if n.startswith("encoder.")}
            self.of_target = {f"teacher.{name}": array for name, array in own.items()}
        elif self.model.target == "features" and not self.saved:
            self.model, self.of_target = read_teacher(self.config, self.model)
        elif self.model.target == "components" and not self.saved and not self.of_target:
            self.of_target = principal_components(self.model, self.source)

    def describe_model(self) -> None:
        """Set the model of the flags and of `--pretrained-ckpt`. Raises InputError if they or the export do not fit."""
        self.model = model_config(self.config, self.saved)
        if self.config.run.pretrained_ckpt and self.saved:
            self.model = as_saved(self.model, self.saved)
        elif self.config.run.pretrained_ckpt:
            self.take_over()
        if self.config.run.export_msgpack:
            from maejax.weights.original import check_parts

            check_parts(self.model)

    def take_over(self) -> None:
        """Read `--pretrained-ckpt`: set its `arrays`, its `origin`, and what it decides of the model."""
        run, transfer = self.config.run, self.config.transfer
        from maejax.weights.pretrained import load_pretrained  # training from scratch reads no weights

        weights, fetched = load_pretrained(
            run.pretrained_ckpt,
            self.model,
            self.config.data.cache_dir,
            transfer.channel_rule,
            transfer.prefix,
            new_decoder=transfer.new_decoder,
        )
        found = weights.config
        if isinstance(found, MAE) and not transfer.new_decoder and found.target != self.model.target:
            path = run.pretrained_ckpt
            raise InputError(f"--pretrained-ckpt {path}: its decoder predicts {found.target}: give --new-decoder")
        self.of_target = {name: array for name, array in weights.arrays.items() if name.startswith("components.")}
        arrays = {name: array for name, array in weights.arrays.items() if not name.startswith(PARTS)}
        self.origin = fetched or run.pretrained_ckpt
        if transfer.new_decoder:
            norm = {
                f"encoder.norm.{name}": np.full(self.model.encoder.dim, v, np.float32) for name, v in NEW_NORM.items()
            }
            without = "" if norm.keys() <= arrays.keys() else "; it has no final norm: that starts as the identity"
            arrays, self.origin = norm | arrays, f"{self.origin}; its decoder starts anew{without}"
        self.arrays = arrays
        model = as_found(self.model, weights.config, run.pretrained_ckpt)
        self.model = normalised_as(model, self.config, weights.config.encoder)

    def build_step(self, compute: Compute):
        """Build a function that makes the model, the optimizer, and the step of `make_step`."""
        return build_step(self.config, self.model, compute)

    def phases(self, compute: Compute) -> list[Phase]:
        """List one phase, or one with the encoder frozen before it."""
        stop, whole = self.config.optimization.freeze_encoder_steps, super().phases(compute)
        if not stop:
            return whole
        parts = build_step(self.config, self.model, compute, frozen=True)
        return [Phase(stop, *parts, pretrain_flop(self.model, frozen=True)), *whole]

    def start_from_weights(self, state: TrainState) -> TrainState:
        """Place the weights of `--pretrained-ckpt` in a new state: all that a model has, but for a new decoder."""
        part = "encoder." if self.config.transfer.new_decoder else ""
        state = place_weights(state, self.of_target)
        return with_weights(state, self.arrays, part, PARTS) if self.config.run.pretrained_ckpt else state

    def describe_parts(self) -> str:
        """Describe the sizes of encoder and decoder."""
        encoder, mae = self.config.encoder, self.config.mae
        frozen = self.config.optimization.freeze_encoder_steps
        until = f" (frozen up to step {frozen})" if frozen else ""
        kind = " of cross-attention" if mae.decoder == "cross" else ""
        said = {"pixels": "", "components": " for principal components", "features": " for a teacher's features"}
        said["custom"] = f" for {name_code(mae.target)}"
        of = f"{mae.dec_layers} x {mae.dec_dim} decoder{kind}"
        of = f"decoder {name_code(mae.decoder)}" if callable(mae.decoder) else of
        decoder = f"{of}{said[self.model.target]}"
        return f"{encoder.layers} x {encoder.dim} encoder{until}, {decoder}"

    def open_evaluator(self, source: Source, directory: Path, mesh: Mesh, start: int) -> Validation:
        """Prepare the reconstruction of held-out images."""
        return Validation(self.config, source, directory, mesh, faults_allowed(self.config), start)

    def open_watch(self, source: Source, mesh: Mesh) -> tuple[int, Quality]:
        """Prepare neighbours and rank of the features of `--watch`."""
        interval = watch_interval(self.config, self.model, len(source))
        return interval, Quality(self.config, source, mesh, faults_allowed(self.config))

    def image_flop(self) -> float:
        """Count the FLOP of one step on one image; 0 for a decoder that is not known here."""
        return 0 if callable(self.config.mae.decoder) else pretrain_flop(self.model)

    def explain(self, directory: Path, mesh: Mesh, state: TrainState, step: int, rows: Batch) -> str:
        """Name the first layer that is not finite in the step after `state`, and write its batch for inspection."""
        model: Any = local_copy(state.model, mesh)
        count, process = len(rows.images), jax.process_index()
        path = directory / "bad" / f"{step}-{process}.npz"
        with first_device():
            masks = Masks.of(self.config, self.model)
            order = np.asarray(masks.order(step - 1, count * jax.process_count()))[process * count :][:count]
            model.visible = masks.visible[int(masks.ratio(step - 1))]
            losses = np.asarray(model(rows.images, order).loss)
            bad = np.flatnonzero(rows.valid & ~np.isfinite(losses))
            bad = bad if len(bad) else np.flatnonzero(rows.valid)
            where = first_bad_layer(model, rows.images[bad], order[bad])
        return describe_batch(where, self.source, bad, path, {**rows._asdict(), "order": order})

    def finish(self, directory: Path, console: Console) -> None:
        """Export the newest and the best model if `--export-msgpack` asks for it."""
        if self.config.run.export_msgpack and jax.process_index() == 0:
            for path in export_original(directory):
                mirror.publish_file(path)
                console.print(f"exported {mirror.shown(path)}", highlight=False)


def check_flags(config: Config) -> None:
    """Check that no flag is given that pre-training would have to ignore. Raises InputError at the first that is."""
    frozen, steps = config.optimization.freeze_encoder_steps, config.optimization.training_steps
    for name, given in {"--new-decoder": config.transfer.new_decoder, "--freeze-encoder-steps": frozen}.items():
        if given and not config.run.pretrained_ckpt:
            raise InputError(f"{name} is for the encoder of --pretrained-ckpt: give one")
    mae, usual = config.mae, Mae()
    if mae.decoder == "self" and mae.dec_inputs != usual.dec_inputs:
        raise InputError(f"--dec-inputs {mae.dec_inputs} is for --decoder cross: give that too")
    if mae.target != "ema" and mae.target_decay != usual.target_decay:
        raise InputError(f"--target-decay {mae.target_decay} is for --target ema: give that too")
    if not 0 <= mae.target_decay < 1:
        raise InputError(f"--target-decay {mae.target_decay}: give 0 or more, below 1, such as 0.999")
    if frozen >= steps:
        raise InputError(f"--freeze-encoder-steps {frozen}: give less than --training-steps {steps}, or 0")
    refuse_ignored(
        config,
        "eval_only ema finetune_blocks mixup cutmix criterion label_smoothing pooling label_mapping random_erasing "
        "cache_features sweep_rates" + " labels" * (config.encoder.labels > 0),
        "pre-training has no classifier and would ignore it; leave it out, or choose --mode linear or finetune",
    )


def model_config(config: Config, saved: Mapping[str, Any] | None = None) -> MAE:
    """Describe the model that the flags ask for; kept in config.json to load it again.

    A frozen teacher is that of `saved`, the run's config.json, or an encoder of the same sizes until it is read. Raises
    InputError if the sizes do not fit together.
    """
    ratios = mask_ratios(config.mae.image_mask_ratio)
    parts: dict[str, Any] = {"encoder": encoder_config, "decoder": decoder_config}
    try:
        parts = {name: describe(config) for name, describe in parts.items()}
        parts |= {"norm_pix_loss": config.mae.norm_pix_loss, **target_of_flags(config, parts["encoder"], saved)}
        for ratio in ratios:
            MAE(**parts, mask_ratio=ratio)
        return MAE(**parts, mask_ratio=round(sum(ratios) / len(ratios), 6))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"the model's flags do not fit together: {error}") from None


def build_step(config: Config, model: MAE, compute: Compute, *, frozen: bool = False):
    """Build a function that makes the model, the optimizer, and the step of `make_step`; `frozen` is the encoder."""
    rate, _ = configured_rate(config)
    optimizer, held = configured_optimizer(config, rate), None
    if model.teacher or frozen:
        held = partial(is_untrained, frozen=frozen)
        optimizer = for_trained(optimizer, held)
    ema = config.mae.target == "ema"
    init = partial(initial_with_teacher, model, compute, config.seeds.init_seed, ema)
    masks = Masks.of(config, model)
    losses = partial(sample_losses, dropout_seed=config.seeds.dropout_seed, visible=masks.visible)
    step = make_step(
        losses,
        optimizer,
        rate,
        grad_accum=config.optimization.grad_accum,
        draw=masks.draw,
        on_nan=config.machine.on_nan,
        sharding=config.machine.sharding,
        frozen=held and Frozen(held, update_stats=partial(follow, decay=config.mae.target_decay if ema else None)),
    )
    return init, optimizer, step


def is_untrained(path, *, frozen: bool) -> bool:
    """Return whether an array of a masked autoencoder belongs to its teacher or, if that is `frozen`, its encoder."""
    return array_name(path).startswith(("teacher.", "encoder.") if frozen else "teacher.")


def sample_losses(
    model: MaskedAutoencoder, batch: Masked, microstep: jax.Array, *, dropout_seed: int, visible: Sequence[int]
) -> jax.Array:
    """Compute the loss of every sample [B] under its mask; dropout is a function of (seed, microstep) alone."""
    dropout_key = jax.random.fold_in(jax.random.key(dropout_seed), microstep)

    def losses(kept: int) -> jax.Array:
        return model(batch.images, batch.order, dropout_key, visible=kept).loss

    if len(visible) == 1:
        return losses(visible[0])
    return jax.lax.switch(batch.ratio[0], [partial(losses, kept) for kept in visible])


def export_original(directory: Path) -> list[Path]:
    """Write a run's newest and best checkpoint as `<name>-last.msgpack` and `<name>-best.msgpack` into its folder."""
    from maejax.weights import files, run_directory

    found = {"last": directory} | ({"best": directory / BEST} if saved_steps(directory / BEST) else {})
    paths = [directory / f"{directory.name}-{which}.msgpack" for which in found]
    for path, source in zip(paths, found.values(), strict=True):
        files.write(run_directory.read(source), path, "original")
    return paths
