"""What predictions are compared with: noise at the input, and the history of weights."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_tram import InputNoise, ParameterHistory, TrustRegion, make_region
from graftwork_tram.regions import embedding_module


class Tagger(nn.Module):
    """Token ids (B, T) to logits (B, T, 4), with transformers' way of naming its embedding."""

    inputs = ("input_ids", "attention_mask")

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 5), nn.Linear(5, 4)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.table(input_ids))


def shift(model: nn.Module, by: float = 1.0) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)


# -- noise ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "deviation", "bound"), [("normal", 0.2, math.inf), ("uniform", 0.2 / math.sqrt(3), 0.2)])
def test_noise_has_its_distribution(kind, deviation, bound) -> None:
    drawn = InputNoise(0.2, kind).noise_like(torch.empty(200_000))
    assert drawn.mean().item() == pytest.approx(0, abs=5 * deviation / 200_000**0.5)
    assert drawn.std().item() == pytest.approx(deviation, rel=0.01)
    assert drawn.abs().max() <= bound
    assert (kind == "uniform") == (drawn.abs().max().item() < 0.3)


def test_numbers_are_noised_as_they_come_in(net, batch) -> None:
    model, noise = net(), InputNoise(0.3, seed=4)
    expected = model(batch["features"] + InputNoise(0.3, seed=4).noise_like(batch["features"]))
    torch.testing.assert_close(noise(model, batch["features"]), expected)
    torch.testing.assert_close(InputNoise(0.3, seed=4)(model, x=batch["features"]), expected)


def test_tokens_are_noised_where_they_become_vectors() -> None:
    model, ids = Tagger(), torch.tensor([[1, 2, 3]])
    drawn = InputNoise(0.3, seed=4).noise_like(model.table(ids))
    for at in (None, "embeddings", "table"):
        torch.testing.assert_close(InputNoise(0.3, at=at, seed=4)(model, ids), model.head(model.table(ids) + drawn))


def test_any_module_can_be_the_place(net, batch) -> None:
    model = net()
    hidden = model.body(batch["features"])
    expected = model.head(hidden + InputNoise(0.3, seed=4).noise_like(hidden))
    torch.testing.assert_close(InputNoise(0.3, at="body", seed=4)(model, batch["features"]), expected)


def test_no_noise_changes_nothing_and_no_hook_stays(net, batch) -> None:
    model = net()
    expected = model(batch["features"])
    assert torch.equal(InputNoise(0.0)(model, batch["features"]), expected)
    InputNoise(1.0)(model, batch["features"])
    assert torch.equal(model(batch["features"]), expected)


def test_each_draw_is_another_and_none_touches_torchs_own_generator(net, batch) -> None:
    model, noise = net(), InputNoise(0.3)
    before = torch.get_rng_state()
    first, second = (noise(model, batch["features"]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_resumed_generator_goes_on_where_it_was(net, batch) -> None:
    model, noise, other = net(), InputNoise(0.3, seed=1), InputNoise(0.3, seed=2)
    noise(model, batch["features"])
    other.load_state_dict(noise.state_dict())
    again = InputNoise(0.3, seed=3)
    again.load_state_dict(other.state_dict())  # saved again before a draw
    expected = noise(model, batch["features"])
    assert torch.equal(other(model, batch["features"]), expected)
    assert torch.equal(again(model, batch["features"]), expected)


def test_copies_and_pickles_draw_on_where_the_original_was(net, batch) -> None:
    model, noise = net(), InputNoise(0.3, seed=1)
    noise(model, batch["features"])
    copies = [copy.deepcopy(noise), pickle.loads(pickle.dumps(noise))]
    expected = noise(model, batch["features"])
    assert all(torch.equal(one(model, batch["features"]), expected) for one in copies)


def test_noise_is_drawn_in_float32_for_half_precision() -> None:
    assert InputNoise(0.1).noise_like(torch.empty(3, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: InputNoise(0.1, at="bdy")(model, torch.ones(1, 6)), r'Net has no module "bdy" \(did you mean "body"\?\) to noise'),
        (lambda model: InputNoise(0.1, at="embeddings")(model, torch.ones(1, 6)), r"Net has no get_input_embeddings\(\)"),
        (lambda model: InputNoise(0.1, at="input")(Tagger(), torch.ones(1, 6, dtype=torch.long)), "Tagger got no input of real numbers"),
    ],
)
def test_a_place_that_is_not_there_is_named(net, call, message) -> None:
    with pytest.raises(gw.InterfaceError, match=message):
        call(net())


def test_an_embedding_is_found_inside_a_wrapper() -> None:
    wrapped = nn.ModuleDict({"inner": Tagger()})
    assert embedding_module(wrapped) is wrapped["inner"].table


# -- history -------------------------------------------------------------------------------------------------------------------


def shadow_of(history: ParameterHistory, model: nn.Module) -> dict[str, torch.Tensor]:
    with history.applied(model):
        return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("decay", "expected"), [(0.0, 3.0), (1.0, 0.0), (0.9, 0.9 * (0.9 * 0.1 + 0.2) + 0.3)])
