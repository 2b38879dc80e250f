"""Fine-tune a maejax encoder in PyTorch: timm's VisionTransformer with the converted weights."""
# pyright: reportMissingImports=false

import numpy as np
import timm
import torch
from safetensors.torch import load_file

import maejax
from maejax.data import fashion_mnist


def main(steps: int = 100, count: int = 2000, weights: str = "") -> float:
    """Train on labelled images, and return how far timm's first features are from maejax's."""
    train = np.load(fashion_mnist.path("train"))
    sizes = maejax.create(image_size=28, patch_size=7, layers=2, dim=64, heads=2, dec_layers=1, dec_dim=32, channels=1)
    encoder = maejax.load(weights).encoder if weights else sizes.encoder
    config = encoder.config
    maejax.save(encoder, "encoder.safetensors", to="timm")

    model = timm.models.VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.channels,
        embed_dim=config.dim,
        depth=config.layers,
        num_heads=config.heads,
        num_classes=10,
    )
    left_out = model.load_state_dict(load_file("encoder.safetensors"), strict=False)
    assert {name.partition(".")[0] for name in left_out.missing_keys} == {"head"} and not left_out.unexpected_keys

    images = train["images"][:count, ..., None]
    pixels = torch.from_numpy(np.array(encoder.normalize(images)).transpose(0, 3, 1, 2))  # as maejax sees them
    labels = torch.from_numpy(train["labels"][:count].astype(np.int64))
    with torch.no_grad():
        theirs = model.eval().forward_features(pixels[:8]).numpy()
    apart = float(np.abs(theirs - np.asarray(encoder.encode(images[:8], pool=None))).max())

    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(0, count, (64,))
        loss = torch.nn.functional.cross_entropy(model(pixels[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.3f}; features of timm and maejax differ by {apart:.1e} at most")
    return apart


if __name__ == "__main__":
    main()
