"""What every VLA that speaks in tokens is: a way from pictures to words of a decoder, the decoder, and a
layout.

Sequences, the objective, freezing, adapters, the activation cache, decoding, attention and the explorer are
written on this contract alone. A new VLA is one module with a subclass of `VLA`; `decoder.py` runs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from refinevla_kit.conventions import Conventions
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array
from refinevla_kit.vlas.action_tokens import ActionTokens


@dataclass(frozen=True)
class Marks:
    """Vocabulary ids that give a sequence its form.

    Attributes:
        pad: fills shorter sequences, seen by nothing.
        end: ends a text.
        action: what stands before the action's words; never predicted by a policy that acts. None: nothing.
        rationale: what stands before a rationale. None: nothing.
        closes: every answer ends with `end`, an action too; else only a text does.
    """

    pad: int
    end: int
    action: int | None
    rationale: int | None
    closes: bool = False


@dataclass(frozen=True)
class AdapterPreset:
    """Low-rank adapters as a model's authors train them.

    Attributes:
        rank, alpha: of the adapters.
        targets: regular expression of the adapted modules' whole names.
    """

    rank: int
    alpha: float
    targets: str


@dataclass(frozen=True)
class VLA(ABC):
    """A model, its tokenizer, how it writes actions, and where it came from.

    Attributes:
        model: holds every parameter; saved and hashed as a whole.
        tokenizer: of the decoder.
        bins: its action tokens.
        provenance: what made it (data hash, steps, seed, base hash, ...); free form, saved with the
            checkpoint.
        two_way: the prefix is read in both directions (PaliGemma); else everything is causal (Llama).
        first_position: the position of a sequence's first token: 1 for the PaliGemma family, 0 for Llama.
        image_start: where in a sequence the words of the picture begin.
        adapter_preset: how its authors train adapters; None where they never did.
    """

    two_way: ClassVar[bool]
    first_position: ClassVar[int]
    image_start: ClassVar[int] = 0
    adapter_preset: ClassVar[AdapterPreset | None] = None

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    bins: ActionTokens
    provenance: dict[str, Any]

    # --- the decoder ---

    @property
    @abstractmethod
    def decoder(self) -> Any:
        """transformers' text model: `layers`, `norm`, `rotary_emb`, `embed_tokens`, `config`."""

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """From hidden states (..., d) to logits (..., V)."""

    # --- pictures ---

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image patches."""

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """Width and height in pixels of the picture that the tower takes."""

    @property
    def reads_state(self) -> bool:
        """It wants the robot's own state beside the picture; its token follows the patches."""
        return False

    @property
    @abstractmethod
    def image_id(self) -> int:
        """The vocabulary id that stands where the words of the picture go."""

    @property
    def patches(self) -> int:
        rows, columns = self.grid
        return rows * columns

    @property
    def on_patches(self) -> slice:
        """Where in a sequence the patches are."""
        return slice(self.image_start, self.image_start + self.patches)

    @property
    def image_tokens(self) -> int:
        """Words of the picture: a patch each, then the robot's own state where it is read."""
        return self.patches + self.reads_state

    @property
    def image_end(self) -> int:
        """One past the last word of the picture."""
        return self.image_start + self.image_tokens

    @abstractmethod
    def pixel_values(self, images: Array | Sequence[Array]) -> Tensor:
        """uint8 (B, H, W, 3), or B pictures of several sizes -> float32 (B, C, height, width) as the tower
        takes them.
        """

    def states(self, proprioception: Array | None) -> Tensor | None:
        """float (B, 15) -> what `image_words` takes; None for a policy that reads no state."""
        return None

    @abstractmethod
    def look(self, pixels: Tensor) -> Tensor:
        """Pixel values -> the tower's tokens (B, patches, t)."""

    @abstractmethod
    def image_words(self, tokens: Tensor, states: Tensor | None) -> Tensor:
        """The tower's tokens and own states -> words of the picture (B, image_tokens, d), in the decoder's
        own scale.
        """

    def see(self, pixels: Tensor, states: Tensor | None) -> Tensor:
        """Words of the picture (B, image_tokens, d) from pixel values."""
        return self.image_words(self.look(pixels), states)

    def forget_state(self) -> None:
        """Make a VLA that reads the robot's own state one that does not, in place."""
        return

    # --- words ---

    @property
    @abstractmethod
    def marks(self) -> Marks:
        """What gives a sequence its form."""

    @property
    @abstractmethod
    def first_action(self) -> int:
        """Vocabulary id of action word 0; word i has this id + i."""

    def prefix_ids(self, instruction: str) -> list[int]:
        """Everything before the answer: places of the picture and the instruction's tokens."""
        words: list[int] = self.tokenizer.encode(instruction, add_special_tokens=False)
        return [self.image_id] * self.image_tokens + words

    def words(self, ids: Tensor) -> Tensor:
        """Vocabulary ids (B, N) -> embeddings (B, N, d) in the decoder's own scale."""
        return self.decoder.embed_tokens(ids)

    @property
    def chunk(self) -> int:
        """Steps that one answer plans."""
        return 1

    @property
    def settings(self) -> str:
        """What else than weights, tokens and the decoder's form makes its states, to be compared."""
        return ""

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """First and one past the last word allowed at each place of an answer, of all its steps."""
        return self.bins.ranges * self.chunk

    @property
    def word_names(self) -> tuple[str, ...]:
        """What each word of an answer says."""
        if self.chunk == 1:
            return self.bins.names
        return tuple(f"{name} {step + 1}" for step in range(self.chunk) for name in self.bins.names)

    def is_action(self, ids: Tensor) -> Tensor:
        """Which of these vocabulary ids are action words."""
        return (ids >= self.first_action) & (ids < self.first_action + self.bins.words)

    def own_actions(self, actions: Array) -> Array:
        """float (..., 7) as the kit records them -> in the units that `bins` encode."""
        return actions

    def on(self, robot: str) -> VLA:
        """The same weights, with the action statistics of this robot's data.

        Raises:
            KitError: it has none.
        """
        own = self.conventions.robot
        if robot != own:
            what = f"a {type(self).__name__} acts for the {own} alone, not for the {robot}"
            raise KitError(what, f"give a checkpoint of the {robot}, or tasks and data of the {own}")
        return self

    def fitted(self, actions: Array, adapt: bool, robot: str = "widowx") -> VLA:
        """The same model with action words for other data.

        Args:
            actions: float (N, 7), as the kit records them.
            adapt: move the words' cells and embeddings, too.
            robot: whose actions they are.

        Raises:
            KitError: its action words are part of its checkpoint, as here.
        """
        what = f"the action words of a {type(self).__name__} are part of its checkpoint"
        raise KitError(what, 'set action_words to "base"')

    def kit_actions(self, actions: Array) -> Array:
        """Inverse of `own_actions`."""
        return actions

    # --- parts, for freezing and for shuffling weights ---

    @property
    @abstractmethod
    def tower(self) -> tuple[nn.Module, ...]:
        """What makes tokens of a picture."""

    @property
    @abstractmethod
    def projector(self) -> tuple[nn.Module, ...]:
        """What makes words of the decoder of them."""

    @property
    def embeddings(self) -> tuple[nn.Module, ...]:
        """What makes words of the decoder of vocabulary ids."""
        return (self.decoder.embed_tokens,)

    @property
    def constant(self) -> tuple[nn.Module, ...]:
        """What never learns, whatever is trained."""
        return ()

    @property
    def state_encoder(self) -> nn.Module | None:
        """The part of the tower that makes a token of the robot's own state."""
        return None

    @property
    def convolutions(self) -> nn.Module | None:
        """The tower's convolutional stages, for Grad-CAM; None where there are none."""
        return None

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers, from the lowest up."""
        return self.decoder.layers

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    @abstractmethod
    def conventions(self) -> Conventions:
        """What its actions mean and which picture it wants."""

    @abstractmethod
    def save(self, path: str | Path, dtype: torch.dtype = torch.float32, adapter: Path | None = None) -> Path:
        """Write a checkpoint directory that `load_vla` reads. Appears whole or not at all.

        Args:
            path: of the directory.
            dtype: that the weights are stored in.
            adapter: a folder with peft's files, which are kept instead of the weights; they name their base.
        """