def test_decay_says_which_weights_are_remembered(net, decay, expected) -> None:
    model, history = net().double(), ParameterHistory(decay)
    start = copy.deepcopy(model.state_dict())
    history.begin(model)
    for _ in range(3):
        shift(model)
        history.follow(model)
    for name, value in shadow_of(history, model).items():
        torch.testing.assert_close(value, start[name] + expected)


def test_decay_zero_predicts_as_the_step_before_did(net, batch) -> None:
    model, history = net(), ParameterHistory(0.0)
    history.begin(model)
    before = model(batch["features"]).detach()
    shift(model, 0.1)
    assert torch.equal(history(model, batch["features"]), before)
    history.follow(model)
    assert torch.equal(history(model, batch["features"]), model(batch["features"]))


def test_the_shadow_has_storage_of_its_own_and_so_have_the_weights_afterwards(net, batch) -> None:
    model, history = net(norm=True), ParameterHistory(1.0)
    history.begin(model)
    places = [p.data_ptr() for p in (*model.parameters(), *model.buffers())]
    assert not set(places) & {shadow.data_ptr() for shadow in history.shadow.values()}
    history(model, batch["features"])
    assert [p.data_ptr() for p in (*model.parameters(), *model.buffers())] == places


def test_the_shadow_predicts_in_eval_mode_without_gradients_and_with_its_own_statistics(net, batch) -> None:
    model, history = net(norm=True, dropout=0.5), ParameterHistory(1.0)
    expected = copy.deepcopy(model).eval()(batch["features"])
    history.begin(model)
    model(batch["features"] + 3)  # moves the running statistics
    found = history(model, batch["features"])
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert model.training


def test_batch_norm_statistics_are_remembered_too(net, batch) -> None:
    model, history = net(norm=True), ParameterHistory(0.0)
    history.begin(model)
    model(batch["features"] + 3)
    history.follow(model)
    model(batch["features"] - 3)
    seen = model.body[0](batch["features"] + 3).mean(dim=0)
    torch.testing.assert_close(history.shadow["body.1.running_mean"], 0.1 * seen)  # torch's momentum
    assert history.shadow["body.1.num_batches_tracked"] == 1


def test_only_what_trains_is_kept_and_what_begins_to_train_is_taken_in(net, batch) -> None:
    model, history = net(), ParameterHistory(1.0)
    model.body.requires_grad_(False)
    history.begin(model)
    assert set(history.shadow) == {"head.weight", "head.bias"}
    model.body.requires_grad_(True)
    history(model, batch["features"])
    assert len(history.shadow) == 4


