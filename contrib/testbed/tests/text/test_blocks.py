from __future__ import annotations

import pytest
import torch
from torch.utils.data import Subset

from graftwork import DataError, Dataset, DatasetInfo, TensorSamples
from graftwork.builtin.wrappers import ClassBalancedBatches, FewShotSubset
from graftwork_testbed.text.blocks import TextBlocks, Tokenized, pack
from graftwork_testbed.text.paraphrases import paraphrase_pairs
from graftwork_testbed.text.template_text import template_text
from graftwork_testbed.text.tokenization import byte_tokenizer, load_tokenizer

SENTENCES, BYTE, MINILM = template_text(samples=120), byte_tokenizer(), load_tokenizer("minilm")


class Plain:
    """Samples without columns."""

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def grouped(texts, tokenizer, size):
    """What the language-modelling examples of transformers do: join, cut, drop the rest."""
    joined, end = [], tokenizer.convert_tokens_to_ids("[SEP]" if tokenizer is MINILM else "<|endoftext|>")
    for text in texts:
        joined += [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
    return [joined[start : start + size] for start in range(0, len(joined) - size + 1, size)]


@pytest.mark.parametrize("size", [16, 100])
@pytest.mark.parametrize("tokenizer", [BYTE, MINILM], ids=["byte", "minilm"])
def test_blocks_are_the_texts_joined_by_ends_and_cut(tokenizer, size):
    data = TextBlocks(SENTENCES, tokenizer, size)
    for name, samples in data.items():
        assert samples.columns["input_ids"].tolist() == grouped(SENTENCES[name].columns["text"], tokenizer, size)
        assert samples.columns["attention_mask"].all()
        assert samples.columns["labels"].equal(samples.columns["input_ids"])
    assert data.info.description.endswith(f"in blocks of {size} tokens")


def test_the_remainder_can_be_kept_and_is_masked():
    ids, mask = pack([[5, 6, 7], [8], []], 4, BYTE, "pad")
    end, pad = BYTE.eos_token_id, BYTE.pad_token_id
    assert ids.tolist() == [[5, 6, 7, end], [8, end, end, pad]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    samples = TextBlocks(Dataset({"train": TensorSamples(text=["abc", "d"])}), BYTE, 5, "pad")["train"]
    assert samples.columns["labels"].tolist()[1] == [end, -100, -100, -100, -100]
    assert pack([[5, 6, 7], [8], []], 4, BYTE)[0].tolist() == [[5, 6, 7, end]]


def test_a_block_is_what_a_language_model_takes():
    sample = TextBlocks(SENTENCES, "byte", 32)["val"][0]
    assert set(sample) == {"input_ids", "attention_mask", "labels"}
    assert all(value.shape == (32,) and value.dtype == torch.long for value in sample.values())


@pytest.mark.parametrize("length", [8, 24, 64])
def test_tokens_are_cut_or_padded_to_one_length(length):
    data = Tokenized(SENTENCES, MINILM, length)
    columns = data["train"].columns
    for row in range(40):
        ids = MINILM(columns["text"][row])["input_ids"]
        expected = ids if len(ids) <= length else [*ids[: length - 1], MINILM.sep_token_id]
        assert columns["input_ids"][row].tolist() == expected + [MINILM.pad_token_id] * (length - len(expected))
        assert columns["attention_mask"][row].tolist() == [1] * len(expected) + [0] * (length - len(expected))
    assert columns["label"].equal(SENTENCES["train"].columns["label"])
    assert data.info == SENTENCES.info


def test_pairs_are_one_sequence_with_their_types():
    data = Tokenized(paraphrase_pairs(20), MINILM, 80, pair="text_pair")
    sample = data["train"][0]
    ids = sample["input_ids"][sample["attention_mask"] == 1].tolist()
    first, second = (MINILM(sample[key])["input_ids"] for key in ("text", "text_pair"))
    assert ids == first + second[1:]
    assert sample["token_type_ids"].sum() == len(second) - 1
    assert "token_type_ids" not in Tokenized(SENTENCES, MINILM, 8)["train"][0]


def test_several_texts_of_a_sample_have_tokens_of_their_own():
    inner = Tokenized(paraphrase_pairs(20), MINILM, 32, prefix="text_")
    sample = Tokenized(inner, MINILM, 32, key="text_pair", prefix="pair_")["test"][0]
    assert MINILM.decode(sample["pair_input_ids"], skip_special_tokens=True)[:12] == sample["text_pair"].lower()[:12]
    assert "text_attention_mask" in sample
    with pytest.raises(DataError, match=r'split "train" have text_attention_mask, text_input_ids already: give a prefix'):
        Tokenized(inner, MINILM, 32, prefix="text_")


def test_what_is_not_held_as_columns_keeps_its_samples():
    boxes = [torch.zeros(1, 4), torch.ones(2, 4)]
    data = Tokenized(Dataset({"train": Plain({"text": "ab", "boxes": boxes[0]}, {"text": "c", "boxes": boxes[1]})}), BYTE, 4)
    assert data["train"][1]["boxes"].equal(boxes[1])
    assert len(data["train"]) == 2
    batch = data.collate([data["train"][0], data["train"][1]])
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]


def test_a_few_shot_subset_stays_one():
    few = FewShotSubset(SENTENCES, shots=3)
    assert isinstance(few["train"], Subset)
    data = Tokenized(few, BYTE, 100)
    assert len(data["train"]) == 6
    for row in range(6):
        sample = data["train"][row]
        assert sample["text"] == few["train"][row]["text"]
        assert BYTE.decode(sample["input_ids"], skip_special_tokens=True) == sample["text"][:100]


def test_batches_are_composed_by_the_inner_data_set():
    data = Tokenized(ClassBalancedBatches(SENTENCES, classes=2, instances=2), BYTE, 16)
    labels = data["train"].columns["label"]
    for batch in data.batch_sampler("train", 0, torch.Generator().manual_seed(0)):
        assert sorted(labels[batch].tolist()) == [0, 0, 1, 1]
    assert Tokenized(SENTENCES, BYTE, 16).batch_sampler("train", 4, torch.Generator()) is None


EMPTY = Dataset({"train": TensorSamples(text=["a"]), "val": TensorSamples(text=[])})


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: TextBlocks(SENTENCES, BYTE, 1), ValueError, "block_size must be at least 2 tokens; found 1"),
        (lambda: TextBlocks(SENTENCES, BYTE, 8, "keep"), ValueError, 'remainder must be "drop" or "pad"; found "keep"'),
        (lambda: TextBlocks(SENTENCES, BYTE, 10_000), DataError, r'split "train" has \d+ tokens, fewer than one block of 10000'),
        (lambda: TextBlocks(SENTENCES, BYTE, 10_000, "pad"), DataError, "fewer than one block of 10000: take a smaller block_size"),
        (lambda: TextBlocks(EMPTY, BYTE, 2), DataError, 'split "val" is empty'),
        (lambda: Tokenized(EMPTY, BYTE, 2), DataError, 'split "val" is empty'),
        (lambda: Tokenized(SENTENCES, BYTE, 0), ValueError, "max_length 0 has no room for text beside 0 special tokens"),
        (lambda: Tokenized(SENTENCES, MINILM, 2), ValueError, "max_length 2 has no room for text beside 2 special tokens"),
        (lambda: Tokenized(SENTENCES, MINILM, 3, pair="text"), ValueError, "max_length 3 has no room for text beside 3 special tokens"),
        (lambda: Tokenized(SENTENCES, BYTE, 8, key="caption"), DataError, 'split "train" have no caption; they have text, label'),
        (lambda: Tokenized(SENTENCES, BYTE, 8, key="label"), DataError, 'label of split "train" is not text: found Tensor'),
        (lambda: TextBlocks(SENTENCES, BYTE, 8, key="index"), DataError, 'index of split "train" is not text'),
        (lambda: Tokenized(Dataset({"train": Plain({"text": None})}), BYTE, 8), DataError, "is not text: found NoneType"),
        (lambda: TextBlocks(SENTENCES, "no/such/folder", 8), DataError, "there is no folder"),
    ],
)
def test_bad_input_is_told(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_a_tokenizer_that_can_end_no_text_is_told():
    bare = byte_tokenizer()
    bare.eos_token = None
    with pytest.raises(DataError, match="neither an end of text nor a separator to close a document with"):
        TextBlocks(Dataset({"train": TensorSamples(text=["abc"])}, DatasetInfo()), bare, 2)
