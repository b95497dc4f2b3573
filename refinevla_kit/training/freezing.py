"""What is frozen: ReFineVLA's selective transfer trains the upper blocks and the policy head, and leaves the lower layers as they were."""

from __future__ import annotations

from torch import nn

from refinevla_kit.errors import KitError
from refinevla_kit.policies.compact_vla import CompactVLA


def freeze_lower(vla: CompactVLA, layers: int, tower: bool = True) -> dict[str, int]:
    """Freeze the lower `layers` language layers, and with them the projector and the input embeddings; `tower` freezes the vision tower.

    With `layers=0` projector, embeddings and every language layer train, and what makes the robot's own state a token.

    Returns:
        {"trainable": parameters that train, "frozen": those that do not}.

    Raises:
        KitError: fewer layers exist.
    """
    model = vla.model.model
    decoder = model.language_model.layers
    if not 0 <= layers <= len(decoder):
        raise KitError(f"cannot freeze {layers} of {len(decoder)} language layers", f"choose 0 to {len(decoder)}")
    vla.model.requires_grad_(True)
    frozen: list[nn.Module] = [model.vision_tower] if tower else []
    if layers:
        frozen += [model.multi_modal_projector, model.language_model.embed_tokens, *decoder[:layers]]
    for module in frozen:
        module.requires_grad_(False)
    if not layers and vla.reads_state:
        model.vision_tower.state.requires_grad_(True)
    counts = {True: 0, False: 0}
    for parameter in vla.model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return {"trainable": counts[True], "frozen": counts[False]}
