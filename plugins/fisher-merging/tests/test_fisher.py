"""The Fisher's diagonal against closed forms, other libraries and its own invariants; each estimator; what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import graftwork as gw
from graftwork_fisher_merging import diagonal_fisher, next_tokens, observed_positions, outputs_of

WIDE = torch.float64


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn's digits").load_digits()
    return torch.tensor(data.data[:32], dtype=WIDE) / 16, torch.tensor(data.target[:32])


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10)).to(WIDE)


# -- values ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 64])
def test_of_softmax_regression_it_is_p_times_1_minus_p_times_x_squared(count) -> None:
    model, x = nn.Linear(5, 4).to(WIDE), torch.randn(count, 5, dtype=WIDE)
    p = model(x).softmax(dim=1).detach()
    spread = p * (1 - p)
    found = diagonal_fisher(model, [x]).tensors
    torch.testing.assert_close(found["weight"], spread.T @ x.square() / count, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found["bias"], spread.mean(dim=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_it_is_nngeometrys_whatever_the_batches(batch_size) -> None:
    metrics = pytest.importorskip("nngeometry.metrics", reason="needs nngeometry to compare with")
    objects = pytest.importorskip("nngeometry.object", reason="needs nngeometry to compare with")
    model, (x, y) = perceptron().float(), digits()  # nngeometry makes float32 of its own
    x = x.float()
    loader = DataLoader(TensorDataset(x, y), batch_size=32)
    theirs = metrics.FIM(model=model, loader=loader, representation=objects.PMatDiag, variant="classif_logits")
    start, diagonal = 0, theirs.get_diag()
    names = {id(one): name for name, one in model.named_parameters()}
    found = diagonal_fisher(model, x.split(batch_size)).tensors
    for module in (model[0], model[2]):
        for one in (module.weight, module.bias):
            expected = diagonal[start : start + one.numel()].view_as(one)
            torch.testing.assert_close(found[names[id(one)]], expected, rtol=1e-4, atol=1e-9)
            start += one.numel()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # BackPACK's own hooks
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_it_is_backpacks_generalised_gauss_newton_whatever_the_batches(batch_size) -> None:
    backpack = pytest.importorskip("backpack", reason="needs backpack-for-pytorch to compare with")
    extensions = pytest.importorskip("backpack.extensions", reason="needs backpack-for-pytorch to compare with")
    model, (x, y) = perceptron(), digits()
    theirs, loss = backpack.extend(copy.deepcopy(model)), backpack.extend(nn.CrossEntropyLoss())
    with backpack.backpack(extensions.DiagGGNExact()):
        loss(theirs(x), y).backward()
    found = diagonal_fisher(model, x.split(batch_size)).tensors
    for name, one in theirs.named_parameters():
        torch.testing.assert_close(found[name], one.diag_ggn_exact, rtol=1e-6, atol=1e-12)


def test_squaring_a_sum_over_samples_and_classes_is_another_quantity(loop) -> None:
    """What fusion-bench and MergeLM do: sum_n sum_c sqrt(p) log p is differentiated once, and its gradient squared."""
    model, (x, _) = perceptron(), digits()
    log_p = model(x).log_softmax(dim=1)
    (log_p.detach().exp().sqrt() * log_p).sum().backward()
    toy = model[0].weight.grad.square() / len(x)
    right = loop(model, lambda model, batch: model(batch["x"]), {"x": x})["0.weight"]
    found = diagonal_fisher(model, [x]).tensors["0.weight"]
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)
    assert (toy - right).abs().sum() / right.sum() > 0.05  # beyond what even drawing labels is allowed


# -- estimators ------------------------------------------------------------------------------------------------------------------


def test_labels_drawn_2000_times_come_within_5_percent() -> None:
    model, (x, _) = perceptron(), digits()
    right = diagonal_fisher(model, [x]).tensors
    drawn = diagonal_fisher(model, [x], "sampled", draws=2000).tensors
    apart = sum(float((drawn[name] - one).abs().sum()) for name, one in right.items())
    assert apart / sum(float(one.sum()) for one in right.values()) < 0.05


def test_one_draw_is_unbiased_over_seeds() -> None:
    model, x = nn.Linear(2, 3).to(WIDE), torch.randn(16, 2, dtype=WIDE)
    right = diagonal_fisher(model, [x]).tensors["weight"]
    drawn = torch.stack([diagonal_fisher(model, [x], "sampled", seed=seed).tensors["weight"] for seed in range(200)])
    error = drawn.std(dim=0) / 200**0.5
    assert ((drawn.mean(dim=0) - right).abs() < 4 * error).all()
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], diagonal_fisher(model, [x], "sampled", seed=0).tensors["weight"])


def test_only_the_empirical_estimator_reads_labels() -> None:
    model, (x, y) = perceptron(), digits()
    wrong = (y + 1) % 10
    for estimator in ("exact", "sampled"):
        one, other = (diagonal_fisher(model, [(x, labels)], estimator).tensors for labels in (y, wrong))
        assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = (diagonal_fisher(model, [(x, labels)], "empirical").tensors["2.bias"] for labels in (y, wrong))
    score = nn.functional.one_hot(y, 10) - model(x).softmax(dim=1)
    torch.testing.assert_close(one, score.square().mean(dim=0).detach())
    assert not torch.allclose(one, other)


def test_of_a_regression_it_is_the_squared_jacobian() -> None:
    model, x = nn.Linear(3, 2).to(WIDE), torch.randn(8, 3, dtype=WIDE)
    found = diagonal_fisher(model, [x], "regression").tensors
    torch.testing.assert_close(found["weight"], x.square().mean(dim=0).expand(2, 3))
    torch.testing.assert_close(found["bias"], torch.ones(2, dtype=WIDE))
    single = diagonal_fisher(model, [x], "regression", forward=lambda model, batch: outputs_of(model, batch)[:, 0]).tensors
    torch.testing.assert_close(single["bias"], torch.tensor([1.0, 0.0], dtype=WIDE))


# -- sequences -------------------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Logits of tokens (N, T, V) from a table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 4)

    def forward(self, ids):
        return self.table(ids)


def test_a_sequences_gradient_is_summed_over_predicted_positions_and_squared_once() -> None:
    model, ids = Reader().to(WIDE), torch.tensor([[1, 1, 1, 2]])
    batch = {"input_ids": ids, "labels": torch.tensor([[3, 0, -100, 2]])}
    found = diagonal_fisher(
        model, [batch], "empirical", predicts="labelled-tokens", forward=lambda model, batch: model(batch["input_ids"])
    ).tensors["table.weight"]
    p = model.table.weight.detach().softmax(dim=1)
    expected = torch.zeros(4, 4, dtype=WIDE)
    expected[1] = (torch.eye(4)[3] + torch.eye(4)[0] - 2 * p[1]).square()  # two positions see token 1; the third is not predicted
    expected[2] = (torch.eye(4)[2] - p[2]).square()
    torch.testing.assert_close(found, expected)


def test_drawn_sequences_average_to_the_sum_over_positions() -> None:
    model, ids = Reader().to(WIDE), torch.tensor([[1, 1, 2, 0]]).expand(200, 4)
    mask = torch.tensor([[1, 1, 1, 0]]).expand(200, 4)
    found = diagonal_fisher(
        model,
        [{"input_ids": ids, "attention_mask": mask}],
        "sampled",
        draws=20,
        targets=next_tokens,
        forward=lambda model, batch: model(batch["input_ids"]),
    ).tensors["table.weight"]
    p = model.table.weight.detach().softmax(dim=1)
    expected = torch.zeros(4, 4, dtype=WIDE)
    expected[1] = 2 * p[1] * (1 - p[1])  # after the first two tokens; what follows the last one is padding
    torch.testing.assert_close(found, expected, rtol=0.12, atol=1e-9)


def test_next_tokens_stop_before_padding_and_at_the_end() -> None:
    ids = torch.tensor([[5, 6, 7, 0]])
    labels, positions = next_tokens(torch.empty(0), {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0]])})
    assert positions.tolist() == [[True, True, False, False]]
    assert labels[positions].tolist() == [6, 7]
    assert next_tokens(torch.empty(0), {"input_ids": ids})[1].tolist() == [[True, True, True, False]]


def test_a_masked_language_model_of_transformers_predicts_where_labels_say() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers for its classes")
    shape = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = transformers.BertForMaskedLM(transformers.BertConfig(**shape, max_position_embeddings=8)).to(WIDE).eval()
    ids, labels = torch.randint(1, 20, (3, 6)), torch.full((3, 6), -100)
    labels[:, 2] = 7
    found = diagonal_fisher(model, [{"input_ids": ids, "labels": labels}], "empirical", predicts="labelled-tokens")
    assert set(found.ways.values()) == {"layer"}  # the tied embedding among them
    expected = torch.zeros_like(model.bert.embeddings.word_embeddings.weight)
    for index in range(3):
        loss = model(input_ids=ids[index, None], labels=labels[index, None]).loss
        expected += torch.autograd.grad(loss, model.bert.embeddings.word_embeddings.weight)[0].square() / 3
    torch.testing.assert_close(found.tensors["bert.embeddings.word_embeddings.weight"], expected)


def test_a_causal_language_model_predicts_next_tokens_by_default() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers for its classes")
    config = transformers.GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=8, resid_pdrop=0.5)
    model = transformers.GPT2LMHeadModel(config)
    batch = {"input_ids": torch.randint(0, 16, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.long)}
    found = diagonal_fisher(model.train(), [batch], "sampled", draws=2)
    assert (found.n_examples, found.draws) == (4, 2)
    assert model.training
    other = diagonal_fisher(model, [batch], "sampled", draws=2)
    assert all(torch.equal(found.tensors[name], one) for name, one in other.tensors.items())  # dropout is off
    with pytest.raises(gw.DataError, match=r'for sequences take estimator "sampled"'):
        diagonal_fisher(model, [batch])


# -- invariants ------------------------------------------------------------------------------------------------------------------


def test_it_is_never_negative_and_0_for_what_does_not_reach_the_output_or_is_frozen(net) -> None:
    model = net(0)
    model.unused = nn.Linear(2, 2)
    model.body[0].weight.requires_grad_(False)
    found = diagonal_fisher(model, [torch.randn(16, 4)]).tensors
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert all((one >= 0).all() and one.shape == dict(model.named_parameters())[name].shape for name, one in found.items())
    for name in ("unused.weight", "unused.bias", "body.0.weight"):
        assert not found[name].any()
    assert found["body.0.bias"].all()
    frozen = diagonal_fisher(model.requires_grad_(False), [torch.randn(16, 4)])
    assert not any(one.any() for one in frozen.tensors.values())


def test_dropout_is_off_and_the_modes_come_back() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[1].eval()
    model[0].train()
    x = torch.randn(6, 4)
    one, other = diagonal_fisher(model, [x]).tensors, diagonal_fisher(model.eval(), [x]).tensors
    assert all(torch.equal(one[name], other[name]) for name in one)
    model.train()
    model[1].eval()
    diagonal_fisher(model, [x])
    assert [module.training for module in model] == [True, False, True]


def test_the_global_generator_is_not_touched() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    before = torch.get_rng_state()
    diagonal_fisher(model, [x], "sampled")
    assert torch.equal(before, torch.get_rng_state())


def test_of_bfloat16_weights_sums_are_kept_in_float32(net) -> None:
    model, x = net(0), torch.randn(32, 4)
    right = diagonal_fisher(model, [x]).tensors
    found = diagonal_fisher(model.to(torch.bfloat16), [x.to(torch.bfloat16)]).tensors
    assert all(one.dtype == torch.float32 for one in found.values())
    for name, one in right.items():
        torch.testing.assert_close(found[name], one, rtol=0.1, atol=0.02 * float(one.max()))


def test_examples_are_counted_over_batches_and_cut_where_asked() -> None:
    model, x = nn.Linear(3, 2).to(WIDE), torch.randn(10, 3, dtype=WIDE)
    found = diagonal_fisher(model, x.split(4), n_examples=6)
    assert found.n_examples == 6
    torch.testing.assert_close(found.tensors["weight"], diagonal_fisher(model, [x[:6]]).tensors["weight"])


def test_parameters_are_chosen_by_name_and_the_others_left_out(net) -> None:
    model, x = net(0), torch.randn(8, 4)
    whole = diagonal_fisher(model, [x]).tensors
    body = diagonal_fisher(model, [x], parameters="^body").tensors
    assert set(body) == {name for name in whole if name.startswith("body")}
    assert all(torch.equal(whole[name], one) for name, one in body.items())
    assert set(diagonal_fisher(model, [x], parameters=lambda name: "bias" in name).tensors) == {n for n in whole if "bias" in n}
    assert all(one.requires_grad for one in model.parameters())


def test_an_artifact_says_how_it_was_made_and_belongs_to_its_model(net, tmp_path) -> None:
    model = net(0)
    diagonal_fisher(model, [torch.randn(8, 4)], "sampled", draws=3).artifact(model).save(tmp_path)
    found = gw.Artifact.load(tmp_path).check("diagonal-fisher", model=model)
    weights = found.data.pop("weights")
    assert set(weights) == set(found.tensors)
    assert len(set(weights.values())) == len(weights)
    assert found.data == {"n_examples": 8, "estimator": "sampled", "draws": 3, "ways": {"layer": 6}}
    with pytest.raises(gw.ArtifactError, match=r'this "diagonal-fisher" was made from model \w+ and cannot be used with model'):
        found.check("diagonal-fisher", model=net(1))


# -- bad input -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "exakt"}, 'estimator is one of exact, sampled, empirical, regression; found "exakt"'),
        ({"draws": 0}, "draws and n_examples are at least 1; found 0 and None"),
        ({"n_examples": 0}, "draws and n_examples are at least 1; found 1 and 0"),
        ({"parameters": "^neck"}, "'\\^neck' matches none of the 6 parameters, such as body.0.weight"),
        ({"parameters": "("}, "'\\(' is no regular expression"),
    ],
)
def test_bad_parameters_are_named(net, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        diagonal_fisher(net(0), [torch.randn(2, 4)], **settings)


def test_data_that_does_not_fit_is_told(net) -> None:
    x = torch.randn(4, 4)
    with pytest.raises(gw.DataError, match="there is no example to compute a Fisher from"):
        diagonal_fisher(net(0), [])
    with pytest.raises(gw.DataError, match=r"needs at least 2 classes; the outputs have shape \(4, 1\): for a regression take estimator"):
        diagonal_fisher(net(0, classes=1), [x])
    with pytest.raises(gw.DataError, match='the empirical Fisher reads "label"; the batch has features'):
        diagonal_fisher(net(0), [x], "empirical")
    with pytest.raises(gw.DataError, match="labels go from 0 to 9, but the model has 3 outputs"):
        diagonal_fisher(net(0), [(x, torch.tensor([0, 1, 2, 9]))], "empirical")
    with pytest.raises(gw.DataError, match=r"observed labels cannot do with outputs of shape .*the labels have shape \(3,\)"):
        diagonal_fisher(net(0), [(x, torch.tensor([0, 1, 2]))], "empirical")
    with pytest.raises(gw.DataError, match="labelled tokens are told by `labels`"):
        observed_positions(x, {"input_ids": x})
