"""The authors' PyTorch training step, from the paper (He et al. 2022, section 3 and appendix A.1) in plain torch.

It shuffles patches by the argsort of noise, encodes the visible ones, un-shuffles with mask tokens, decodes, predicts
every patch and scores the hidden ones; eager, with PyTorch's fused attention and fused AdamW, the fastest of its forms.
"""

import math

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """One pre-norm layer."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        """Transform tokens [B, T, D]."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        out = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


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


def training_step(sizes, batch, dtype):
    """Make a function that takes one step on the same random batch, and returns the loss."""
    torch.manual_seed(0)
    model = Peer(**sizes)
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed, rest = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim < 2]
    groups = [{"params": decayed}, {"params": rest, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    images = torch.randn(batch, 3, *sizes["image_size"])

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(images)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise SystemExit("the peer's loss is not finite")
        return loss.item()

    return step
