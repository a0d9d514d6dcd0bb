"""Real classes of transformers, built tiny from their configs, saved, loaded by graftwork's loaders and trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_tram import InputNoise, TrustRegion, TrustRegionStep

transformers = pytest.importorskip("transformers", reason="needs transformers")
WORDS = ["<s>", "<pad>", "</s>", "<unk>", "the", "cat", "sat", "on", "a", "mat", "dog", "ran"]


def tokenizer_in(folder: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)


@pytest.fixture
def gpt2(tmp_path: Path) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(WORDS), n_positions=16, n_embd=16, n_layer=2, n_head=2, pad_token_id=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer_in(tmp_path)
    return gw.model("transformers-causal-lm", name=str(tmp_path))


@pytest.fixture
def xlm_roberta(tmp_path: Path) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.XLMRobertaConfig(vocab_size=len(WORDS), max_position_embeddings=18, num_labels=3, **sizes)
    transformers.XLMRobertaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer_in(tmp_path)
    return gw.model("transformers-text-classifier", name=str(tmp_path))


@pytest.fixture
def vit(tmp_path: Path) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 8, "patch_size": 4}
    transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=3, **sizes)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ViTImageProcessor",
                "do_resize": True,
                "size": {"height": 8, "width": 8},
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": True,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            }
        )
    )
    return gw.model("transformers-image-classifier", name=str(tmp_path))


def tokens(count: int = 8) -> gw.TensorSamples:
    ids = torch.randint(4, len(WORDS), (count, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::2, 4:] = 0
    return gw.TensorSamples(input_ids=torch.where(mask.bool(), ids, 1), attention_mask=mask, label=torch.arange(count) % 3)


def rows_of(objective: gw.Objective, model: nn.Module, samples: gw.TensorSamples) -> list[dict]:
    rows: list[dict] = []
    config = gw.TrainConfig.model_validate({"steps": 3, "batch_size": 4, "log_every": 1})
    data = gw.Dataset({"train": samples})
    gw.Engine(model, objective, data, config, device="cpu", log=lambda step, row: rows.append(row)).fit()
    return rows


@pytest.mark.parametrize("region", ["input-noise", "previous", "pretrained", "ema"])
@pytest.mark.filterwarnings("ignore:region pretrained")
def test_a_causal_language_model_trains_in_every_region(gpt2, region) -> None:
    objective = gw.objective("tram", base="causal-language-modelling", region=region)
    rows = rows_of(objective, gpt2, tokens())
    assert all(row["divergence"] > 0 and row["perturbed_loss"] > 0 for row in rows[1:])


def test_noise_reaches_the_embeddings_of_both_kinds_of_text_model(gpt2, xlm_roberta) -> None:
    batch = {key: value[:2] for key, value in tokens().columns.items()}
    for model, table in ((gpt2, gpt2.model.transformer.wte), (xlm_roberta, xlm_roberta.model.roberta.embeddings.word_embeddings)):
        seen: list[torch.Tensor] = []
        handle = table.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output.detach()))
        with torch.no_grad():
            plain = model.eval()(batch["input_ids"], batch["attention_mask"])
            noisy = InputNoise(0.5)(model, batch["input_ids"], batch["attention_mask"])
        handle.remove()
        assert torch.equal(seen[0], seen[1])  # the table gives what it gave; the noise comes after
        assert not torch.allclose(plain, noisy)


def test_the_noisy_pass_is_transformers_own_on_noised_embeddings(gpt2) -> None:
    ids = tokens().columns["input_ids"][1:2]
    inner = gpt2.eval().model
    embedded = inner.transformer.wte(ids)
    with torch.no_grad():
        expected = inner(inputs_embeds=embedded + InputNoise(0.5, seed=3).noise_like(embedded)).logits
        torch.testing.assert_close(InputNoise(0.5, seed=3)(gpt2, ids, torch.ones_like(ids)), expected)


@pytest.mark.filterwarnings("ignore:region pretrained")
def test_padding_of_a_language_model_does_not_change_the_divergence(gpt2) -> None:
    ids, mask = torch.tensor([[5, 6, 7, 8]]), torch.ones(1, 4, dtype=torch.long)
    padded, longer = torch.tensor([[5, 6, 7, 8, 1, 1]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    found = []
    for given in ((ids, mask), (padded, longer)):
        trust = TrustRegion(gw.objective("tram", region="pretrained").trust_region.region)
        trust.region.begin(gpt2.eval())
        with torch.no_grad():
            gpt2.model.transformer.ln_f.bias[0] += 1.0
            with trust.record(gpt2) as recorded:
                gpt2(*given)
            found.append(trust.measure(gpt2, recorded.calls))
            gpt2.model.transformer.ln_f.bias[0] -= 1.0
    torch.testing.assert_close(*found)
    assert found[0] > 0


def test_a_text_classifier_and_an_image_classifier_train(xlm_roberta, vit) -> None:
    text = gw.TensorSamples(text=["the cat sat", "a dog ran on the mat", "a cat", "the dog"], label=torch.tensor([0, 1, 2, 0]))
    assert all(row["divergence"] > 0 for row in rows_of(gw.objective("tram"), xlm_roberta, text))
    images = gw.TensorSamples(image=torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), label=torch.arange(8) % 3)
    assert all(row["divergence"] > 0 for row in rows_of(gw.objective("tram"), vit, images))
    regularised = rows_of(gw.objective("trust-region-regulariser", eps=0.1), vit, images)
    assert all(row["divergence"] > 0 for row in regularised)


def test_transformers_own_output_serves_in_ones_own_loop(gpt2) -> None:
    model = gpt2.model
    step = TrustRegionStep(model, torch.optim.AdamW(model.parameters()), InputNoise(0.1))
    batch = {key: value for key, value in tokens().columns.items() if key != "label"}
    found = step(lambda: model(**batch, labels=batch["input_ids"]).loss)
    assert found.divergence > 0
    assert found.perturbation_norm.item() == pytest.approx(found.radius.item(), rel=1e-4)


def test_tied_embeddings_of_a_language_model_move_once(gpt2) -> None:
    assert gpt2.model.lm_head.weight is gpt2.model.transformer.wte.weight
    before = gpt2.model.lm_head.weight.detach().clone()
    seen: list[torch.Tensor] = []
    gpt2.register_forward_pre_hook(lambda module, args: seen.append(gpt2.model.lm_head.weight.detach().clone()))
    rows = rows_of(gw.objective("sharpness-aware", base="causal-language-modelling", rho=0.4), gpt2, tokens())
    moved = (seen[1] - before).norm().item()
    assert 0 < moved <= 0.4
    assert rows[0]["perturbation_norm"] == pytest.approx(0.4, rel=1e-4)
