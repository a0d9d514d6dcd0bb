"""Sums of squared per-sample gradients against a loop over samples, and which way each parameter goes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import graftwork as gw
from graftwork_fisher_merging import SquaredGradients
from graftwork_fisher_merging.estimators import exact
from graftwork_fisher_merging.layer_rules import layer_rule

WIDE = torch.float64


def of_exact(outputs, batch):
    return exact(outputs)


def call(model, batch):
    return model(batch["x"])


def fisher(model, batch, forward=call, budget=2**26):
    squares = SquaredGradients(model.eval(), forward, budget)
    squares.add(batch, of_exact)
    return {name: total / squares.samples for name, total in squares.sums.items()}, squares.ways


class Convolutions(nn.Module):
    """Strides, groups, dilation, three norms, activations in place, one dimension, a head of one output."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(8)
        self.second, self.groups = nn.Conv2d(8, 12, (3, 2), groups=4, dilation=2, padding=2), nn.GroupNorm(3, 12)
        self.line, self.layer, self.rms = nn.Conv1d(12, 12, 3, padding=1), nn.LayerNorm(12), nn.RMSNorm(12)
        self.gate, self.head, self.relu = nn.Linear(12, 1), nn.Linear(12, 4), nn.ReLU(inplace=True)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(self.groups(self.second(x))).flatten(2)
        x = self.rms(self.layer(self.line(x).transpose(1, 2))).mean(1)
        return self.head(x) * self.gate(x)


