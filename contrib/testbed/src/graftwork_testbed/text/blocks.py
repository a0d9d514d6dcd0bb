"""Tokens from texts: wrappers that give any data set with `text` the inputs of a language model or a text encoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Subset

from graftwork import Batch, DataError, Dataset, DatasetInfo, Samples, TensorSamples
from graftwork.kinds.dataset import fetch
from graftwork_testbed.text.tokenization import TokenizerLike, load_tokenizer

__all__ = ["BlockSize", "TextBlocks", "Tokenized", "encode", "pack", "texts_of"]

BlockSize: TypeAlias = Annotated[int, Field(ge=2, le=65_536)]
"""Tokens in a sample."""

IGNORED = -100
"""The label of a position that a loss passes over: the convention of torch and transformers."""


def encode(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of each text, without special tokens, all at once."""
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False)
    return found["input_ids"]  # type: ignore[no-any-return]


def pack(
    documents: Iterable[Sequence[int]], block_size: int, tokenizer: Any, remainder: Literal["drop", "pad"] = "drop"
) -> tuple[Tensor, Tensor]:
    """Documents joined end to end, each closed by an end of text, and cut into blocks: transformers' `group_texts`.

    Args:
        documents: token ids of each.
        block_size: tokens in a block, at least 2.
        tokenizer: whose end of text closes a document (the separator, where it has no end), and whose padding fills the last block.
        remainder: what becomes of tokens that fill no block: dropped, or padded to one.

    Returns:
        (N, block_size) long token ids, and the mask: 1 where there is text.

    Raises:
        ValueError: if `block_size` is below 2, or `remainder` is neither of the two.
        DataError: if the tokenizer has no token to end a text with.
    """
    if block_size < 2:
        raise ValueError(f"block_size must be at least 2 tokens; found {block_size}")
    if remainder not in ("drop", "pad"):
        raise ValueError(f'remainder must be "drop" or "pad"; found "{remainder}"')
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise DataError(f"{type(tokenizer).__name__} has neither an end of text nor a separator to close a document with")
    stream = torch.tensor(list(itertools.chain.from_iterable((*document, end) for document in documents)), dtype=torch.long)
    missing = -len(stream) % block_size
    mask = torch.ones_like(stream)
    if missing and remainder == "pad":
        stream = torch.cat([stream, stream.new_full((missing,), tokenizer.pad_token_id)])
        mask = torch.cat([mask, mask.new_zeros(missing)])
    whole = len(stream) // block_size * block_size
    return stream[:whole].view(-1, block_size), mask[:whole].view(-1, block_size)


class TextBlocks(Dataset):
    """The texts of a data set as blocks of tokens for training a language model.

    Each split's texts are joined in order, each closed by an end of text, and cut into blocks of equal length. Samples: `input_ids`,
    `attention_mask` and `labels`, all (block_size,) long: what a causal language model of transformers takes as they are, `labels` being
    the tokens themselves with -100 where there is padding. Texts are read once, when this is made: put wrappers that change their data
    between epochs around it, not inside.

    Args:
        data: its samples hold text.
        tokenizer: a folder or Hugging Face id, "byte", "minilm", "zoo" or "captions"; in Python also a tokenizer of transformers.
        block_size: tokens in a block.
        remainder: whether the last tokens of a split, which fill no block, are dropped or padded.
        key: the sample key that holds the text.

    Attributes:
        tokenizer: the tokenizer.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: if a split is empty, has no text, or has fewer tokens than a block; or there is no such tokenizer.
    """

    def __init__(
        self,
        data: Dataset,
        tokenizer: TokenizerLike = "byte",
        block_size: BlockSize = 128,
        remainder: Literal["drop", "pad"] = "drop",
        key: str = "text",
    ):
        self.data, self.tokenizer = data, load_tokenizer(tokenizer)
        splits: dict[str, Samples] = {}
        for name in data:
            documents = encode(texts_of(data, name, key), self.tokenizer)
            ids, mask = pack(documents, block_size, self.tokenizer, remainder)
            if (found := sum(map(len, documents)) + len(documents)) < block_size:
                raise DataError(f'split "{name}" has {found} tokens, fewer than one block of {block_size}: take a smaller block_size')
            splits[name] = TensorSamples(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, IGNORED))
        described = data.info.description or "Texts"
        super().__init__(splits, DatasetInfo(description=f"{described}, in blocks of {block_size} tokens"))


