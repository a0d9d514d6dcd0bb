"""Guidance: steers a frozen model at inference and leaves no trace of itself afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graftwork.interfaces import DiffusionPipeline

if TYPE_CHECKING:
    from torch import Tensor

    from graftwork.artifact import Artifact
    from graftwork.kinds.dataset import Dataset

__all__ = ["Guidance", "Samples"]


@dataclass(frozen=True)
class Samples:
    """What a guided model produced.

    Args:
        images: (B, C, H, W) in [0, 1], or None for text.
        texts: one string a sample, or () for images.
        prompts: what each sample was asked for.
        metrics: figures of the sampling itself, such as the number of network evaluations.
    """

    images: Tensor | None = None
    texts: Sequence[str] = ()
    prompts: Sequence[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


class Guidance(ABC):
    """Steers a frozen model. After `attach` has ended the pipeline's outputs are bit-identical to before.

    Attributes:
        needs: what its pipeline must offer.
        stacks: whether it may be attached while another guidance is.
    """

    needs: type = DiffusionPipeline
    stacks: bool = True

    @abstractmethod
    def attach(self, pipeline: Any) -> AbstractContextManager[Any]:
        """Install the guider, attention processors or logits processor; the context's end removes them, also on an exception."""

    def sample(self, pipeline: Any, inputs: Mapping[str, Any]) -> Samples:
        """Call the pipeline under guidance.

        Args:
            pipeline: as `needs` says.
            inputs: the call's keyword arguments (`prompt`, `generator`, `num_inference_steps`, ...).
        """
        prompts = inputs.get("prompt", ())
        with self.attach(pipeline):
            output = pipeline(**{"output_type": "pt", **inputs})
        return Samples(images=output.images, prompts=[prompts] if isinstance(prompts, str) else list(prompts))

    def fit(self, pipeline: Any, data: Dataset) -> Artifact | None:
        """Learn what the guidance needs and give it as an artifact; None when there is nothing to learn."""
        return None
