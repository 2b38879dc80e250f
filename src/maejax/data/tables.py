"""Images in tables: Hugging Face `datasets` folders, arrow files and parquet files.

In an uncompressed arrow file every image is a range of its bytes, so it is listed like a member of a tar and read
without pyarrow. Parquet packs values into pages and row groups, of which one image cannot be read alone: a parquet file
is copied once to an arrow file in the user's cache. So is a table of numbers in lists, whose images become .npy there.
"""

import hashlib
import io
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from maejax.data.classes import LABEL_NAMES, NO_CLASS, read_label
from maejax.data.listing import ByteRange, Listing, Sample
from maejax.errors import FormatError, InputError, install
from maejax.storage.atomic import write_atomically
from maejax.storage.cache import cache_folder

TABLE_SUFFIXES = (".parquet", ".arrow")
_PATHS = ("file_name", "filename", "image_path", "path", "file")  # columns of text, if none holds bytes
_IMAGES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "photo", "picture")

_log = logging.getLogger("maejax.data")


def table_files(folder: Path) -> list[Path]:
    """Return the files of a folder of `datasets` or parquet files, else []; raises InputError for several splits."""
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        if len(splits) != 1:
            raise InputError(f"{folder}: holds the splits {', '.join(splits)}; name one, as {folder / 'train'}")
        return table_files(folder / splits[0])
    if (folder / "state.json").is_file():
        state = _json(folder / "state.json")
        if state.get("_indices_data_files"):
            raise InputError(f"{folder}: an index file chooses its rows; call flatten_indices() and save it again")
        return [folder / entry["filename"] for entry in state.get("_data_files", [])]
    for place in (folder, folder / "data"):  # a repository of the hub keeps its parquet files in data/
        files = sorted(path for suffix in TABLE_SUFFIXES for path in place.glob(f"[!.]*{suffix}"))
        splits = {re.sub(r"-\d+-of-\d+$", "", path.stem) for path in files if re.search(r"-\d+-of-\d+$", path.stem)}
        if len(splits) > 1:
            one = place / f"{max(splits)}-*{files[0].suffix}"
            raise InputError(f"{place}: holds the splits {', '.join(sorted(splits))}; name one, as '{one}'")
        if files:
            return files
    return []


def holds_images(path: Path) -> bool:
    """Return whether a table has a column of images, or may have one: that is known only if pyarrow can read it."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if path.suffix.lower() == ".parquet":
            _choose(pq.read_schema(path), path.parent / "dataset_info.json")
    except FormatError:
        return False
    except (ImportError, pa.ArrowException, OSError):
        return True
    return True


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict):
            return content
    raise InputError(f"{path}: is no JSON object; save the dataset again")


def in_table(path: Path, title: str) -> Listing:
    """List the images of an arrow or parquet file, with the labels and the names of their classes.

    The image column holds encoded bytes, structs of `bytes` and `path`, lists of lists of numbers (`datasets` calls
    them Array2D and Array3D), or paths from the table's folder on; of several
    it is the one called image, or the first. The label column is a ClassLabel, or has what `read_label` takes. Keys
    read `title:row`, followed by the image's own name where it has one. Rows without an image are counted in
    `problems`, as is damage. Raises InputError if pyarrow is missing, or there is no room for the copy of a parquet
    file.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise InputError(f"{path}: reading it needs pyarrow: {install('hf')}") from None
    listing = Listing()
    listing.suffixes[path.suffix.lower()] += 1
    try:
        arrow = _as_arrow(path)
        with pa.memory_map(str(arrow)) as file:
            whole = file.read_buffer()
            magic = whole.slice(0, 6).to_pybytes() if whole.size >= 6 else b""
            file_form = magic == b"ARROW1"
            reader = pa.ipc.open_file(whole) if file_form else pa.ipc.open_stream(whole)
            image, label, listing.classes = _choose(reader.schema, path.parent / "dataset_info.json")
            batches = map(reader.get_batch, range(reader.num_record_batches)) if file_form else iter(reader)
            missing = 0
            for key, place, value in _rows(batches, image, label, arrow, path.parent, title, whole):
                number: int | str = -1
                try:
                    number = read_label(value)
                except ValueError:
                    listing.leave_out(NO_CLASS, key)
                missing += place is None
                listing.samples += [] if place is None else [Sample(key, place, number)]
        listing.problems += [f"{path}: {missing} rows hold no image"] if missing else []
    except (pa.ArrowException, FormatError, OSError) as error:
        listing.problems.append(f"{path}: {str(error).splitlines()[0]}")
    return listing