def test_the_shadow_is_neither_parameter_nor_buffer_yet_in_the_state(net) -> None:
    model, history = net(), ParameterHistory(0.5)
    history.begin(model)
    assert not list(history.parameters())
    assert not list(history.buffers())
    assert set(history.state_dict()) == set(model.state_dict())
    shift(model)
    history.follow(model)
    other = ParameterHistory(0.5)
    other.begin(model)
    other.load_state_dict(history.state_dict())
    shift(model)
    for one in (history, other):
        one.follow(model)
    assert all(torch.equal(history.shadow[name], other.shadow[name]) for name in history.shadow)
    fresh = ParameterHistory(0.5)
    fresh.load_state_dict(history.state_dict())
    assert set(fresh.shadow) == set(history.shadow)


def test_a_state_of_another_model_is_refused(net) -> None:
    model, history, other = net(), ParameterHistory(0.5), ParameterHistory(0.5)
    history.begin(model)
    other.begin(nn.ModuleDict({"head": nn.Linear(2, 2)}))
    with pytest.raises(RuntimeError, match=r"head.weight is \(3, 8\) in the state and \(2, 2\) here"):
        other.load_state_dict(history.state_dict(), strict=False)


def test_the_shadow_may_lie_elsewhere_in_half_precision(net, batch) -> None:
    model, history = net(), ParameterHistory(1.0, "cpu", "bfloat16")
    expected = copy.deepcopy(model).bfloat16().float()(batch["features"])
    history.begin(model)
    assert {shadow.dtype for shadow in history.shadow.values()} == {torch.bfloat16}
    torch.testing.assert_close(history(model, batch["features"]), expected)
    assert model.head.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: InputNoise(-0.1), "eps is at least 0; found -0.1"),
        (lambda: InputNoise(0.1, "laplace"), 'type is "normal" or "uniform"; found "laplace"'),
        (lambda: ParameterHistory(1.5), r"decay is in \[0, 1\]; found 1.5"),
        (lambda: ParameterHistory(0.99, dtype="bfloat16"), "a moving average in bfloat16 rounds its steps away: decay 0.99 needs float32"),
        (lambda: make_region("future"), 'region is one of input-noise, previous, pretrained, ema; found "future"'),
        (lambda: make_region("previous", decay=0.9), "decay is of the region ema, between 0 and 1; found 0.9 with previous"),
        (lambda: make_region("ema", decay=1.0), "decay is of the region ema, between 0 and 1; found 1.0 with ema"),
    ],
)
def test_settings_out_of_range_are_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_regions_by_name_are_histories_of_their_decay() -> None:
    decays = {name: make_region(name).decay for name in ("previous", "pretrained", "ema")}
    assert decays == {"previous": 0.0, "pretrained": 1.0, "ema": 0.999}
    assert make_region("ema", decay=0.5).decay == 0.5
    assert make_region("input-noise").eps == 0.1


# -- measuring -----------------------------------------------------------------------------------------------------------------


def measured(trust: TrustRegion, model: nn.Module, *args, **kwargs) -> torch.Tensor:
    with trust.record(model) as recorded:
        model(*args, **kwargs)
    with torch.no_grad():
        return trust.measure(model, recorded.calls)


def test_without_noise_nothing_diverges_in_eval_mode_and_with_it_something_does(net, batch) -> None:
    model = net(norm=True, dropout=0.5).eval()
    assert measured(TrustRegion(InputNoise(0.0)), model, batch["features"]) == 0
    assert measured(TrustRegion(InputNoise(0.1)), model, batch["features"]) > 0


def test_the_same_dropout_masks_leave_the_noise_alone(net, batch) -> None:
    model = net(dropout=0.5)
    assert measured(TrustRegion(InputNoise(0.0)), model, batch["features"]) > 0
    assert measured(TrustRegion(InputNoise(0.0), same_rng=True), model, batch["features"]) == 0


def test_permuting_the_batch_leaves_the_divergence_as_it_is(net, batch) -> None:
    model, history = net(), ParameterHistory(1.0)
    history.begin(model)
    shift(model, 0.1)
    first, second = (measured(TrustRegion(history), model, x) for x in (batch["features"], batch["features"].flip(0)))
    torch.testing.assert_close(first, second)
    assert first > 0


