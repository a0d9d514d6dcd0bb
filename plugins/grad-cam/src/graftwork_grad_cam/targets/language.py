"""Targets of models that look at an image and speak: a caption, a word of it, an answer to a question."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from graftwork.errors import DataError, InterfaceError
from graftwork.kinds.dataset import Batch
from graftwork_grad_cam.forward import IMAGE, image_key, logits_of, token_ids_key
from graftwork_grad_cam.targets.classes import bind_indices, pick
from graftwork_grad_cam.targets.contract import CHOSEN, Target
from graftwork_grad_cam.targets.words import special_tokens, tokenize, tokenizer_of, with_words

__all__ = ["CaptionTarget", "VQAAnswerTarget"]

CAPTION = "target caption"
COUNTED = "target words"


@dataclass(frozen=True)
class CaptionTarget(Target):
    """The log-probability of a caption: the sum over its words, each given those before it (teacher forcing).

    The one target behind a softmax: the gradient is 1 at each word's log-probability, as in the official code. Beginning, end and
    padding count for nothing.

    Args:
        text: of the captions, one for all or one a sample. None reads each sample's key `input_ids`, else its `text`; where there
            is neither, the model writes the caption itself (`generate`).
        word: only this word's log-probability counts, in every place where it stands (phrase grounding).
        positions: only the words at these positions count, the first being 0; of tokens, special ones left out.
        tokenizer: of transformers; by default the model's own `tokenizer`. None is needed unless there is text.
        max_new_tokens: length of a caption that the model writes.

    Raises:
        ValueError: if both `word` and `positions` are given.
    """

    name: ClassVar[str] = "caption"
    text: str | Sequence[str] | None = None
    word: str | None = None
    positions: tuple[int, ...] | None = None
    tokenizer: Any = field(default=None, compare=False, repr=False)
    max_new_tokens: int = 20

    def __post_init__(self) -> None:
        if self.word is not None and self.positions is not None:
            raise ValueError("a caption's word and positions are two ways to say which words count: give one")

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> Batch:
        """Bind the caption's tokens (B, L), and which of them count.

        Raises:
            InterfaceError: if the model cannot write a caption and none is given, or a tokenizer is needed and missing.
            DataError: if a caption of the batch lacks the word or a position.
        """
        image = batch[image_key(model, batch)]
        tokens = self._tokens(model, batch, image)
        ids = tokens["input_ids"]
        special = torch.tensor(sorted(special_tokens(model)) or [-1], device=ids.device)
        counted = ~torch.isin(ids, special)
        counted[:, 0] = False  # the first token has nothing before it that would predict it
        if "attention_mask" in tokens:
            counted &= tokens["attention_mask"].bool()
        counted = self._narrowed(model, ids, counted)
        mask = tokens.get("attention_mask", torch.ones_like(ids))
        prefix = token_ids_key(model).removesuffix("input_ids")
        return {**batch, CAPTION: ids, COUNTED: counted, f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask}

    def score(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, 1)."""
        ids, counted = batch[CAPTION], batch[COUNTED]
        logits = logits_of(output)
        if logits.dim() != 3:
            raise InterfaceError(f"a caption target reads logits (batch, word, vocabulary); the model gives {tuple(logits.shape)}")
        logits = logits[:, -ids.shape[1] :]  # behind the image's own positions, where it is a prefix
        of_words = log_softmax(logits[:, :-1].float(), dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
        return (of_words * counted[:, 1:]).sum(dim=1, keepdim=True)

    def captions(self, output: Any, batch: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
        """The word, or the caption where its text is known."""
        count = len(batch[CAPTION])
        if self.word is not None:
            return [[self.word]] * count
        if self.tokenizer is not None:
            return [[text] for text in self.tokenizer.batch_decode(batch[CAPTION], skip_special_tokens=True)]
        texts = [self.text] * count if isinstance(self.text, str) else self.text or batch.get("text") or []
        return [[text] for text in texts]

    def to_dict(self) -> dict[str, Any]:
        """Without the tokenizer, which is the model's."""
        return {key: value for key, value in super().to_dict().items() if key != "tokenizer"}

    def _tokens(self, model: nn.Module, batch: Mapping[str, Any], image: Tensor) -> dict[str, Tensor]:
        if self.text is not None:
            texts = [self.text] * len(image) if isinstance(self.text, str) else list(self.text)
            if len(texts) != len(image):
                raise DataError(f"{len(texts)} captions are given for {len(image)} images")
            return tokenize(texts, model, self.tokenizer, image.device)
        found = with_words(model, batch, self.tokenizer, image.device)
        if "input_ids" in found:
            return {key: found[key] for key in ("input_ids", "attention_mask") if key in found}
        write = getattr(model, "generate", None)
        if write is None:
            raise InterfaceError(f"no caption is given, and the {type(model).__name__} cannot write one: it has no `generate`")
        written = write(**{IMAGE: image.to(next(model.parameters()).dtype)}, max_new_tokens=self.max_new_tokens)
        return {"input_ids": written}

    def _narrowed(self, model: nn.Module, ids: Tensor, counted: Tensor) -> Tensor:
        """Of the tokens that count, those that are asked for."""
        if self.positions is not None:
            asked = torch.tensor(self.positions, device=ids.device)
            chosen = counted & torch.isin(counted.cumsum(dim=1) - 1, asked)
            if bool((chosen.sum(dim=1) < len(set(self.positions))).any()):
                raise DataError(f"positions {list(self.positions)} are asked for, but a caption has {int(counted.sum(dim=1).min())} words")
            return chosen
        if self.word is None:
            return counted
        pieces = tokenizer_of(model, self.tokenizer)(self.word, add_special_tokens=False)["input_ids"]
        sought = torch.as_tensor(pieces, device=ids.device).flatten()
        if len(sought) > ids.shape[1] or not len(sought):
            raise DataError(f'the word "{self.word}" does not stand in the captions')
        starts = (ids.unfold(1, len(sought), 1) == sought).all(dim=2)
        if not bool(starts.any(dim=1).all()):
            raise DataError(f'the word "{self.word}" does not stand in every caption')
        chosen = torch.zeros_like(counted)
        for offset in range(len(sought)):
            chosen[:, offset : offset + starts.shape[1]] |= starts
        return counted & chosen


@dataclass(frozen=True)
class VQAAnswerTarget(Target):
    """The logit of an answer to a question about the image, for models that choose among known answers (ViLT).

    The question is each sample's `input_ids` (with `attention_mask`, `token_type_ids`), or its `text`.

    Args:
        answer: an answer in words, by the model's `config.id2label`, or its index; one for all or one a sample. One that the model
            does not know is replaced by what it predicts, with a warning. None: what it predicts.
        tokenizer: of transformers, for a `text`; by default the model's own `tokenizer`.
    """

    name: ClassVar[str] = "vqa-answer"
    answer: str | int | Sequence[str | int] | None = None
    tokenizer: Any = field(default=None, compare=False, repr=False)

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> Batch:
        """Bind the question's tokens, and the answer's index, -1 for the predicted one."""
        image = batch[image_key(model, batch)]
        prepared = with_words(model, batch, self.tokenizer, image.device)
        answers = self.answer if isinstance(self.answer, (list, tuple)) else [self.answer] * len(image)
        config = getattr(model, "config", None)
        known = {label: index for index, label in (getattr(config, "id2label", None) or {}).items()}
        indices = [answer if isinstance(answer, int) else known.get(answer, -1) for answer in answers]
        unknown = sorted({answer for answer in answers if isinstance(answer, str) and answer not in known})
        if unknown:
            warnings.warn(f"the model knows no answer {', '.join(unknown)}: what it predicts is explained instead", stacklevel=2)
        return {**prepared, CHOSEN: bind_indices(indices, len(image), image.device, "answer")}

    def choice(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, T) indices of answers."""
        predicted = logits_of(output).detach().argmax(dim=1, keepdim=True)
        return batch[CHOSEN].where(batch[CHOSEN] >= 0, predicted)

    def score(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, T) logits.

        Raises:
            InterfaceError: if there is no such answer.
        """
        return pick(logits_of(output), self.choice(output, batch), "answer")

    def to_dict(self) -> dict[str, Any]:
        """Without the tokenizer, which is the model's."""
        return {key: value for key, value in super().to_dict().items() if key != "tokenizer"}
