"""Starting from pre-trained weights: what a classifier takes over, and which classes it is for."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from maejax.config import Config, flags, with_flags
from maejax.data.sources import Source
from maejax.data.stream import Stream
from maejax.errors import InputError, WeightsError
from maejax.models.build import abstract_model
from maejax.models.description import MAE, Classifier, Network, ViT, change_encoder
from maejax.models.stored import from_json
from maejax.models.trees import array_name, mismatches, named_arrays
from maejax.storage.redact import redact
from maejax.tasks.images import normalised_as
from maejax.training.state import TrainState

SIZES = ("patch_size", "layers", "dim", "heads", "layerscale", "qk_norm", "registers", "gated")  # of an encoder
FACTS = (  # flags that a file may decide
    *("image_size", "mean", "std", "norm_pix_loss", "image_mask_ratio", "posemb", "dec_posemb", "pooling"),
    *("decoder", "dec_inputs", "predict_share", "target", "encoder_mask_tokens"),
    *SIZES,
)
# Fields of an encoder that no flag has: a file decides them.
TAKEN = ("gelu", "hidden", "qkv_bias", "norm_eps", "cls_token", "cls_position", "pre_norm")
NEW = -1  # in a label mapping: a class that the old head does not know


class Transferred(NamedTuple):
    """Arrays by our names to start from, the model with what it takes over, and sentences on them."""

    arrays: dict[str, np.ndarray]
    model: Classifier
    notices: tuple[str, ...]


def transfer(config: Config, model: Classifier, mapping: Sequence[int] | None) -> Transferred:
    """Read `--pretrained-ckpt` for a classifier: all of the encoder, and of the head what fits.

    `mapping` has the old class's number, or -1, of every class; None without
    `--label-mapping`. Raises InputError if the file cannot be had, if its encoder is another one, or if the mapping
    needs a head that the file lacks.
    """
    from maejax.weights.pretrained import load_pretrained  # training from scratch reads no weights
    from maejax.weights.weights import fold_head_norm

    path, rules = config.run.pretrained_ckpt, config.transfer
    weights, fetched = load_pretrained(path, model, config.data.cache_dir, rules.channel_rule, rules.prefix)
    model = as_found(model, weights.config, path)
    given, wanted = weights.arrays, named_arrays(abstract_model(model))
    if isinstance(weights.config, Classifier) and not model.head_norm and "head_norm.mean" in given:
        given, _ = fold_head_norm(given, weights.config)  # a probe that is fine-tuned
    given = without_affine(given)
    arrays = {name: array for name, array in given.items() if name.startswith(("encoder.", "norm."))}
    check_encoder(path, arrays, wanted, model.pooling)
    arrays = {name: array for name, array in arrays.items() if name in wanted}
    notices = [fetched or path]
    if weights.config.encoder.attention_pool and model.pooling != "map":
        notices.append("its attention pooling is left out (--pooling map uses it)")
    if "mask_token" in given:
        notices.append("its decoder is left out")
    head = {name: a for name, a in given.items() if name.startswith(("head.", "head_norm.")) and name in wanted}
    complete = head.keys() == {name for name in wanted if name.startswith(("head.", "head_norm."))}
    old = len(given["head.bias"]) if "head.bias" in given else 0
    other = weights.config.pooling if isinstance(weights.config, Classifier) else model.pooling
    if mapping is not None:
        if not old:
            raise InputError(f"--label-mapping: {path} has no head to take rows from")
        if other != model.pooling:
            raise InputError(f"--label-mapping: the head of {path} is for --pooling {other}; give that too")
        arrays |= mapped_head(given, mapping, model)
        notices.append(f"{sum(i != NEW for i in mapping)} of {len(mapping)} classes start from its head")
    elif old and other != model.pooling:
        notices.append(f"its head is left out: it is for --pooling {other}")
    elif complete and old == model.labels:
        arrays |= head
        notices.append(f"its head of {old} classes is taken over")
    elif old:
        notices.append(f"its head of {old} classes is left out (--label-mapping FILE takes rows of it)")
    found = weights.config.encoder
    alike = found.image_type == model.encoder.image_type
    taken = {name: getattr(found, name) for name in ("mean", "std") if alike and not getattr(config.data, name)}
    model = normalised_as(replace(model, encoder=replace(model.encoder, **taken)), config, found)
    return Transferred(arrays, model, tuple(notices))


def with_facts_of_file(
    config: Config, given: Collection[str], saved: Mapping[str, Any] | None = None
) -> tuple[Config, list[str]]:
    """Take sizes, normalisation, target, mask ratio and the like from `--pretrained-ckpt` where no flag is `given`.

    A run that goes on takes them from `saved`, its config.json; its file may be gone. Also returns sentences on what
    was taken, and on positions that will be interpolated. Raises InputError if the file cannot be had.
    """
    path = config.run.pretrained_ckpt
    if not path:
        return config, []
    if saved:
        kept = {name: saved["flags"][name] for name in FACTS if name in saved["flags"] and name not in given}
        return with_flags(config, **{n: tuple(v) if isinstance(v, list) else v for n, v in kept.items()}), []
    from maejax.weights.addresses import local
    from maejax.weights.custom_code import CustomCode
    from maejax.weights.files import read

    here, _ = local(path, config.data.cache_dir)
    known: dict[str, Any] = {"image_size": config.image_shape, "prefix": config.transfer.prefix}
    if not config.transfer.new_decoder:
        code: Any = config.mae.decoder, config.mae.target
        known["code"] = CustomCode(*(each if callable(each) else None for each in code))
    if "heads" in given:
        known["heads"] = config.encoder.heads
    try:
        weights = read(here, **known)
    except WeightsError:  # perhaps since the file does not have the number of heads
        known["heads"] = config.encoder.heads
        weights = read(here, **known)
    found = weights.config
    shape, usual = found.encoder.image_size, ViT(channels=config.data.channels)
    own = flags(config) | {"mean": config.data.mean or usual.mean, "std": config.data.std or usual.std}
    facts: dict[str, Any] = {name: getattr(found.encoder, name) for name in SIZES}
    if shape != config.image_shape:
        facts["image_size"] = "x".join(map(str, shape))
    if config.run.eval_only and "channels" not in given and not config.transfer.channel_rule:
        facts["channels"] = found.encoder.channels
    if found.encoder.channels == config.data.channels and found.encoder.image_type == "uint8":
        facts |= {"mean": found.encoder.mean, "std": found.encoder.std}
    if config.run.mode != "pretrain" and not found.encoder.cls_token:
        pooling = found.pooling if isinstance(found, Classifier) else "avg"
        facts["pooling"] = "map" if found.encoder.attention_pool else pooling
    if config.run.mode == "pretrain" or found.encoder.posemb == "rotary":
        facts["posemb"] = found.encoder.posemb
    if config.run.mode == "pretrain" and isinstance(found, MAE) and not config.transfer.new_decoder:
        facts |= {"norm_pix_loss": found.norm_pix_loss, "image_mask_ratio": found.mask_ratio}
        facts |= {"dec_posemb": found.decoder.posemb, "decoder": found.decoder.custom or found.decoder.attention}
        facts["encoder_mask_tokens"] = found.mask_tokens == "encoder"
        if found.target != "features":
            facts["target"] = {"pixels": "pixels", "components": "pca"}.get(found.target, found.custom_target)
        facts |= {"dec_inputs": found.decoder.inputs, "predict_share": found.decoder.predict_share}
    taken = {name: value for name, value in facts.items() if name not in given and own[name] != value}
    lines = [f"{as_flag(name, value)}, as the file says" for name, value in taken.items()]
    settled = "how images were normalised" if config.data.mean and config.data.std else None  # by the flags
    assumed = [notice for notice in weights.notices if "assumed" in notice]
    lines += [f"note: {notice}" for notice in assumed if settled is None or not notice.startswith(settled)]
    free = "posemb" not in given and "posemb" not in facts and config.encoder.posemb != "learnable"
    if config.run.mode == "finetune" and free:
        taken["posemb"] = "learnable"
        lines.append("--posemb learnable: fine-tuning trains the positions of the file, as the authors do")
    changed = with_flags(config, **taken)
    if changed.image_shape != shape and found.encoder.posemb != "rotary":
        lines.append(f"positions are interpolated from images of {facts['image_size']} to {config.encoder.image_size}")
    return changed, lines


def as_flag(name: str, value: Any) -> str:
    """Write a flag as it is given: a switch without a value, several values with blanks between."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return flag if value else f"no {flag}"
    return f"{flag} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def as_saved(model: Any, saved: Mapping[str, Any]) -> Any:
    """Return a description with what the run of config.json took over from its `--pretrained-ckpt`."""
    found = from_json(saved["model"])
    return change_encoder(as_found(model, found, "config.json"), mean=found.encoder.mean, std=found.encoder.std)


