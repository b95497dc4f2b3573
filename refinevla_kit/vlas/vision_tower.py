"""Vision transformers with timm's names and sizes, as OpenVLA's checkpoints hold them: DINOv2 and SigLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

DINO_LARGE: dict[str, Any] = {
    "embed_dim": 1024,
    "depth": 24,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "patch_size": 14,
    "reg_tokens": 4,
    "init_values": 1e-5,
    "no_embed_class": True,
}
SIGLIP_SO400M: dict[str, Any] = {
    "embed_dim": 1152,
    "depth": 27,
    "num_heads": 16,
    "mlp_ratio": 3.7362,
    "patch_size": 14,
    "class_token": False,
    "global_pool": "map",
}
TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": DINO_LARGE,
    "vit_so400m_patch14_siglip_224": SIGLIP_SO400M,
    "vit_so400m_patch14_siglip_384": SIGLIP_SO400M,
}
"""timm's names in released config files -> sizes, as timm 0.9.16 has them."""


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # 3, B, H, N, h
        mixed = nn.functional.scaled_dot_product_attention(*parts)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class _Block(GradientCheckpointingLayer):  # type: ignore[misc]
    def __init__(self, width: int, heads: int, hidden: int, scaled: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.ls1 = _Scale(width) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _MLP(width, hidden)
        self.ls2 = _Scale(width) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Pool(nn.Module):
    """SigLIP's pooling head: in the file, used by nothing."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _MLP(width, hidden)


class VisionTower(nn.Module):
    """A vision transformer with timm's names, run to its last block but one."""

    def __init__(self, size: dict[str, Any], image: int) -> None:
        super().__init__()
        width, patch = size["embed_dim"], size.get("patch_size", 14)
        hidden = int(width * size.get("mlp_ratio", 4.0))
        registers = size.get("reg_tokens", 0)
        self.grid = image // patch
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        has_class = size.get("class_token", True)
        # timm gives the tokens before the patches positions, too, unless told not to
        before = 0 if size.get("no_embed_class") else has_class + registers
        self.pos_embed = nn.Parameter(torch.zeros(1, before + self.grid**2, width))
        if has_class:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if registers:
            self.reg_token = nn.Parameter(torch.zeros(1, registers, width))
        scaled = bool(size.get("init_values"))
        self.blocks = nn.ModuleList(
            _Block(width, size["num_heads"], hidden, scaled) for _ in range(size["depth"])
        )
        # in the file, used by nothing
        self.norm = nn.LayerNorm(width, eps=1e-6)
        if size.get("global_pool") == "map":
            self.attn_pool = _Pool(width, hidden)

    @property
    def unused(self) -> tuple[nn.Module, ...]:
        """What is in the file and run by nothing."""
        pool = [self.attn_pool] if hasattr(self, "attn_pool") else []
        return (self.blocks[-1], self.norm, *pool)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, s, s) -> tokens (B, patches, width)."""
        projection: Any = self.patch_embed.proj
        x = projection(pixels).flatten(2).transpose(1, 2)
        patches = x.shape[1]
        before = [
            getattr(self, name).expand(len(x), -1, -1)
            for name in ("cls_token", "reg_token")
            if hasattr(self, name)
        ]
        if self.pos_embed.shape[1] == patches:
            x = torch.cat([*before, x + self.pos_embed], 1)
        else:
            x = torch.cat([*before, x], 1) + self.pos_embed
        for block in list(self.blocks)[:-1]:
            x = block(x)
        return x[:, -patches:]
