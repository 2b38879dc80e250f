"""Train on a pipeline of Grain, which reads, shuffles and transforms by itself; `pip install grain` first."""

import grain
import numpy as np

import maejax
from maejax.data import fashion_mnist


def pipeline(images: np.ndarray, labels: np.ndarray) -> grain.MapDataset:
    """Return images by number, each a mapping with `image` [H, W, C] and `label`."""
    pairs = grain.MapDataset.range(len(images))
    return pairs.map(lambda i: {"image": np.flipud(images[i])[..., None], "label": int(labels[i])})


def main(steps: int = 400, count: int = 2000) -> list[maejax.MaskedAutoencoder]:
    """Pre-train twice: on images by number, which maejax shuffles, and on what Grain shuffles and batches."""
    train = np.load(fashion_mnist.path("train"))
    by_number = pipeline(train["images"][:count], train["labels"][:count])
    in_order = by_number.seed(0).shuffle().repeat().batch(32).to_iter_dataset()  # shuffled anew in each epoch
    models = []
    for name, images in {"by-number": by_number, "in-order": in_order}.items():
        trained = maejax.train(
            train_dataset_shards=maejax.Dataset(images, name=f"grain-{name}"),
            name=f"grain-{name}",
            image_size=28,
            patch_size=7,
            channels=1,
            layers=2,
            dim=64,
            heads=2,
            dec_layers=1,
            dec_dim=32,
            training_steps=steps,
            warmup_steps=steps // 10,
            train_batch_size=64,
            learning_rate=2e-3,
        )
        models.append(trained.model)
    return models


if __name__ == "__main__":
    main()
