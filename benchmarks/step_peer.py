"""The authors' PyTorch training step, from the paper (He et al. 2022, section 3 and appendix A.1) in plain torch.

It shuffles patches by the argsort of noise, encodes the visible ones, un-shuffles with mask tokens, decodes, predicts
every patch and scores the hidden ones; eager, with PyTorch's fused attention and fused AdamW, the fastest of its forms.
Fine-tuning (A.1, table 9) classifies the mean of all patches, erases and mixes images and targets, drops paths and
gives every layer its own rate.
"""

import math

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """One pre-norm layer."""

    def __init__(self, dim, heads, drop=0.0):
        super().__init__()
        self.heads, self.drop = heads, drop
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        """Transform tokens [B, T, D]."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        out = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.keep(self.proj(out.transpose(1, 2).reshape(batch, tokens, dim)))
        return x + self.keep(self.fc2(functional.gelu(self.fc1(self.norm2(x)))))

    def keep(self, x):
        """Drop the whole path of some samples [B, T, D]."""
        if not self.drop:
            return x
        return x * (x.new_empty(len(x), 1, 1).bernoulli_(1 - self.drop) / (1 - self.drop))


class Peer(nn.Module):
    """Sizes as `maejax.models.mae.MaskedAutoencoder` calls them."""

    def __init__(self, *, image_size, patch_size, dim, layers, heads, dec_dim, dec_layers, dec_heads, mask_ratio=0.75):
        super().__init__()
        self.patch_size, self.grid = patch_size, image_size[0] // patch_size
        self.patches = self.grid**2
        self.visible = int(self.patches * (1 - mask_ratio))
        self.embed = nn.Conv2d(3, dim, patch_size, patch_size)
        self.cls_token, self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, 1, dec_dim))
        # The values of a fixed table change no time.
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + self.patches, dim), requires_grad=False)
        self.dec_positions = nn.Parameter(0.02 * torch.randn(1, 1 + self.patches, dec_dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.dec_blocks = nn.ModuleList(Block(dec_dim, dec_heads) for _ in range(dec_layers))
        self.norm, self.dec_norm = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dec_dim, eps=1e-6)
        self.dec_embed, self.predict = nn.Linear(dim, dec_dim), nn.Linear(dec_dim, 3 * patch_size**2)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, images):
        """Compute the mean loss of normalised images [B, 3, H, W]."""
        x = self.embed(images).flatten(2).transpose(1, 2) + self.positions[:, 1:]
        batch, patches, dim = x.shape
        order = torch.argsort(torch.rand(batch, patches), dim=1)
        back = torch.argsort(order, dim=1)
        x = torch.gather(x, 1, order[:, : self.visible, None].expand(-1, -1, dim))
        x = torch.cat([(self.cls_token + self.positions[:, :1]).expand(batch, -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.dec_embed(self.norm(x))
        masks = self.mask_token.expand(batch, patches - self.visible, -1).to(x.dtype)
        tokens = torch.gather(torch.cat([x[:, 1:], masks], dim=1), 1, back[:, :, None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], tokens], dim=1) + self.dec_positions
        for block in self.dec_blocks:
            x = block(x)
        error = (self.predict(self.dec_norm(x))[:, 1:].float() - self.target(images)) ** 2
        hidden = (back >= self.visible).float()
        return (error.mean(-1) * hidden).sum() / hidden.sum()

    def target(self, images):
        """Cut images into patches [B, N, P]."""
        batch, side, size = len(images), self.grid, self.patch_size
        tiles = images.reshape(batch, 3, side, size, side, size)
        return torch.einsum("nchpwq->nhwpqc", tiles).reshape(batch, side * side, -1)


def learn(loss, model, optimizer):
    """Go back from a loss, update, and return its value."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])  # the authors' loop does
    optimizer.step()
    if not math.isfinite(loss.item()):
        raise SystemExit("the peer's loss is not finite")
    return loss.item()


