"""tf.data pipelines as TPU codes commonly have them, for benchmarks/loader.py: one thread, in a Python of its own.

It decodes the crop alone, by the default, inexact inverse transform, and resizes it bilinearly without antialiasing: a
cheaper and poorer picture than the others make. With the argument `bicubic` the resize is antialiased bicubic. It needs
`tensorflow`, and answers JSON as loader_peer.py does. For benchmarks/small_images.py the images are arrays in memory.
"""

import json
import os
import sys
import tarfile
import time

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np
import tensorflow as tf

BICUBIC = "bicubic" in sys.argv


def augment(data: tf.Tensor, label: tf.Tensor, size: int):
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.image.extract_jpeg_shape(data), tf.zeros([0, 0, 4]), area_range=(0.2, 1.0), min_object_covered=0.0,
        use_image_if_no_bounding_boxes=True,
    )  # fmt: skip
    window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
    image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
    image = tf.image.resize(image, (size, size), "bicubic" if BICUBIC else "bilinear", antialias=BICUBIC)
    return tf.cast(tf.clip_by_value(tf.image.random_flip_left_right(image), 0, 255), tf.uint8), label


def read(shard: str):
    with tarfile.open(shard) as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    stems = [name.removesuffix(".jpg") for name in found if name.endswith(".jpg")]
    return [found[f"{stem}.jpg"] for stem in stems], [int(found[f"{stem}.cls"]) for stem in stems]


def whole(shard: str, images: int, batch: int, size: int) -> float:
    start = time.process_time()
    data = tf.data.Dataset.from_tensor_slices(read(shard)).map(lambda image, label: augment(image, label, size))
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    for _ in data.batch(batch, drop_remainder=True).take(images // batch).with_options(options).as_numpy_iterator():
        pass
    return (time.process_time() - start) / images


def augment_array(image: tf.Tensor, label: tf.Tensor, size: int, crop: str):
    if crop == "rrc":
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image), tf.zeros([0, 0, 4]), area_range=(0.2, 1.0), min_object_covered=0.0,
            use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        image = tf.image.resize(tf.slice(image, begin, extent), (size, size), "bicubic", antialias=True)
        image = tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)
    elif crop == "src":
        image = tf.image.random_crop(tf.pad(image, [[4, 4], [4, 4], [0, 0]], "REFLECT"), (size, size, 3))
    return tf.image.random_flip_left_right(image), label


def small(shard: str, images: int, batch: int, size: int, crop: str) -> float:
    with np.load(shard) as file:
        data = tf.data.Dataset.from_tensor_slices((file["images"], file["labels"]))
    data = data.shuffle(10_000).map(lambda image, label: augment_array(image, label, size, crop)).batch(batch)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    batches = data.with_options(options).as_numpy_iterator()
    next(batches)
    start = time.process_time()
    for _ in range(images // batch):
        next(batches)
    return (time.process_time() - start) / images


def main() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    name = "tf.data bicubic" if BICUBIC else "tf.data"
    print(json.dumps({"name": name, "version": f"TensorFlow {tf.__version__}"}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        if "crop" in task:
            print(json.dumps(small(**task)), flush=True)
        else:
            print(json.dumps({} if task.pop("stages") else whole(**task)), flush=True)


if __name__ == "__main__":
    main()
