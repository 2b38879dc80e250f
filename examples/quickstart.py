"""Create, train, evaluate, save and load a masked autoencoder on arrays: a minute on a laptop."""

import numpy as np

import maejax
from maejax.data import fashion_mnist


def show(step: int, metrics: dict[str, float]) -> None:
    """Print the loss, a callback of the training."""
    if "val/loss" in metrics:
        print(f"step {step}: loss on the test images {metrics['val/loss']:.3f}")


def main(steps: int = 400, count: int = 2000) -> None:
    """Pre-train on images without their labels, then measure the features by nearest neighbours."""
    train, test = (np.load(fashion_mnist.path(split)) for split in ("train", "test"))
    labelled = maejax.Dataset(train["images"][:count], labels=train["labels"][:count], name="clothing")
    held_out = maejax.Dataset(test["images"][:count], labels=test["labels"][:count])

    model = maejax.create(image_size=28, patch_size=7, layers=2, dim=64, heads=2, dec_layers=1, dec_dim=32, channels=1)
    trained = maejax.train(
        train_dataset_shards=labelled,
        valid_dataset_shards=held_out,
        model=model,
        name="quickstart",
        training_steps=steps,
        warmup_steps=steps // 10,
        train_batch_size=64,
        valid_batch_size=64,
        learning_rate=2e-3,
        eval_interval=steps // 2,
        callbacks=[show],
        quiet=True,
    )
    scores = maejax.evaluate(trained.model, labelled, held_out, protocol="knn").scores
    for kind, accuracies in scores.items():
        print(f"{kind}: {accuracies['knn_20']:.1f} % right by 20 neighbours")

    maejax.save(trained.model, "quickstart.safetensors")
    again = maejax.load("quickstart.safetensors")
    images = test["images"][:8, ..., None]  # uint8 [8, 28, 28, 1]
    print("features", again.encode(again.normalize(images)).shape)


if __name__ == "__main__":
    main()
