"""The compact VLA's vision tower: a small convolutional stem that gives one token a 20 x 20 pixel patch, 6 x
8 of a 120 x 160 picture.

It stands where SigLIP stands in PaliGemma (registered with transformers' AutoModel). At this size
convolutions place objects to a fraction of a pixel after a minute of training where plain patches need many.
Each token carries its absolute position, because the language model's rotary positions are relative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class ConvTowerConfig(PreTrainedConfig):
    """height, width: picture size in pixels (multiples of patch_size = 20); hidden_size: token width;
    channels: of the first stage; state_size: numbers of the robot's own state, which become one more token
    (0: none).
    """

    model_type = "refinevla_conv_tower"

    def __init__(
        self,
        height: int = 120,
        width: int = 160,
        channels: int = 48,
        hidden_size: int = 192,
        projection_dim: int = 192,
        state_size: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.height, self.width, self.channels, self.hidden_size, self.projection_dim = (
            height,
            width,
            channels,
            hidden_size,
            projection_dim,
        )
        self.patch_size, self.image_size, self.state_size = 20, width, state_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.height // self.patch_size, self.width // self.patch_size


class _Stage(nn.Sequential):
    """Convolution, group norm, GELU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2),
            nn.GroupNorm(8, outputs),
            nn.GELU(),
        )


class ConvTower(PreTrainedModel):
    """pixel_values float (B, 3, H, W) in [-1, 1] -> last_hidden_state (B, rows * columns, hidden_size), row
    by row.
    """

    config_class = ConvTowerConfig
    main_input_name = "pixel_values"
    state_mean: Tensor
    state_scale: Tensor
    base_model_prefix = "conv_tower"

    def __init__(self, config: ConvTowerConfig) -> None:
        super().__init__(config)
        c, d = config.channels, config.hidden_size
        self.stages = nn.Sequential(
            _Stage(3, c, 7, 5), _Stage(c, 2 * c, 3, 2), _Stage(2 * c, 2 * c, 3, 1), _Stage(2 * c, d, 3, 2)
        )
        self.mix = nn.Sequential(
            _Stage(d, d, 3, 1), nn.Conv2d(d, d, 3, padding=1)
        )  # one residual block between neighbouring patches
        rows, columns = config.grid
        self.position = nn.Parameter(torch.zeros(rows * columns, d))
        self.norm = nn.LayerNorm(d)
        if config.state_size:
            self.state = nn.Sequential(
                nn.Linear(config.state_size, d), nn.GELU(), nn.Linear(d, d), nn.LayerNorm(d)
            )
            self.register_buffer(
                "state_mean", torch.zeros(config.state_size)
            )  # of the data it was trained on
            self.register_buffer("state_scale", torch.ones(config.state_size))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ConvTower):
            nn.init.normal_(module.position, std=0.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        x = self.stages(pixel_values)  # B, d, rows, columns
        tokens = self.norm(
            (x + self.mix(x)).flatten(2).transpose(1, 2) + self.position
        )  # B, rows * columns, d
        return BaseModelOutputWithPooling(last_hidden_state=tokens)

    def state_token(self, states: Tensor) -> Tensor:
        """float (B, state_size) in their own units -> the token of the robot's own state (B, 1,
        hidden_size).
        """
        token: Tensor = self.state((states - self.state_mean) / self.state_scale)
        return token[:, None]


AutoConfig.register(ConvTowerConfig.model_type, ConvTowerConfig)
AutoModel.register(ConvTowerConfig, ConvTower)
