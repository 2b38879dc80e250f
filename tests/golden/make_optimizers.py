"""Makes optimizers.npz: parameters after steps of PyTorch's AdamW and SGD, and timm's LAMB, on given gradients.

python tests/golden/make_optimizers.py (torch, timm). Stacks of layers are taken apart: each layer is a parameter.
"""

import sys
from pathlib import Path

import numpy as np
import peers  # noqa: F401
import torch
from timm.optim import Lamb

from maejax.models.trees import named_arrays

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.training.test_optim import DECAY, RATES, autoencoder

OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.9),
    "lamb": lambda groups: Lamb(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-6, max_grad_norm=1.0),
}


def main():
    rng = np.random.default_rng(0)
    start = {
        name: np.float32(0.1 * rng.normal(size=array.shape))
        for name, array in named_arrays(autoencoder()).items()
        if not name.endswith("positions")
    }
    grads = {name: np.float32(rng.normal(size=(len(RATES), *array.shape))) for name, array in start.items()}
    arrays = {f"start/{name}": array for name, array in start.items()}
    arrays |= {f"grads/{name}": array for name, array in grads.items()}
    for optimizer, make in OPTIMIZERS.items():
        taken = {}  # parameters of every name, one for each layer
        for name, array in start.items():
            layers = array if ".blocks." in name else array[None]
            taken[name] = [torch.nn.Parameter(torch.from_numpy(layer.copy())) for layer in layers]
        decayed = [name for name in taken if name.endswith(("kernel", "cls_token", "mask_token"))]
        rest = [name for name in taken if name not in decayed]
        made = make([
            {"params": [p for name in decayed for p in taken[name]], "weight_decay": DECAY},
            {"params": [p for name in rest for p in taken[name]], "weight_decay": 0.0},
        ])  # fmt: skip
        for step, rate in enumerate(RATES):
            for group in made.param_groups:
                group["lr"] = rate
            for name, params in taken.items():
                grad = grads[name][step]
                for param, layer in zip(params, grad if ".blocks." in name else grad[None], strict=True):
                    param.grad = torch.from_numpy(layer.copy())
            made.step()
        for name, params in taken.items():
            layers = np.stack([param.detach().numpy() for param in params])
            arrays[f"{optimizer}/{name}"] = layers if ".blocks." in name else layers[0]
    np.savez_compressed(Path(__file__).with_name("optimizers.npz"), **arrays)


if __name__ == "__main__":
    main()
