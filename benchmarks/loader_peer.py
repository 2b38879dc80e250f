"""Peers' input pipelines in PyTorch: the original's for benchmarks/loader.py, one of arrays for small_images.py.

The original's is webdataset, PIL, torchvision, one process, written from the description of the system: samples from
tar shards, decoded by PIL, copied once per repeat (of which there is one), RandomResizedCrop bicubic and flip by
torchvision, batches by torch's collate. It runs in a Python of its own, with `torch torchvision webdataset`, and Pillow
or Pillow-SIMD. Answers one line of JSON for each line of JSON: {"shard": path, "images": n, "batch": n, "size": n,
"stages": bool} -> CPU seconds per image, whole or stage by stage. An .npz for a shard, with "crop" for "stages", is
read as torchvision reads CIFAR-10: a picture of PIL from each array.
"""

import copy
import json
import sys
import time
from collections import Counter
from itertools import islice

import numpy as np
import PIL
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2


class Arrays(Dataset):
    """Images and labels of an .npz file."""

    def __init__(self, path: str, augment):
        with np.load(path) as file:
            self.images, self.labels, self.augment = file["images"], file["labels"], augment

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.augment(Image.fromarray(self.images[i])), int(self.labels[i])


def small(shard: str, images: int, batch: int, size: int, crop: str) -> float:
    padded = [v2.RandomCrop(size, 4, padding_mode="reflect"), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    augment = transform(size) if crop == "rrc" else v2.Compose(padded if crop == "src" else padded[1:])
    batches = iter(DataLoader(Arrays(shard, augment), batch, shuffle=True))
    next(batches)
    start = time.process_time()
    for _ in range(images // batch):
        next(batches)
    return (time.process_time() - start) / images


def transform(size: int):
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )


def repeat(samples):
    for sample in samples:
        yield copy.deepcopy(sample)


def raw(shard: str):
    import webdataset as wds

    return wds.DataPipeline(wds.SimpleShardList(shard), wds.tarfile_to_samples())


def whole(shard: str, images: int, batch: int, size: int) -> float:
    import webdataset as wds

    augment = transform(size)
    samples = wds.DataPipeline(
        raw(shard), wds.decode("pil"), repeat, wds.map(lambda sample: (augment(sample["jpg"]), sample["cls"]))
    )
    stream = iter(samples)
    start = time.process_time()
    for _ in range(images // batch):
        default_collate(list(islice(stream, batch)))
    return (time.process_time() - start) / images


def stages(shard: str, images: int, batch: int, size: int) -> dict[str, float]:
    import webdataset as wds

    seconds = Counter()

    def timed(name, function, *arguments):
        start = time.process_time()
        result = function(*arguments)
        seconds[name] += (time.process_time() - start) / images
        return result

    augment = transform(size)
    decode = wds.decode("pil")
    stream = iter(raw(shard))
    for _ in range(images // batch):
        rows = []
        for _ in range(batch):
            sample = timed("tar", next, stream)
            sample = timed("decode", lambda sample: next(decode(iter([sample]))), sample)
            sample = timed("copy", copy.deepcopy, sample)
            rows.append((timed("crop, resize, flip", augment, sample["jpg"]), sample["cls"]))
        timed("collate", default_collate, rows)
    return seconds


def main() -> None:
    torch.set_num_threads(1)
    simd = "post" in PIL.__version__
    print(json.dumps({"name": "K+simd" if simd else "K", "version": f"Pillow {PIL.__version__}"}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        if "crop" in task:
            print(json.dumps(small(**task)), flush=True)
            continue
        function = stages if task.pop("stages") else whole
        print(json.dumps(function(**task)), flush=True)


if __name__ == "__main__":
    main()
