"""What is frozen: ReFineVLA's selective transfer trains the upper blocks and the policy head, and leaves the
lower layers as they were.
"""

from __future__ import annotations

from torch import nn

from refinevla_kit.errors import KitError
from refinevla_kit.vlas.contract import VLA


def freeze_lower(vla: VLA, layers: int, tower: bool = True) -> dict[str, int]:
    """Freeze the lower `layers` language layers, and with them the projector and the input embeddings;
    `tower` freezes the vision tower.

    With `layers=0` projector, embeddings and every language layer train, and what makes the robot's own state
    a token.

    Returns:
        {"trainable": parameters that train, "frozen": those that do not}.

    Raises:
        KitError: fewer layers exist.
    """
    if not 0 <= layers <= len(vla.layers):
        raise KitError(
            f"cannot freeze {layers} of {len(vla.layers)} language layers", f"choose 0 to {len(vla.layers)}"
        )
    vla.model.requires_grad_(True)
    frozen: list[nn.Module] = [*vla.tower] if tower else []
    if layers:
        frozen += [*vla.projector, vla.decoder.embed_tokens, *vla.layers[:layers]]
    for module in frozen:
        module.requires_grad_(False)
    if not layers and vla.state_encoder is not None:
        vla.state_encoder.requires_grad_(True)
    counts = {True: 0, False: 0}
    for parameter in vla.model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return {"trainable": counts[True], "frozen": counts[False]}