class Scale(nn.Module):
    """A gain for each feature, as of norms and layer scales that have no class in torch."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return x * self.gain


class Tokens(nn.Module):
    """An embedding that is also the output layer, positions that all samples share, a class token, a layer that is used twice."""

    def __init__(self, functional=False):
        super().__init__()
        self.words, self.places, self.layer = nn.Embedding(7, 6, padding_idx=0), nn.Embedding(5, 6), nn.Linear(6, 6)
        self.token, self.scale, self.functional = nn.Parameter(torch.randn(1, 1, 6)), Scale(), functional
        if not functional:
            self.out = nn.Linear(6, 7, bias=False)
            self.out.weight = self.words.weight

    def forward(self, x):
        x = self.words(x) + self.places(torch.arange(x.shape[1], device=x.device)[None])
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        x = self.scale(self.layer(self.layer(x).tanh())).mean(1)
        return nn.functional.linear(x, self.words.weight) if self.functional else self.out(x)


class Windows(nn.Module):
    """Samples cut into windows that a layer sees as rows of its own."""

    def __init__(self):
        super().__init__()
        self.window, self.head = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.window(x.reshape(-1, 2)).tanh().reshape(len(x), -1, 3).sum(1))


class Looking(nn.Module):
    """Looks at values, which keeps it from being mapped over samples, and uses a parameter of no layer."""

    def __init__(self):
        super().__init__()
        self.weight, self.layer = nn.Parameter(torch.randn(4, 3)), nn.Linear(4, 4)

    def forward(self, x):
        x = self.layer(x)
        return (x if bool(torch.isfinite(x).all()) else x * 0) @ self.weight


def images(count=5):
    return {"x": torch.randn(count, 3, 8, 8, dtype=WIDE)}


def tokens(count=6):
    return {"x": torch.randint(0, 7, (count, 5))}


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch: bilinear layers have no batching rule
@pytest.mark.parametrize("budget", [2**26, 1])
@pytest.mark.parametrize(
    ("build", "batch", "ways"),
    [
        (Convolutions, images, {"layer"}),
        (Tokens, tokens, {"layer", "expanded"}),
        (lambda: Tokens(functional=True), tokens, {"layer", "expanded", "one by one"}),
        (Windows, lambda: {"x": torch.randn(5, 6, dtype=WIDE)}, {"layer"}),
        (Looking, lambda: {"x": torch.randn(5, 4, dtype=WIDE)}, {"layer", "one by one"}),
        (lambda: nn.Sequential(nn.Bilinear(4, 4, 3)), lambda: {"x": torch.randn(4, 4, dtype=WIDE)}, {"vmap"}),
    ],
)
def test_squares_are_those_of_a_loop_whatever_the_layers_and_the_memory(build, batch, ways, budget, loop) -> None:
    model, given = build().to(WIDE).eval(), batch()

    def forward(model, batch):
        return model[0](batch["x"], batch["x"]) if isinstance(model, nn.Sequential) else model(batch["x"])

    expected = loop(model, forward, given)
    found, went = fisher(model, given, forward, budget)
    assert set(went.values()) == ways
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, rtol=1e-9, atol=1e-12 * float(one.max()), msg=name)


def test_a_class_token_and_shared_positions_are_repeated_and_not_mapped() -> None:
    _, ways = fisher(Tokens().to(WIDE), tokens())
    assert ways == {"token": "expanded", "scale.gain": "expanded", "words.weight": "layer", "places.weight": "layer"} | dict.fromkeys(
        ("layer.weight", "layer.bias"), "layer"
    )


@pytest.mark.parametrize("length", [2, 5])
def test_positions_without_a_batch_axis_are_not_mistaken_for_samples(length, loop) -> None:
    class Flat(Tokens):
        def forward(self, x):
            return self.layer(self.words(x) + self.places(torch.arange(x.shape[1]))).mean(1)

    model, batch = Flat().to(WIDE).eval(), {"x": torch.randint(0, 7, (length, length))}  # as many positions as samples
    found, ways = fisher(model, batch)
    assert ways["places.weight"] == "vmap"
    torch.testing.assert_close(found["places.weight"], loop(model, call, batch)["places.weight"], rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch: attention has no batching rule on the CPU
@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_own_attention_is_handled(batch_first, loop) -> None:
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.layer(x if batch_first else x.transpose(0, 1)).mean(1 if batch_first else 0))

    model, batch = Encoder().to(WIDE).eval(), {"x": torch.randn(4, 3, 8, dtype=WIDE)}
    before = torch.backends.mha.get_fastpath_enabled()
    found, _ = fisher(model, batch)
    assert torch.backends.mha.get_fastpath_enabled() == before
    for name, one in loop(model, call, batch).items():
        torch.testing.assert_close(found[name], one, rtol=1e-9, atol=1e-12, msg=name)


def vision(kind, config, size=8):
    return kind, config, lambda count: {"pixel_values": torch.randn(count, 3, size, size, dtype=WIDE)}


def text(kind, config):
    def batch(count):
        ids, mask = torch.randint(3, 30, (count, 6)), torch.ones(count, 6, dtype=torch.long)
        mask[1, 4:] = 0
        ids[:, -1] = 1  # the token that T5 classifies by
        return {"input_ids": ids, "attention_mask": mask}

    return kind, {"vocab_size": 30, "pad_token_id": 0, **config}, batch


BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 20}
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 8, "patch_size": 4}
MODELS = [
    (*vision("ViTForImageClassification", VIT), {"layer", "expanded"}),
    (*vision("Dinov2ForImageClassification", VIT), {"layer", "expanded"}),
    (*vision("ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}, 32), {"layer"}),
    (
        *vision(
            "SwinForImageClassification",
            {"image_size": 8, "patch_size": 2, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 2},
        ),
        {"layer", "one by one"},
    ),
    (*text("BertForSequenceClassification", BERT), {"layer"}),
    (*text("RobertaForSequenceClassification", BERT), {"layer"}),
    (*text("GPT2ForSequenceClassification", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 20}), {"layer"}),
    (*text("LlamaForSequenceClassification", BERT | {"num_key_value_heads": 1}), {"layer", "expanded"}),
    (
        *text(
            "T5ForSequenceClassification",
            {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "eos_token_id": 1, "decoder_start_token_id": 0},
        ),
        {"layer", "expanded", "one by one"},
    ),
]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("kind", "config", "batch", "ways"), MODELS, ids=[one[0] for one in MODELS])
def test_classifiers_of_transformers_agree_with_the_loop(kind, config, batch, ways, loop) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers for its classes")
    kind = getattr(transformers, kind)
    model, given = kind(kind.config_class(num_labels=3, **config)).to(WIDE).eval(), batch(4)

    def forward(model, batch):
        return model(**batch).logits

    found, went = fisher(model, given, forward)
    assert set(went.values()) == ways, Counter(went.values())
    expected = loop(model, forward, given)
    largest = max(float(one.max()) for one in expected.values())
    rounding = 1e-5 if model.config.model_type in ("llama", "t5") else 1e-8  # their norms go through float32
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, rtol=rounding, atol=rounding * 1e-6 * largest, msg=name)


def test_what_is_no_plain_layer_has_no_rule() -> None:
    class Other(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    training = nn.BatchNorm1d(3)
    for layer in (
        Other(2, 2),
        training,
        nn.BatchNorm1d(3, track_running_stats=False).eval(),
        nn.Conv2d(1, 1, 3, padding_mode="circular", padding=1),
        nn.Conv2d(1, 1, 3, padding="same"),
        nn.Embedding(3, 3, max_norm=1.0),
        nn.ConvTranspose2d(1, 1, 3),
    ):
        assert layer_rule(layer) is None, layer
    assert layer_rule(training.eval()) is not None


class Largest(TorchDispatchMode):
    """The size of the largest tensor that anything made."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, Tensor):
                self.size = max(self.size, one.untyped_storage().nbytes() // one.element_size())
        return made


def test_no_gradient_a_sample_is_formed_for_linear_layers() -> None:
    model, batch = nn.Sequential(nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 5)).eval(), {"x": torch.randn(64, 100)}
    with Largest() as largest:
        fisher(model, batch)
    assert largest.size == 100 * 100  # of the parameters; activations are 64 x 100, and gradients a sample would be 64 x 100 x 100