def as_found(model: Any, found: Network, what: str) -> Any:
    """Return a description with what no flag tells, as in a file; raises WeightsError if they do not fit."""
    try:
        model = change_encoder(model, **{name: getattr(found.encoder, name) for name in TAKEN})
    except ValueError as error:
        raise WeightsError(f"{what}: {error}") from None
    if not isinstance(model, MAE):
        return model
    same = {name: getattr(found.encoder, name) for name in ("gelu", "norm_eps")}
    return replace(model, decoder=replace(model.decoder, **same))


def with_weights(
    state: TrainState, weights: Mapping[str, Any], part: str = "", besides: tuple[str, ...] = ()
) -> TrainState:
    """Replace all arrays of a new state's model whose names begin with `part`, but for those that begin with `besides`.

    Raises InputError if names or shapes differ.
    """
    named = named_arrays(state.model).items()
    wanted = {name: array for name, array in named if name.startswith(part) and not name.startswith(besides)}
    if wrong := mismatches(wanted, weights):
        raise InputError(f"--pretrained-ckpt: the weights do not fit the model: {'; '.join(wrong)}")
    return place_weights(state, weights)


def place_weights(state: TrainState, weights: Mapping[str, Any]) -> TrainState:
    """Replace the arrays of a state's model by given ones of the same names."""

    def place(path, old):
        if array_name(path) not in weights:
            return old
        new = np.asarray(weights[array_name(path)], old.dtype)
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index])

    return TrainState(state.step, jax.tree_util.tree_map_with_path(place, state.model), state.opt_state)


