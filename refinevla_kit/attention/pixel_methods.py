"""Attribution by what the picture does to the score, through captum: gradients along a path, gradients at the
tower, patches taken away.

These say what the answer *depends* on, where attention says what was read. They work on the picture as the
tower takes it, and need no attention.
"""

from __future__ import annotations

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerGradCam, Occlusion
from torch import Tensor

from refinevla_kit.attention.fills import BLUR, MEAN, Fill, filling
from refinevla_kit.attention.forward import Asked, Found
from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Array

AT_A_TIME = 16  # pictures a forward pass


@torch.enable_grad()
def integrated_gradients(asked: Asked, fill: Fill = BLUR, steps: int = 32) -> Found:
    """Integrated gradients (Sundararajan et al. 2017) from the filled picture to this one, `steps` along the
    way.

    Summed over a patch's pixels and colours; all patches together are the score's difference between the two
    pictures, up to `residual`. A flat start makes it large: the tower's group norms divide by how much a
    picture varies, which near a flat one changes within the first step.
    """
    pixels, start = asked.pixels(), asked.pixels(filling(asked.image, fill))
    found, residual = IntegratedGradients(asked.score).attribute(
        pixels, start, n_steps=steps, internal_batch_size=AT_A_TIME, return_convergence_delta=True
    )
    fine = found[0].sum(0).detach().double().cpu().numpy()  # height, width
    return Found(
        _summed(fine, asked.policy.vla.grid),
        fine,
        {"fill": fill, "steps": steps, "residual": float(residual[0])},
    )


@torch.enable_grad()
def grad_cam(asked: Asked) -> Found:
    """Grad-CAM (Selvaraju et al. 2017) at the last convolution of the tower: its channels weighted by the
    score's mean gradient.

    Raises:
        KitError: the vision tower has no convolutional stages.
    """
    stages = asked.policy.vla.convolutions
    if stages is None:
        raise KitError(
            f"the vision tower of {asked.policy.name} has no convolutional stages",
            "choose another method than 'grad_cam'",
        )
    pixels = asked.pixels().requires_grad_()  # the tower may be frozen
    found = LayerGradCam(asked.score, stages).attribute(pixels)
    assert isinstance(found, Tensor)
    return Found(found[0, 0].detach().double().cpu().numpy(), None, {"at": "vision tower, last stage"})


@torch.no_grad()
def occlusion(asked: Asked, fill: Fill = MEAN) -> Found:
    """How much the score falls when one patch of the picture is filled (Zeiler and Fergus 2014), patch by
    patch.
    """
    pixels, grid = asked.pixels(), asked.policy.vla.grid
    size = (pixels.shape[2] // grid[0], pixels.shape[3] // grid[1])
    found = Occlusion(asked.score).attribute(
        pixels,
        (3, *size),
        (3, *size),
        asked.pixels(filling(asked.image, fill)),
        perturbations_per_eval=AT_A_TIME,
    )
    return Found(
        found[0, 0, :: size[0], :: size[1]].double().cpu().numpy(), None, {"fill": fill}
    )  # one value a patch, repeated over its pixels


def _summed(fine: Array, grid: tuple[int, int]) -> Array:
    """Sums of a map (height, width) over each patch."""
    rows, columns = grid
    return np.asarray(
        fine.reshape(rows, fine.shape[0] // rows, columns, fine.shape[1] // columns).sum((1, 3))
    )