def test_of_sequences_no_more_gradients_a_sample_are_formed_than_the_budget_allows() -> None:
    model, batch = nn.Linear(20, 20).eval(), {"x": torch.randn(64, 4, 20)}

    def forward(model, batch):
        return model(batch["x"]).sum(dim=1)

    for budget in (2**26, 4000):
        with Largest() as largest:
            fisher(model, batch, forward, budget)
        assert largest.size == (64 * 20 * 20 if budget == 2**26 else 64 * 4 * 20)  # then it is the batch itself


def test_the_model_is_left_as_it_was(net) -> None:
    model = net(0).eval()
    before = gw.fingerprint(model)
    model.body[0].weight.requires_grad_(False)
    squares = SquaredGradients(model, lambda model, batch: model(batch["x"]))
    squares.add({"x": torch.randn(6, 4)}, of_exact)
    assert gw.fingerprint(model) == before
    assert "body.0.weight" not in squares.sums
    assert not model.body[0].weight.requires_grad
    assert model.body[0].bias.requires_grad
    assert all(one.grad is None for one in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_parts_of_a_batch_that_are_no_samples_reach_the_model() -> None:
    model = nn.Linear(3, 2).eval()
    seen = []

    def forward(model: nn.Module, batch) -> Tensor:
        seen.append((batch["scale"], len(batch["names"]), batch["factor"].dim()))
        return model(batch["x"]) * batch["scale"] * batch["factor"]

    squares = SquaredGradients(model, forward, budget=1)
    squares.add({"x": torch.randn(3, 3), "names": ["a", "b", "c"], "scale": 2.0, "factor": torch.tensor(1.5)}, of_exact)
    assert squares.samples == 3
    assert set(seen) == {(2.0, 2, 0), (2.0, 1, 0)}  # two to make the plan, then one at a time


def test_outputs_that_are_not_one_a_sample_or_not_finite_are_refused() -> None:
    model = nn.Linear(3, 2).eval()
    with pytest.raises(gw.DataError, match=r"outputs of Linear have shape \(\) for 2 samples"):
        SquaredGradients(model, lambda model, batch: model(batch["x"]).sum()).add({"x": torch.randn(4, 3)}, of_exact)
    with pytest.raises(gw.DataError, match="outputs of Linear are not finite"):
        SquaredGradients(model, call).add({"x": torch.full((4, 3), torch.inf)}, of_exact)
    with pytest.raises(gw.DataError, match="a batch holds no samples"):
        SquaredGradients(model, call).add({"x": torch.randn(0, 3)}, of_exact)
    with pytest.raises(ValueError, match="no parameter of Linear requires a gradient"):
        SquaredGradients(model.requires_grad_(False), call)
