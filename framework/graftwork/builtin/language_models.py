"""Causal language models of transformers by Hugging Face id or folder."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork.builtin.hub import Precision, transformers_model
from graftwork.builtin.tokenization import load_tokenizer, longest
from graftwork.errors import GraftworkError, InterfaceError
from graftwork.kinds.evaluator import evaluating

__all__ = ["TransformersCausalLM"]

Count = Annotated[int, Field(ge=1)]


class TransformersCausalLM(nn.Module):
    """A causal language model of transformers with its tokenizer.

    Positions are counted from the first token that is no padding, so that a text has the same logits alone, padded on the right
    and padded on the left.

    Args:
        name: Hugging Face id or folder; safetensors only, and no code of the repository is run.
        tokenizer: Hugging Face id or folder of the tokenizer, where it is not the model's.
        max_length: tokens after which a text is cut; by default the most that the model takes.
        dtype: of the weights, whatever the checkpoint's.

    Attributes:
        tokenizer: of transformers; pads with the end-of-text token where it has no padding token.

    Raises:
        GraftworkError: if it cannot be loaded or lacks weights.
        InterfaceError: if a token's logits depend on later tokens, as those of BERT do.
    """

    inputs = ("input_ids", "attention_mask")

    def __init__(self, name: str, tokenizer: str | None = None, max_length: Count | None = None, dtype: Precision = "float32"):
        super().__init__()
        model, lacking = transformers_model("AutoModelForCausalLM", name, "causal language model", dtype)
        if lacking:
            raise GraftworkError(f'causal language model "{name}" has no weights for {", ".join(lacking[:4])}')
        self._hold(model, load_tokenizer(tokenizer or name), max_length)

    @classmethod
    def wrap(cls, model: Any, tokenizer: Any, max_length: Count | None = None) -> TransformersCausalLM:
        """Give a model of transformers that is already in memory this surface."""
        wrapper = cls.__new__(cls)
        nn.Module.__init__(wrapper)
        wrapper._hold(model, tokenizer, max_length)
        return wrapper

    def _hold(self, model: Any, tokenizer: Any, max_length: int | None) -> None:
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length or longest(model, tokenizer)
        taken = inspect.signature(model.forward).parameters
        self._takes_positions, self._always = "position_ids" in taken, {"use_cache": False} if "use_cache" in taken else {}
        if getattr(model.config, "is_decoder", True) is False and self._looks_ahead():
            raise InterfaceError(f"{type(model).__name__} is no causal language model: a token's logits depend on later tokens")

    def _looks_ahead(self) -> bool:
        """Whether the last of three tokens changes the logits of the first two."""
        tokens = torch.tensor([[0, 0, 0], [0, 0, 1]], device=self.model.device)
        with evaluating(self):
            one, other = self(tokens)[:, :2].float()
        return not torch.allclose(one, other, rtol=1e-3, atol=1e-4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Tokens (B, T) and their mask, 1 where there is text, to logits (B, T, V) of the token that follows each."""
        positions: dict[str, Tensor] = {}
        if attention_mask is not None and self._takes_positions:
            positions["position_ids"] = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **self._always, **positions)
        return output.logits  # type: ignore[no-any-return]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `generate`: tokens (B, T') that continue `input_ids`; prompts of one batch are padded on the left."""
        return self.model.generate(*args, **kwargs)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model and its tokenizer as transformers does."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