def training_step(sizes, batch, dtype, device="cpu", *, compiled=False):
    """Make a function that takes one step on the same random batch, and returns the loss."""
    torch.manual_seed(0)
    model = Peer(**sizes).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed, rest = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim < 2]
    groups = [{"params": decayed}, {"params": rest, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    images = torch.randn(batch, 3, *sizes["image_size"], device=device)
    forward = torch.compile(model) if compiled else model

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(images)
        return learn(loss, model, optimizer)

    return step


class Tuned(nn.Module):
    """A classifier on the mean of the patches; sizes as `maejax.models.classifier.Classifier` calls them."""

    def __init__(self, *, image_size, patch_size, dim, layers, heads, labels, drop=0.1):
        super().__init__()
        self.patches = (image_size[0] // patch_size) ** 2
        self.embed = nn.Conv2d(3, dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + self.patches, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, drop * i / (layers - 1)) for i in range(layers))
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, labels)

    def forward(self, images):
        """Compute the logits of normalised images [B, 3, H, W]."""
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 1:].mean(1)))

    def layer(self, name):
        """Number the layer of a parameter: 0 for what comes before the blocks, the last for what comes after."""
        if name.startswith("blocks"):
            return 1 + int(name.split(".")[1])
        return 1 + len(self.blocks) if name.startswith(("norm", "head")) else 0


def erase(images, probability=0.25):
    """Fill a rectangle of some images with noise, in place."""
    height, width = images.shape[2:]
    for image in images:
        if torch.rand(()) < probability:
            area, ratio = height * width * torch.empty(()).uniform_(0.02, 1 / 3), torch.empty(()).uniform_(-1.2, 1.2)
            h = min(height - 1, int((area * ratio.exp()).sqrt()))
            w = min(width - 1, int((area / ratio.exp()).sqrt()))
            top, left = int(torch.randint(height - h, ())), int(torch.randint(width - w, ()))
            image[:, top : top + h, left : left + w] = torch.randn(3, h, w)


def mix(images, targets, mixup=0.8, cutmix=1.0):
    """Mix a batch with its reverse, by value or by rectangle, one draw for all of it."""
    if torch.rand(()) < 0.5:
        share = float(torch.distributions.Beta(mixup, mixup).sample())
        images = share * images + (1 - share) * images.flip(0)
    else:
        height, width = images.shape[2:]
        cut = (1 - float(torch.distributions.Beta(cutmix, cutmix).sample())) ** 0.5
        h, w, y, x = int(height * cut), int(width * cut), int(torch.randint(height, ())), int(torch.randint(width, ()))
        top, bottom = max(0, y - h // 2), min(height, y + h // 2)
        left, right = max(0, x - w // 2), min(width, x + w // 2)
        share = 1 - (bottom - top) * (right - left) / (height * width)
        images = images.clone()
        images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return images, share * targets + (1 - share) * targets.flip(0)


def tuning_step(sizes, batch, dtype):
    """Make a function that takes one step of fine-tuning on the same random batch, and returns the loss."""
    torch.manual_seed(0)
    model, labels = Tuned(**sizes), sizes["labels"]
    groups = {}
    for name, parameter in model.named_parameters():
        rate = 1e-4 * 0.65 ** (1 + len(model.blocks) - model.layer(name))
        groups.setdefault((rate, 0.05 if parameter.ndim > 1 else 0), []).append(parameter)
    groups = [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True)
    images = torch.randn(batch, 3, *sizes["image_size"])
    targets = torch.full((batch, labels), 0.1 / labels)
    targets[torch.arange(batch), torch.randint(labels, (batch,))] += 0.9

    def step():
        seen = images.clone()
        erase(seen)
        seen, wanted = mix(seen, targets)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(seen)
        loss = -(wanted * logits.float().log_softmax(-1)).sum(-1).mean()
        return learn(loss, model, optimizer)

    return step