def without_affine(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Move the scale and bias of a probe's BatchNorm, which the original has, into its linear layer."""
    if "head_norm.scale" not in arrays:
        return arrays
    kernel = arrays["head.kernel"]
    moved = {
        "head.kernel": arrays["head_norm.scale"][:, None] * kernel,
        "head.bias": arrays["head.bias"] + arrays["head_norm.bias"] @ kernel,
    }
    return {n: a for n, a in arrays.items() if n not in ("head_norm.scale", "head_norm.bias")} | moved


def check_encoder(path: str, arrays: dict[str, np.ndarray], wanted: dict[str, Any], pooling: str) -> None:
    """Check that the encoder of a file is the one that the flags describe; raises WeightsError with all differences."""
    if pooling != "gap" and "encoder.norm.scale" not in arrays and "norm.scale" in arrays:
        raise WeightsError(
            f"{path} was fine-tuned on the mean of the patches and has no final norm: give --pooling gap"
        )
    encoder = {name: array for name, array in wanted.items() if name.startswith("encoder.")}
    unused = tuple(part for part in ("encoder.norm.", "encoder.attention_pool.") if f"{part}" not in "".join(encoder))
    given = {n: a for n, a in arrays.items() if n.startswith("encoder.") and not n.startswith(unused)}
    if wrong := mismatches(encoder, given):
        raise WeightsError(f"--pretrained-ckpt {path} is not the encoder that the flags describe: {'; '.join(wrong)}")


def mapped_head(found: dict[str, np.ndarray], mapping: Sequence[int], model: Classifier) -> dict[str, np.ndarray]:
    """Make a head [D, labels] of an old one's columns; classes that it does not know start at zero.

    Raises InputError if the mapping names a class that the old head lacks.
    """
    kernel, bias = found["head.kernel"], found["head.bias"]
    if max(mapping) >= len(bias):
        raise InputError(f"--label-mapping names class {max(mapping)} of a head of {len(bias)}")
    known = np.array(mapping) != NEW
    columns = np.where(known, mapping, 0)
    head = {"head.kernel": kernel[:, columns] * known, "head.bias": bias[columns] * known}
    if model.head_norm:
        head |= {name: found[name] for name in ("head_norm.mean", "head_norm.var") if name in found}
    return head


def read_mapping(path: str, labels: int) -> list[int] | None:
    """Read `--label-mapping`: a JSON list with an old class's number for every new class, -1 for none.

    Raises InputError if it is no such list, or of another length.
    """
    if not path:
        return None
    try:
        mapping = json.loads(Path(path).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"--label-mapping {path} cannot be read: {error}") from None
    if not isinstance(mapping, list) or not all(isinstance(i, int) and i >= NEW for i in mapping):
        raise InputError(f"--label-mapping {path} is no list of whole numbers, each an old class or -1")
    if len(mapping) != labels:
        raise InputError(f"--label-mapping {path} has {len(mapping)} entries for {labels} classes")
    return mapping


def count_classes(given: int, source: Source | Stream, spec: str) -> int:
    """Return the number of classes: that of `--labels`, or of the training images' labels.

    Raises InputError if the images have no labels or more classes than `--labels`, or arrive unseen without `--labels`.
    """
    seen = getattr(source, "labels", None)
    if seen is not None and (seen < 0).all():
        raise InputError(f"--train-dataset-shards {spec}: its images have no labels, which a classifier learns from")
    known, given = max(len(source.classes), 0 if seen is None else int(seen.max()) + 1), max(given, 0)
    if not (given or known):
        raise InputError("--labels: shards that arrive while training cannot be counted before; say how many classes")
    if given and (known > given or (source.classes and known != given)):
        raise InputError(f"--labels {given}: the training images have {known} classes; leave it out, or give {known}")
    return given or known


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Check that no label is beyond the classes; those of images that arrive while training are not known before.

    Raises InputError if there is one.
    """
    if labels.max(initial=-1) >= classes:
        raise InputError(f"--train-dataset-shards: an image has the label {labels.max()} of {classes}: give --labels")


def check_labelled(source: Source | Stream, spec: str, labelled: bool) -> None:
    """Check that images which arrive while training have labels with numbers; `labelled` is whether any came so far.

    Raises InputError if none did, or the stream has met labels that it cannot number.
    """
    why = getattr(source, "unlabelled", "") or ("" if labelled else "no image of the first batch has a label")
    if why:
        raise InputError(
            f"--train-dataset-shards {redact(spec)}: {why}; shards that arrive while training need a number in a .cls "
            f"or .json member beside each image: make them with `maejax pack`, which reads names and class folders too"
        )


def match_classes(source: Source, classes: Sequence[str], labels: int, spec: str) -> None:
    """Number the classes of the validation images as those of the training images, by their names.

    Raises InputError if there is no labelled image, or a class that training does not know, or if one side has names,
    the other numbers, and their counts differ.
    """
    unknown = source.number_classes_as(classes)
    if (source.labels < 0).all():
        raise InputError(f"--valid-dataset-shards {spec}: its images have no labels")
    count = len(source.classes) or int(source.labels.max()) + 1
    if bool(classes) != bool(source.classes) and count != labels:
        kinds = ("names", "numbers") if source.classes else ("numbers", "names")
        raise InputError(
            f"--valid-dataset-shards {spec}: has {count} classes by their {kinds[0]}, training has {labels} by their "
            f"{kinds[1]}: which is which is not known; label both by names, or both by numbers"
        )
    if unknown:
        raise InputError(f"--valid-dataset-shards {spec}: training has no class {', '.join(sorted(unknown)[:8])}")
    if source.labels.max() >= labels:
        raise InputError(f"--valid-dataset-shards {spec}: has class {source.labels.max()}, and there are {labels}")
