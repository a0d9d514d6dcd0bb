"""Images and texts in one space: CLIP and its kin by Hugging Face id or folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from graftwork.builtin.hub import Precision, transformers_model
from graftwork.builtin.image_processor import ImagePreparation
from graftwork.builtin.tokenization import load_tokenizer, longest, tokenize
from graftwork.errors import GraftworkError, InterfaceError

__all__ = ["TransformersDualEncoder"]

Count = Annotated[int, Field(ge=1)]
Levels = list[float] | None
Input = Literal["pairs", "image", "text", "input_ids"]
INPUTS_OF: dict[Input, tuple[str, ...]] = {
    "pairs": ("image", "input_ids", "attention_mask"),
    "image": ("image",),
    "text": ("text",),
    "input_ids": ("input_ids", "attention_mask"),
}


class TransformersDualEncoder(nn.Module):
    """CLIP, or a model like it, with the DualEncoder surface (Radford et al., 2021, https://arxiv.org/abs/2103.00020).

    Embeddings are those of transformers' `get_image_features` and `get_text_features`: projected, but of any length. Cosines are
    what the model was trained for, so whoever compares embeddings normalises them first, as `forward` does.

    SigLIP (Zhai et al., 2023, https://arxiv.org/abs/2303.15343) was trained on texts padded to their full length without a mask:
    there `encode` pads so, and a mask is passed over.

    Args:
        name: Hugging Face id or folder; safetensors only, and no code of the repository is run.
        input: which sample keys the model takes where one kind of input is asked for: "pairs" (image, input_ids, attention_mask)
            for `forward`; "image", "text" or "input_ids" to embed one side alone, as a probe or a search does.
        resize: whether images of another size than the checkpoint's are resized to it.
        mean: of each channel, in place of the image processor's.
        std: of each channel, in place of the image processor's; given with `mean`.
        max_length: tokens after which a text is cut; by default the most that the model takes.
        dtype: of the weights, whatever the checkpoint's.

    Attributes:
        embedding_dim: width D of the embeddings.
        tokenizer: of the texts.

    Raises:
        GraftworkError: if it cannot be loaded, lacks weights, or how its images are normalised is not known.
        InterfaceError: if it does not embed both images and texts, or its tokenizer does not mark where a text ends.
    """

    def __init__(
        self,
        name: str,
        input: Input = "pairs",
        resize: bool = True,
        mean: Levels = None,
        std: Levels = None,
        max_length: Count | None = None,
        dtype: Precision = "float32",
    ):
        super().__init__()
        model, lacking = transformers_model("AutoModel", name, "dual encoder", dtype)
        if lacking:
            raise GraftworkError(f'dual encoder "{name}" has no weights for {", ".join(lacking[:4])}')
        if not all(hasattr(model, f"get_{side}_features") for side in ("image", "text")):
            raise InterfaceError(f'"{name}" is a {type(model).__name__}, which does not embed both images and texts')
        self._hold(model, load_tokenizer(name), ImagePreparation.load(name, model.config, resize, mean, std), input, max_length)

    @classmethod
    def wrap(
        cls, model: Any, tokenizer: Any, prepare: ImagePreparation, input: Input = "pairs", max_length: Count | None = None
    ) -> TransformersDualEncoder:
        """Give a model of transformers that is already in memory this surface."""
        wrapper = cls.__new__(cls)
        nn.Module.__init__(wrapper)
        wrapper._hold(model, tokenizer, prepare, input, max_length)
        return wrapper

    def _hold(self, model: Any, tokenizer: Any, prepare: ImagePreparation, input: Input, max_length: int | None) -> None:
        self.model, self.tokenizer, self.prepare, self.inputs = model, tokenizer, prepare, INPUTS_OF[input]
        self.max_length = max_length or longest(model, tokenizer)
        self._padded = model.config.model_type == "siglip"
        if model.config.model_type == "clip":
            _check_end_of_text(model.config.text_config.eos_token_id, tokenizer)
        text = model.config.text_config
        width = getattr(text, "projection_size", None) if self._padded else getattr(model.config, "projection_dim", None)
        self.embedding_dim = int(width or text.hidden_size)

    @property
    def logit_scale(self) -> nn.Parameter:
        """0-d, learned: the logarithm of what cosines are multiplied by."""
        return self.model.logit_scale  # type: ignore[no-any-return]

    def encode_image(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to embeddings (B, D), not normalised."""
        found = self.model.get_image_features(pixel_values=self.prepare(image).to(self.model.dtype))
        return cast(Tensor, getattr(found, "pooler_output", found))  # before transformers 5 the tensor itself

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Tokens (B, T) and their mask, 1 where there is text, to embeddings (B, D), not normalised."""
        mask = None if self._padded else attention_mask
        found = self.model.get_text_features(input_ids=input_ids, attention_mask=mask)
        return cast(Tensor, getattr(found, "pooler_output", found))  # before transformers 5 the tensor itself

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts to embeddings (B, D), on the model's device, with gradients where they are on; not normalised."""
        return self.encode_text(*tokenize(self.tokenizer, texts, self.max_length, self.model.device, self._padded))

    def embed(self, *inputs: Any) -> Tensor:
        """Images; or texts; or tokens and their mask, to embeddings (B, D). Of pairs, the images."""
        if not isinstance(inputs[0], Tensor):
            return self.encode(inputs[0])
        return self.encode_image(inputs[0]) if inputs[0].is_floating_point() else self.encode_text(*inputs)

    def forward(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [0, 1] and tokens (N, T) to scaled cosines (B, N), a row an image; SigLIP's with its bias."""
        cosines = normalize(self.encode_image(image), dim=-1) @ normalize(self.encode_text(input_ids, attention_mask), dim=-1).T
        return cosines * self.logit_scale.exp() + getattr(self.model, "logit_bias", 0.0)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model, its tokenizer and its image processor's settings as transformers does."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.prepare.save_pretrained(folder)


def _check_end_of_text(marker: int | None, tokenizer: Any) -> None:
    """Raise InterfaceError unless CLIP finds the end of a text, whose hidden state is the text's embedding, where it is."""
    ids = torch.tensor(tokenizer("a", truncation=True)["input_ids"])
    end = tokenizer.eos_token_id
    if end is None or end not in ids:
        raise InterfaceError("CLIP reads a text's embedding at its end-of-text token, but the tokenizer appends none")
    if marker == 2 and ids.argmax() != (ids == end).int().argmax():  # the configuration of the first checkpoints: the greatest id is it
        raise InterfaceError(
            f"to CLIP eos_token_id 2 means that a text ends at its greatest id; the tokenizer ends texts with {end}: give that another id"
        )
    if marker not in (2, end):
        raise InterfaceError(f"the tokenizer ends texts with token {end}, but the model's eos_token_id is {marker}")
