"""The images of a run: opened, agreed on one form, and with the statistics that normalise them."""

from typing import Any

from maejax.config import Config, with_flags
from maejax.data.agreement import agree
from maejax.data.display import shown_bands
from maejax.data.form import asked_form, split_bands
from maejax.data.part import hold_out
from maejax.data.pipeline import check_readable
from maejax.data.sources import Source, open_source, open_stream
from maejax.data.statistics import read, take
from maejax.data.stream import Stream
from maejax.errors import InputError
from maejax.models.description import ViT, change_encoder
from maejax.models.stored import from_json

Sources = tuple[Source | Stream, Source | None]


def open_images(
    config: Config, saved: dict[str, Any] | None = None, sources: Sources | None = None
) -> tuple[Config, Source | Stream, Source | None]:
    """Open the training and the validation images, or take those given, and check that they can be read.

    Returns the flags with what the images say: channels, type, bands; and mean, deviation and missing value by
    `--statistics`, of a run that goes on by `saved`, its config.json. Raises InputError if images or statistics do not
    fit together.
    """
    data = config.data
    train, valid = sources or (None, None)
    asked = asked_form(data, data.channels)
    before: ViT | None = from_json(saved["model"]).encoder if saved and data.statistics else None
    statistics = read(data.statistics) if data.statistics and before is None else None
    known = before or statistics
    if known is not None:
        missing = asked.no_data if data.no_data else known.no_data
        asked = asked._replace(names=known.bands, no_data=missing)
    train = train or open_stream(data.train_dataset_shards, cache_dir=data.cache_dir)
    form = agree(train, asked)
    check_readable(train, form.channels)
    if data.valid_dataset_shards and sources is None:
        valid = open_source(data.valid_dataset_shards, cache_dir=data.cache_dir)
    if data.hold_out and sources is None:
        train, valid = held_out(train, valid, data.hold_out)
    elif valid is not None:
        bands = form.chosen if form.order or form.bands else ()
        same = asked._replace(image_type=form.image_type, channels=form.channels, bands=bands or asked.bands)
        check_readable(valid, agree(valid, same).channels)
        if valid.form.chosen and form.chosen and valid.form.chosen != form.chosen:
            one, other = ", ".join(form.chosen), ", ".join(valid.form.chosen)
            raise InputError(f"--valid-dataset-shards {data.valid_dataset_shards}: has the bands {other}, not {one}")
    shown_bands(data.show_bands, form.chosen, form.channels)  # raises before the first picture
    changes: dict[str, Any] = {"channels": form.channels, "bands": ",".join(form.chosen)}
    if form.no_data is not None:
        changes["no_data"] = repr(form.no_data).removesuffix(".0")
    if form.image_type != "uint8":
        changes["image_type"] = form.image_type
    if known is not None and not data.mean:
        changes["mean"], changes["std"] = (
            (before.mean, before.std) if before is not None else take(statistics, form, data.statistics)  # type: ignore[arg-type]
        )
    return with_flags(config, **changes), train, valid


def held_out(train: Source | Stream, valid: Source | None, count: int) -> tuple[Source, Source]:
    """Split images for `--hold-out`. Raises InputError if they cannot be split, or none need be."""
    if valid is not None:
        raise InputError(f"--hold-out {count}: --valid-dataset-shards names images to validate on; leave one out")
    if isinstance(train, Stream):
        raise InputError(f"--hold-out {count}: only images here can be split; give --valid-dataset-shards")
    if count >= len(train):
        raise InputError(f"--hold-out {count}: there are {len(train)} images; hold out fewer")
    return hold_out(train, count)


def normalised_as(model: Any, config: Config, found: ViT | None = None) -> Any:
    """Return a model's description with the mean and deviation of weights to start from, where no flag gives them.

    `found` describes their encoder. Raises InputError if there are none for images of another type than uint8.
    """
    encoder, data = model.encoder, config.data
    if encoder.image_type == "uint8":
        return model
    same = found is not None and (found.image_type, found.channels) == (encoder.image_type, encoder.channels)
    # Mean and deviation of a file are flags by now; those of uint8 say nothing of other types.
    if data.std and min(data.std) <= 0:
        raise InputError(f"--std {min(data.std):g}: a deviation is more than 0; leave a band that never changes out")
    given = bool(data.mean and data.std) and (same or found is None or data.mean != found.mean)
    if given:
        return model
    if same and found is not None:
        return change_encoder(model, mean=found.mean, std=found.std)
    shards = config.data.train_dataset_shards
    raise InputError(
        f"images of {encoder.image_type} have no usual mean and deviation: compute them by `maejax data {shards} "
        "--statistics FILE` and give --statistics FILE, or --mean and --std in the values' own units"
    )


def named_bands(config: Config) -> tuple[str, ...]:
    """Return the names of the channels of a run whose images are open."""
    return split_bands(config.data.bands)