def test_padding_tokens_do_not_change_the_divergence() -> None:
    torch.manual_seed(0)
    model, history = Tagger(), ParameterHistory(1.0)
    history.begin(model)
    shift(model.head, 0.5)
    with torch.no_grad():
        model.head.weight[0].add_(1.0)
    trust = TrustRegion(history)
    plain = measured(trust, model, torch.tensor([[1, 2, 3]]), torch.ones(1, 3))
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    for filler in (0, 9):
        padded = torch.tensor([[1, 2, 3, filler, filler]])
        torch.testing.assert_close(measured(trust, model, padded, mask), plain)
        torch.testing.assert_close(measured(trust, model, padded, attention_mask=mask), plain)
    assert measured(trust, model, torch.tensor([[1, 2, 3, 9, 9]])) != plain


@pytest.mark.filterwarnings("ignore:region pretrained")
def test_several_calls_are_averaged(net, batch) -> None:
    model, history = net(), ParameterHistory(1.0)
    history.begin(model)
    shift(model, 0.1)
    trust = TrustRegion(history)
    halves = [measured(trust, model, half) for half in batch["features"].split(6)]
    with trust.record(model) as recorded:
        for half in batch["features"].split(6):
            model(half)
    torch.testing.assert_close(trust.measure(model, recorded.calls), torch.stack(halves).mean())


@pytest.mark.parametrize("output", ["dict", "object"])
def test_logits_are_found_in_what_the_model_gives(net, batch, output) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x):
            found = self.inner(x)
            return {"scores": found} if output == "dict" else type("Output", (), {"scores": found})()

    model = Wrapped()
    assert measured(TrustRegion(InputNoise(0.1), logits_key="scores"), model, batch["features"]) > 0
    given = "scores" if output == "dict" else "Output"
    with pytest.raises(gw.InterfaceError, match=f'Wrapped gives {given}, which has no tensor "logits": say where .* with logits_key'):
        measured(TrustRegion(InputNoise(0.1)), model, batch["features"])


def test_logits_of_different_shape_are_refused(batch) -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 1

        def forward(self, x):
            self.calls += 1
            return x[:, : self.calls]

    with pytest.raises(gw.InterfaceError, match=r"\(12, 3\) of the pass with noise at the input, \(12, 2\) of the first pass"):
        measured(TrustRegion(InputNoise(0.1)), Growing(), batch["features"])


def test_logits_that_are_not_finite_are_refused_by_the_pass_that_gave_them(net, batch) -> None:
    model = net()
    with pytest.raises(gw.DataError, match="the divergence is not finite: the first pass gave logits that are not"):
        measured(TrustRegion(InputNoise(0.1)), model, torch.full((2, 6), math.nan))
    history = ParameterHistory(1.0)
    history.begin(model)
    history.shadow["head.bias"].fill_(math.nan)
    with pytest.raises(gw.DataError, match="the pass with earlier weights gave logits that are not"):
        measured(TrustRegion(history), model, batch["features"])


def test_a_loss_that_never_calls_the_model_gives_nothing_to_compare(net) -> None:
    with pytest.raises(gw.InterfaceError, match="without calling Net as a whole: there are no logits to compare"):
        TrustRegion(InputNoise(0.1)).measure(net(), [])


def test_pretrained_weights_that_predict_nothing_warn(net, batch) -> None:
    model = net()
    with torch.no_grad():
        model.head.weight.mul_(0.01)
    history = ParameterHistory(1.0)
    history.begin(model)
    with pytest.warns(UserWarning, match=r"whose predictions are all but uniform \(entropy \d+% of the largest\): is it trained"):
        measured(TrustRegion(history), model, batch["features"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_trained_weights_and_other_histories_do_not(net, batch, decay) -> None:
    model = net()
    with torch.no_grad():
        model.head.weight.mul_(100 if decay == 1 else 0.01)
    history = ParameterHistory(decay)
    history.begin(model)
    measured(TrustRegion(history), model, batch["features"])
