"""Drawing by kernels, where the logits are: what comes of it stays there until it is read with all else of a step."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llmhost.config.environment import process_environment
from llmhost.engines.drawing import Place, is_shaped
from llmhost.engines.kernel_needs import kernels_refusal
from llmhost.engines.masks import Masks
from llmhost.engines.torch.asked import asked_of, to_device
from llmhost.engines.torch.shaping import Shaper

NO_NUMBERS = -2
"""Drawn where the model's logits are NaN or infinite."""
NOTHING_LEFT = -1
"""Drawn where what a request asks for leaves nothing."""


class DeviceDraws:
    """Draws for one runner, in a room that grows with its steps."""

    def __init__(self) -> None:
        self._room: Any = None

    def pick(self, logits: Tensor, places: Sequence[Place], masks: Masks, shaper: Shaper) -> Tensor:
        """What would be drawn at each place if the text before it is right: [places] in int32, on the device.

        Negative numbers are NO_NUMBERS or NOTHING_LEFT. Nothing is waited for.
        """
        shaped = [line for line, place in enumerate(places) if is_shaped(place)]
        if not shaped:
            return self._draw(logits, places)
        some = [places[line] for line in shaped]
        lines = to_device(torch.tensor(shaped), logits.device)
        drawn = self.pick_shaped(logits[lines], some, masks, shaper)
        if len(shaped) == len(places):
            return drawn
        # The shaped lines' draws among these are of no use, but to leave them out would take a copy.
        return self._draw(logits, places).index_copy_(0, lines, drawn)

    def pick_shaped(
        self,
        logits: Tensor,
        places: Sequence[Place],
        masks: Masks,
        shaper: Shaper,
        fed: Tensor | None = None,
    ) -> Tensor:
        """`pick` at places whose logits are shaped, some of which may be pending: see `Shaper.shape`. `logits` may be
        changed."""
        scores = logits.float()
        is_sound = scores.amax(-1).isfinite()
        shaper.shape(scores, places, masks, fed)
        return self._draw(scores, places, NOTHING_LEFT).where(is_sound, NO_NUMBERS)

    def _draw(self, logits: Tensor, places: Sequence[Place], failure: int = NO_NUMBERS) -> Tensor:
        from llmhost.engines.torch.kernels.draw import DrawRoom, draw_tokens

        count, vocabulary = logits.shape
        if self._room is None or not self._room.fits(count, vocabulary):
            self._room = DrawRoom(2 ** (count - 1).bit_length(), vocabulary, logits.device)
        out = torch.empty(count, dtype=torch.int32, device=logits.device)
        draw_tokens(logits, asked_of(places, logits.device), out, self._room)
        return out.where(out >= 0, failure)


@cache
def has_kernels() -> bool:
    return kernels_refusal(process_environment()) is None
