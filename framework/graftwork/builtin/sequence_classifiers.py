"""Classifiers and rewards of text: sequence classification models of transformers by Hugging Face id or folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from graftwork.builtin.hub import Precision, transformers_classifier
from graftwork.builtin.tokenization import load_tokenizer, longest, tokenize
from graftwork.errors import DataError, GraftworkError

__all__ = ["TransformersReward", "TransformersTextClassifier"]

Count = Annotated[int, Field(ge=1)]
Input = Literal["text", "input_ids"]
AUTOMATIC = "AutoModelForSequenceClassification"
HEADS = ("classifier", "score", "pooler", "pre_classifier", "sequence_summary")
"""Where families keep what a new task trains anew; a checkpoint of another task may lack the pooler too."""


class _SequenceModel(nn.Module):
    """A sequence classification model with its tokenizer, for texts and for tokens."""

    inputs: tuple[str, ...]

    def _hold(self, model: Any, tokenizer: Any, input: Input, max_length: int | None) -> None:
        if model.config.pad_token_id is None:  # decoders find a text's last token by it
            model.config.pad_token_id = tokenizer.pad_token_id
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length or longest(model, tokenizer)
        self.inputs = ("text",) if input == "text" else ("input_ids", "attention_mask")

    def _logits(self, inputs: Tensor | Sequence[str], attention_mask: Tensor | None) -> Tensor:
        if not isinstance(inputs, Tensor):
            inputs, attention_mask = tokenize(self.tokenizer, inputs, self.max_length, self.model.device)
        return self.model(input_ids=inputs, attention_mask=attention_mask).logits  # type: ignore[no-any-return]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model and its tokenizer as transformers does."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class TransformersTextClassifier(_SequenceModel):
    """A sequence classification model of transformers, for texts or for tokens.

    Args:
        name: Hugging Face id or folder; safetensors only, and no code of the repository is run.
        num_classes: outputs; a new head is made where the checkpoint's has another number or none.
        input: the sample key that it takes; "input_ids" goes with "attention_mask".
        max_length: tokens after which a text is cut; by default the most that the model takes.
        dtype: of the weights, whatever the checkpoint's.

    Raises:
        GraftworkError: if it cannot be loaded or lacks weights.
    """

    def __init__(
        self,
        name: str,
        num_classes: Count | None = None,
        input: Input = "text",
        max_length: Count | None = None,
        dtype: Precision = "float32",
    ):
        super().__init__()
        model = transformers_classifier(AUTOMATIC, name, "text classifier", num_classes, HEADS, dtype)
        self._hold(model, load_tokenizer(name), input, max_length)

    @classmethod
    def wrap(cls, model: Any, tokenizer: Any, input: Input = "text", max_length: Count | None = None) -> TransformersTextClassifier:
        """Give a model of transformers that is already in memory this surface."""
        wrapper = cls.__new__(cls)
        nn.Module.__init__(wrapper)
        wrapper._hold(model, tokenizer, input, max_length)
        return wrapper

    @property
    def num_classes(self) -> int:
        """Outputs."""
        return int(self.model.config.num_labels)

    def forward(self, inputs: Tensor | Sequence[str], attention_mask: Tensor | None = None) -> Tensor:
        """Texts, or tokens (B, T) with their mask, to logits (B, num_classes)."""
        return self._logits(inputs, attention_mask)


class TransformersReward(_SequenceModel):
    """A reward model: a sequence classification model with one output, as TRL's RewardTrainer trains and saves it.

    Args:
        name: Hugging Face id or folder; safetensors only, and no code of the repository is run.
        new_head: make a new head where the checkpoint has none of one output, to train a reward from a language model.
        input: the sample key that it takes; "input_ids" goes with "attention_mask".
        max_length: tokens after which a prompt with its text is cut; by default the most that the model takes.
        dtype: of the weights, whatever the checkpoint's.

    Raises:
        GraftworkError: if it cannot be loaded, lacks weights, or has more than one output.
    """

    def __init__(
        self,
        name: str,
        new_head: bool = False,
        input: Input = "text",
        max_length: Count | None = None,
        dtype: Precision = "float32",
    ):
        super().__init__()
        model = transformers_classifier(AUTOMATIC, name, "reward", 1 if new_head else None, HEADS, dtype, "for a new head set new_head")
        self._hold(model, load_tokenizer(name), input, max_length)

    @classmethod
    def wrap(cls, model: Any, tokenizer: Any, input: Input = "text", max_length: Count | None = None) -> TransformersReward:
        """Give a model of transformers that is already in memory this surface.

        Raises:
            GraftworkError: if it has more than one output.
        """
        wrapper = cls.__new__(cls)
        nn.Module.__init__(wrapper)
        wrapper._hold(model, tokenizer, input, max_length)
        return wrapper

    def _hold(self, model: Any, tokenizer: Any, input: Input, max_length: int | None) -> None:
        if model.config.num_labels != 1:
            raise GraftworkError(f"a reward has one output; this {type(model).__name__} has {model.config.num_labels}: set new_head")
        super()._hold(model, tokenizer, input, max_length)

    def forward(self, inputs: Tensor | Sequence[str], attention_mask: Tensor | None = None) -> Tensor:
        """Texts, or tokens (B, T) with their mask, to rewards (B,), higher is better."""
        return self._logits(inputs, attention_mask)[:, 0]

    def score(self, samples: Sequence[str], prompts: Sequence[str] = ()) -> Tensor:
        """Rewards (B,) of texts, each after its prompt, as one string; with gradients where they are on.

        Args:
            samples: B texts.
            prompts: as many, put before the texts as they are; or none.

        Raises:
            DataError: if there are prompts, but not as many as texts.
        """
        if len(prompts) and len(prompts) != len(samples):
            raise DataError(f"there are {len(samples)} texts but {len(prompts)} prompts")
        return self([prompt + text for prompt, text in zip(prompts, samples, strict=True)] if len(prompts) else list(samples))  # type: ignore[no-any-return]
