"""Merging modules: which parameters are merged, what stays the target's, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_fisher_merging import (
    Merger,
    diagonal_fisher,
    head_names,
    merge_models,
    mergeable_names,
    reestimate_batch_norm,
)


def states(*models):
    return [dict(model.named_parameters()) for model in models]


# -- what is merged --------------------------------------------------------------------------------------------------------------


def test_the_body_is_merged_and_the_targets_head_kept(net) -> None:
    one, other = net(0), net(1, classes=7)  # heads of different tasks
    merged = merge_models([one, other])
    a, b, m = states(one, other, merged)
    for name in a:
        expected = a[name] if name.startswith("head") else (a[name] + b[name]) / 2
        torch.testing.assert_close(m[name], expected)
    assert merged(torch.randn(2, 4)).shape == (2, 3)
    assert merge_models([other, one])(torch.randn(2, 4)).shape == (2, 7)


def test_merging_changes_none_of_the_models(net, fisher_of) -> None:
    models = [net(seed) for seed in range(3)]
    before = [gw.fingerprint(model) for model in models]
    merge_models(models, [fisher_of(model, 0) for model in models])
    assert [gw.fingerprint(model) for model in models] == before


def test_fishers_of_the_models_weigh_their_parameters(net, fisher_of) -> None:
    models = [net(seed) for seed in range(2)]
    fishers = [fisher_of(model, seed) for seed, model in enumerate(models)]
    merged = dict(merge_models(models, fishers, [0.3, 0.7], normalize=False, floor=0).named_parameters())
    for name, (a, b) in {name: [dict(model.named_parameters())[name] for model in models] for name in merged}.items():
        if name.startswith("body"):
            f, g = 0.3 * fishers[0][name], 0.7 * fishers[1][name]
            torch.testing.assert_close(merged[name], (f * a + g * b) / (f + g), rtol=1e-4, atol=1e-6)


def test_normalisation_is_over_the_whole_body_and_not_a_tensor_at_a_time(net, fisher_of) -> None:
    models = [net(seed) for seed in range(2)]
    fishers = [fisher_of(model, seed) for seed, model in enumerate(models)]
    merger = Merger(models, fishers)
    body = [torch.cat([one[name].flatten() for name in merger.names]) for one in fishers]
    assert merger.norms == pytest.approx([float(one.double().norm()) for one in body])
    assert merger.weights([0.25, 0.75]) == pytest.approx([0.25 / merger.norms[0], 0.75 / merger.norms[1]])
    assert Merger(models, fishers, normalize=False).weights() == [0.5, 0.5]
    scaled = [fishers[0], {name: 1000 * one for name, one in fishers[1].items()}]
    one, other = (merge_models(models, given, floor=0) for given in (fishers, scaled))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_real_fisher_moves_the_merge_to_the_model_that_is_sure(net) -> None:
    one, other = net(0), net(1)
    x = torch.randn(64, 4)
    sharp = copy.deepcopy(other)
    with torch.no_grad():
        sharp.head.weight *= 3  # outputs that depend more on the body
    fishers = [diagonal_fisher(model, [x]) for model in (one, sharp)]
    merged, plain = merge_models([one, sharp], fishers, normalize=False), merge_models([one, sharp])

    def distance(model):
        return sum((a - b).square().sum() for a, b in zip(model.body.parameters(), sharp.body.parameters(), strict=True)).item()

    assert distance(merged) < distance(plain)


def test_frozen_parameters_have_no_fisher_and_stay_the_targets(net) -> None:
    models = [net(seed) for seed in range(2)]
    for model in models:
        model.body[0].weight.requires_grad_(False)
    fishers = [diagonal_fisher(model, [torch.randn(32, 4)]) for model in models]
    merged = merge_models(models, fishers)
    assert torch.equal(merged.body[0].weight, models[0].body[0].weight)
    assert not torch.allclose(merged.body[2].weight, models[0].body[2].weight)


def test_tied_weights_are_merged_once_and_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.out.weight = self.words.weight

    models = [Tied() for _ in range(2)]
    merged = merge_models(models)
    assert mergeable_names(models) == ["words.weight"]
    assert merged.out.weight is merged.words.weight
    torch.testing.assert_close(merged.words.weight, (models[0].words.weight + models[1].words.weight) / 2)


def test_half_precision_comes_back_as_half_precision(net) -> None:
    models = [net(seed).to(torch.bfloat16) for seed in range(2)]
    merged = merge_models(models)
    assert {one.dtype for one in merged.parameters()} == {torch.bfloat16}
    a, b = (model.body[0].weight.float() for model in models)
    torch.testing.assert_close(merged.body[0].weight, ((a + b) / 2).bfloat16(), rtol=0, atol=0)


def test_what_is_merged_can_be_named_or_told_by_a_function(net) -> None:
    models = [net(seed) for seed in range(2)]
    for choice in ("^body.2", lambda name: name.startswith("body.2")):
        assert mergeable_names(models, choice) == ["body.2.weight", "body.2.bias"]
    assert mergeable_names(models, ".") == [name for name, _ in models[0].named_parameters()]
    assert mergeable_names([net(0), net(1, classes=7)], ".", "keep") == mergeable_names(models)


# -- heads -----------------------------------------------------------------------------------------------------------------------


def test_heads_are_found_by_timms_convention_by_transformers_and_by_name(net) -> None:
    class Timm(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.last = nn.Linear(2, 2), nn.Linear(2, 2)

        def get_classifier(self):
            return self.last

    assert head_names(Timm()) == {"last.weight", "last.bias"}
    assert head_names(net(0)) == {"head.weight", "head.bias"}
    assert head_names(gw.model("small-cnn")) == {"head.weight", "head.bias"}
    assert head_names(nn.Linear(2, 2)) == set()


def test_heads_of_transformers_lie_outside_of_the_base_model() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers for its classes")
    shape = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.RobertaConfig(**shape, max_position_embeddings=8)
    heads = head_names(transformers.RobertaForSequenceClassification(config))
    assert heads == {f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")}
    language_model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    assert head_names(language_model) == set()


def test_a_wrapped_model_of_transformers_keeps_its_own_head() -> None:
    pytest.importorskip("transformers", reason="needs transformers for its classes")
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 8, "patch_size": 4}
    models = [
        gw.model("transformers-from-config", architecture="ViTForImageClassification", config={**shape, "num_labels": classes})
        for classes in (3, 4)
    ]
    assert head_names(models[0]) == {"model.classifier.weight", "model.classifier.bias"}
    merged = merge_models(models)
    assert torch.equal(merged.model.classifier.weight, models[0].model.classifier.weight)
    expected = (models[0].model.vit.embeddings.cls_token + models[1].model.vit.embeddings.cls_token) / 2
    torch.testing.assert_close(merged.model.vit.embeddings.cls_token, expected)


# -- batch norm ------------------------------------------------------------------------------------------------------------------


def test_running_statistics_are_the_targets_unless_they_are_estimated_anew(net) -> None:
    models = [net(seed, batch_norm=True) for seed in range(2)]
    for index, model in enumerate(models):
        model.body[1].running_mean.fill_(10.0 * (index + 1))
    merged = merge_models(models)
    assert torch.equal(merged.body[1].running_mean, models[0].body[1].running_mean)
    batches = [{"features": torch.randn(50, 4)} for _ in range(4)]
    reestimate_batch_norm(merged.train(), batches)
    hidden = torch.stack([merged.body[0](batch["features"]) for batch in batches])  # (4, 50, 5)
    torch.testing.assert_close(merged.body[1].running_mean, hidden.mean(dim=(0, 1)))
    torch.testing.assert_close(merged.body[1].running_var, hidden.var(dim=1).mean(dim=0))
    assert merged.training
    assert merged.body[1].training
    assert merged.body[1].momentum == 0.1


def test_estimating_batch_norm_leaves_dropout_off_and_models_without_it_alone(net) -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3)).train()
    ones = [{"features": torch.ones(10, 3)}]
    reestimate_batch_norm(model, ones, forward=lambda model, batch: model(batch["features"]))
    assert torch.equal(model[1].running_mean, torch.ones(3))
    assert reestimate_batch_norm(net(0), []) is not None
    with pytest.raises(gw.DataError, match="there is no batch to re-estimate batch norm's statistics on"):
        reestimate_batch_norm(model, [])


# -- bad input -------------------------------------------------------------------------------------------------------------------


def test_models_that_differ_are_refused_by_the_first_parameters_that_do(net) -> None:
    with pytest.raises(gw.DataError, match=r"the models differ in 4 parameters: body.0.weight \(\(5, 4\), \(6, 4\)\); body.0.bias"):
        Merger([net(0), net(1, width=6)])
    with pytest.raises(gw.DataError, match=r"the models differ in 4 parameters: body.1.weight \(none, \(5,\)\); body.1.bias"):
        Merger([net(0), _with_norm(net)])
    assert Merger([net(0), _with_norm(net)], unmatched="keep").names == [f"body.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]


def _with_norm(net):
    model = net(1, batch_norm=True)
    model.extra = nn.Linear(2, 2)
    return model


def test_nothing_left_to_merge_is_told(net) -> None:
    with pytest.raises(
        gw.DataError, match="nothing is left to merge: of 6 parameters, 2 chosen by `mergeable`, none is in all models with one shape"
    ):
        Merger([net(0), net(1, width=6)], mergeable="body.0", unmatched="keep")
    only_heads = nn.ModuleDict({"head": nn.Linear(2, 2)})
    only_heads.head = only_heads["head"]
    with pytest.raises(gw.DataError, match="nothing is left to merge: of 2 parameters, without 2 of heads"):
        Merger([only_heads, only_heads])
    with pytest.raises(ValueError, match="'neck' matches none of the 6 parameters"):
        Merger([net(0), net(1)], mergeable="neck")


def test_adapters_that_are_not_merged_are_refused() -> None:
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Module()
            self.query.lora_A = nn.Linear(4, 2, bias=False)

    with pytest.raises(gw.InterfaceError, match=r"query.lora_A.weight is an adapter's: .*merge_and_unload"):
        Merger([Adapted(), Adapted()])


def test_fishers_that_do_not_fit_are_refused(net, fisher_of) -> None:
    models = [net(0), net(1)]
    fishers = [fisher_of(model, 0) for model in models]
    with pytest.raises(gw.GraftworkError, match="there are 2 models but 1 Fishers: one each, in the same order"):
        Merger(models, fishers[:1])
    with pytest.raises(gw.ArtifactError, match=r'the Fisher of model 1 has no "body.0.weight", which is to be merged; it has 1 parameters'):
        Merger(models, [fishers[0], {"a": torch.ones(1)}])
    with pytest.raises(gw.ArtifactError, match=r'the Fisher of model 1 has shape \(2,\) for "body.0.bias", which has shape \(5,\)'):
        Merger(models, [fishers[0], {**fishers[1], "body.0.bias": torch.ones(2)}])
    with pytest.raises(gw.ArtifactError, match=r'the Fisher of model 1 has numbers that are negative or not finite in "body.0.bias"'):
        Merger(models, [fishers[0], {**fishers[1], "body.0.bias": torch.full((5,), torch.nan)}])


def test_a_fisher_of_another_model_is_refused(net) -> None:
    models = [net(0), net(1)]
    artifacts = [diagonal_fisher(model, [torch.randn(8, 4)]).artifact(model) for model in models]
    merge_models(models, artifacts)
    with pytest.raises(gw.ArtifactError, match=r"was made from model .* and cannot be used with model"):
        merge_models(models, artifacts[::-1])
    with pytest.raises(gw.ArtifactError, match='type "diagonal-fisher" is expected; this one is "task-vector"'):
        merge_models(models, [gw.Artifact("task-vector"), artifacts[1]])


def test_bad_settings_are_named(net) -> None:
    with pytest.raises(ValueError, match="there are no models to merge"):
        Merger([])
    with pytest.raises(ValueError, match="fisher_floor is not negative; found -1"):
        Merger([net(0)], floor=-1)
    merger = Merger([net(0), net(1)])
    with pytest.raises(ValueError, match="the output is one of the models that are merged: give a copy"):
        merger.write(merger.models[0])
    with pytest.raises(ValueError, match="not all 0"):
        merger.merge([0, 0])