class Tokenized(Dataset):
    """A data set whose samples hold their text's tokens too, cut or padded to one length.

    Every sample keeps its keys and gets `input_ids` and `attention_mask`, (max_length,) long, with the tokenizer's special tokens; of pairs
    also `token_type_ids`, where the tokenizer has them. Texts are read once, when this is made: put wrappers that change their data between
    epochs around it, not inside.

    Args:
        data: its samples hold text.
        tokenizer: a folder or Hugging Face id, "byte", "minilm", "zoo" or "captions"; in Python also a tokenizer of transformers.
        max_length: tokens in a sample, special ones included.
        key: the sample key that holds the text.
        pair: the key of a second text, such as text_pair, encoded behind the first as one sequence.
        prefix: put before the names of what is added, so that several texts of a sample can be tokenised by several wrappers.

    Attributes:
        tokenizer: the tokenizer.

    Raises:
        ValueError: if `max_length` leaves no room for text.
        DataError: if a split is empty or has no such text, its samples have what would be added already, or there is no such tokenizer.
    """

    def __init__(
        self,
        data: Dataset,
        tokenizer: TokenizerLike = "byte",
        max_length: BlockSize = 128,
        key: str = "text",
        pair: str | None = None,
        prefix: str = "",
    ):
        self.data, self.tokenizer = data, load_tokenizer(tokenizer)
        keys = [key] if pair is None else [key, pair]
        if max_length <= (special := self.tokenizer.num_special_tokens_to_add(pair=pair is not None)):
            raise ValueError(f"max_length {max_length} has no room for text beside {special} special tokens")
        wanted = ("input_ids", "attention_mask", "token_type_ids")[: 1 + len(keys)]
        splits: dict[str, Samples] = {}
        for name in data:
            texts = [texts_of(data, name, each) for each in keys]
            found = self.tokenizer(*texts, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt", verbose=False)
            added = {prefix + each: found[each] for each in wanted if each in found}
            if taken := sorted(added.keys() & data[name][0].keys()):
                raise DataError(f'the samples of split "{name}" have {", ".join(taken)} already: give a prefix')
            splits[name] = _with_columns(data[name], added, data.collate)
        super().__init__(splits, data.info, data.collate)

    def batch_sampler(self, split: str, batch_size: int, generator: torch.Generator) -> Iterable[list[int]] | None:
        """The inner data set's, whose samples these are."""
        return self.data.batch_sampler(split, batch_size, generator)


def texts_of(data: Dataset, split: str, key: str = "text") -> list[str]:
    """The texts of a split, in order.

    Raises:
        DataError: if the split is empty, or what its samples hold under `key` is no text.
    """
    samples = data[split]
    if not len(samples):
        raise DataError(f'split "{split}" is empty')
    if key not in (first := samples[0]):
        raise DataError(f'the samples of split "{split}" have no {key}; they have {", ".join(first)}')
    held = samples.columns[key] if isinstance(samples, TensorSamples) else [samples[index][key] for index in range(len(samples))]
    if odd := sorted({type(text).__name__ for text in held if not isinstance(text, str)}):
        raise DataError(f'{key} of split "{split}" is not text: found {", ".join(odd)}')
    return list(held)


class _Beside:
    """Samples with more columns beside what they hold."""

    def __init__(self, samples: Samples, added: Mapping[str, Tensor], collate: Callable[[Any], Batch]):
        self.samples, self.added, self.collate = samples, added, collate
        self.columns = {**getattr(samples, "columns", {}), **added}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.samples[index], **{key: column[index] for key, column in self.added.items()}}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch of the samples at `indices`, collated."""
        chosen = torch.as_tensor(indices)
        return {**fetch(self.samples, indices, self.collate), **{key: column[chosen] for key, column in self.added.items()}}


def _with_columns(samples: Any, added: Mapping[str, Tensor], collate: Callable[[Any], Batch]) -> Samples:
    if isinstance(samples, Subset) and isinstance(samples.dataset, TensorSamples):
        samples = samples.dataset.select(torch.as_tensor(samples.indices))
    return TensorSamples(**samples.columns, **added) if isinstance(samples, TensorSamples) else _Beside(samples, added, collate)