def _rows(
    parts: Any, image: str, label: str | None, path: Path, folder: Path, title: str, whole: Any
) -> Iterator[tuple[str, ByteRange | None, Any]]:
    """Yield the key of every row, where its image lies (None if it has none), and the value of its label."""
    import pyarrow as pa

    row = 0
    for batch in parts:
        images, names = batch.column(image), [None] * len(batch)
        labels = [None] * len(batch) if label is None else batch.column(label).to_pylist()
        valid = np.asarray(images.is_valid())
        if pa.types.is_struct(images.type):
            if "path" in [field.name for field in images.type]:
                names = images.field("path").to_pylist()
            images = images.field("bytes")
            valid &= np.asarray(images.is_valid())
        elif not _is_binary(images.type):
            names, valid = images.to_pylist(), np.zeros(len(batch), bool)
        places = _places(images, str(path), whole) if valid.any() else [None] * len(batch)
        for i, (value, name) in enumerate(zip(labels, names, strict=True)):
            place = places[i] if valid[i] else None
            if place is None and name:  # a table may hold the paths of images alone
                found = next((p for p in (folder / name, Path(name)) if p.is_file()), None)
                place = found and ByteRange(str(found), 0, -1)
            yield f"{title}:{row}" + (f"/{Path(name).name}" if name else ""), place, value
            row += 1


def _places(images: Any, path: str, whole: Any) -> list[ByteRange | None]:
    """Return where the values of a column of bytes lie in its file: the buffers are windows on the mapped memory."""
    import pyarrow as pa

    _, ends, data = images.buffers()
    wide = pa.types.is_large_binary(images.type)
    ends = np.frombuffer(ends, np.int64 if wide else np.int32)[images.offset : images.offset + len(images) + 1]
    start = data.address - whole.address
    if not 0 <= start <= whole.size - data.size:
        raise FormatError("is compressed; write it again without compression, or as parquet")
    offsets = (start + ends.astype(np.int64)).tolist()
    return [ByteRange(path, begin, end - begin) for begin, end in pairwise(offsets)]


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_array(kind: Any) -> bool:
    """Return whether a column holds lists of lists of numbers: images [H, W] or [H, W, C]."""
    import pyarrow as pa

    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth in (2, 3) and (pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _as_npy(column: Any) -> Any:
    """Turn a column of lists of numbers into one of .npy files, null where a row is null or its lists are ragged."""
    import pyarrow as pa

    files: list[bytes | None] = []
    for i in range(len(column)):
        row, shape = column.slice(i, 1), []
        while hasattr(row.type, "value_type") and row.null_count == 0:
            lengths = set(np.diff(row.offsets)) if hasattr(row, "offsets") else {row.type.list_size}
            row = row.flatten() if len(lengths) == 1 else pa.nulls(1)
            shape.append(int(min(lengths)))
        buffer = io.BytesIO()
        if row.null_count == 0:
            np.save(buffer, row.to_numpy(zero_copy_only=False).reshape(shape))
        files.append(buffer.getvalue() or None)
    return pa.array(files, pa.binary())


def _choose(schema: Any, beside: Path) -> tuple[str, str | None, tuple[str, ...]]:
    """Find the columns of images and labels, and the classes: by the features of `datasets`, else by type and name."""
    import pyarrow as pa

    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        features = {}
    if not features and beside.is_file():
        features = _json(beside).get("features") or {}

    def typed(name: str) -> list[Any]:
        return [f for f in schema if isinstance(features.get(f.name), dict) and features[f.name].get("_type") == name]

    def holds_image(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            inner = {child.name: child.type for child in kind}
            bare = "path" in inner and pa.types.is_null(inner.get("bytes", pa.int8()))  # no row has the bytes
            return bare or ("bytes" in inner and _is_binary(inner["bytes"]))
        return _is_binary(kind)

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)

    def first(fields: list[Any], names: tuple[str, ...]) -> str | None:
        by_name = {field.name.lower(): field.name for field in reversed(fields)}
        return next((by_name[name] for name in names if name in by_name), fields[0].name if fields else None)

    fields = [field for field in schema if holds_image(field.type)]
    fields = fields or [field for field in schema if _is_array(field.type)]
    paths = [field for field in schema if is_text(field.type) and field.name.lower() in (*_PATHS, *_IMAGES)]
    image = first([field for field in typed("Image") if field in fields] or fields or paths, (*_IMAGES, *_PATHS))
    if image is None:
        seen = ", ".join(f"{field.name} {field.type}" for field in schema)
        raise FormatError(
            f"has no column of images (binary, or a struct of bytes and path) or of their file names, but {seen[:200]}"
        )
    named = [field for field in schema if field.name.lower() in LABEL_NAMES and field.name != image]
    label = first(typed("ClassLabel") or named, LABEL_NAMES)
    classes = (features.get(label) or {}).get("names") if label else None
    return image, label, tuple(map(str, classes or ()))


def _as_arrow(path: Path) -> Path:
    """Return an arrow file with the image and label columns of a table, copied once where it is parquet or numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    beside, state = path.parent / "dataset_info.json", path.stat()
    with ExitStack() as stack:
        if path.suffix.lower() == ".arrow":
            file = stack.enter_context(pa.memory_map(str(path)))
            whole = file.read_buffer()
            magic = whole.slice(0, 6).to_pybytes() if whole.size >= 6 else b""
            reader = pa.ipc.open_file(whole) if magic == b"ARROW1" else pa.ipc.open_stream(whole)
            found, size = reader.schema, state.st_size
            image, label, _ = _choose(found, beside)
            if not _is_array(found.field(image).type):
                return path
            stream = hasattr(reader, "read_next_batch")
            batches = iter(reader) if stream else map(reader.get_batch, range(reader.num_record_batches))
            wanted = [image] if label is None else [image, label]
        else:
            file = stack.enter_context(pq.ParquetFile(path))
            found = file.schema_arrow
            image, label, _ = _choose(found, beside)
            wanted = [image] if label is None else [image, label]
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            size = sum(g.column(c).total_uncompressed_size for g in groups for c in range(g.num_columns))
            batches = file.iter_batches(batch_size=256, columns=wanted)
        folder, numbers = cache_folder(), _is_array(found.field(image).type)
        identity = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {wanted}"
        copy = folder / f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.arrow"
        if copy.is_file():
            return copy
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < size:
            raise InputError(
                f"{path}: its images are read from a copy of {size / 1e9:.1f} GB, for which {folder} has no room; "
                "set XDG_CACHE_HOME to a larger disk"
            )
        _log.warning("%s: copying its images once to %s, %.1f MB", path, copy, size / 1e6)
        fields = [found.field(name) for name in wanted]
        fields[0] = fields[0].with_type(pa.binary()) if numbers else fields[0]
        schema = pa.schema(fields, found.metadata)
        with write_atomically(copy) as new, pa.ipc.new_stream(str(new), schema) as writer:
            for batch in batches:
                chosen = batch.select(wanted)
                if numbers:
                    columns = [_as_npy(chosen.column(0)), *chosen.columns[1:]]
                    chosen = pa.RecordBatch.from_arrays(columns, schema=schema)
                writer.write_batch(chosen.cast(schema))
    return copy
