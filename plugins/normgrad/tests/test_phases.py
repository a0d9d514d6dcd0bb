"""Both phases against autograd on real layers, and closed forms against contributions that are formed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from graftwork_normgrad import Contributions, Term, Window, aggregate, contribution_map, extract, normgrad_map, selective_normgrad_map
from graftwork_normgrad.phases import PHASE2, saliency_of

VIRTUAL = ("bias", "scaling", "conv1x1", "conv3x3", "conv3x3-depthwise")
AGGREGATES = tuple(name for name in PHASE2 if name != "none")
CHANNELS = 7


def signed(batch: int = 2, channels: int = CHANNELS, height: int = 5, width: int = 6, scores: int | None = None) -> tuple[Tensor, Tensor]:
    shape = (batch, channels, height, width) if scores is None else (batch, scores, channels, height, width)
    return torch.randn(batch, channels, height, width, dtype=torch.double), torch.randn(shape, dtype=torch.double)


class Scale(nn.Module):
    """The identity as a scale of 1 for each channel, a bias of 0, or both."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def identity(phase1: str, channels: int) -> nn.Module:
    """A real layer that gives what comes in."""
    if phase1 in ("bias", "scaling"):
        return Scale(channels).double()
    side, groups = (1 if phase1 == "conv1x1" else 3), (channels if phase1.endswith("depthwise") else 1)
    layer = nn.Conv2d(channels, channels, side, padding=side // 2, groups=groups, bias=False).double()
    nn.init.dirac_(layer.weight, groups)
    return layer


@pytest.mark.parametrize("phase1", VIRTUAL)
def test_extracts_add_up_to_the_gradient_of_a_real_identity_layer(phase1):
    x, _ = signed()
    layer = identity(phase1, CHANNELS)
    tail = nn.Sequential(nn.Tanh(), nn.Conv2d(CHANNELS, 3, 3), nn.Flatten(), nn.Linear(3 * 3 * 4, 1)).double()
    out = layer(x)
    torch.testing.assert_close(out, x, rtol=0, atol=1e-12)
    (g,) = torch.autograd.grad(tail(out).sum(), out)
    tail(layer(x)).sum().backward()
    expected = layer.bias.grad if phase1 == "bias" else layer.weight.grad
    found = extract(x, g, phase1).sum(dim=(0, 2, 3))
    if phase1 in ("conv1x1", "conv3x3"):  # ours: input entry, then output channel
        found = found.view(-1, CHANNELS).T.reshape(expected.shape)
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("phase2", AGGREGATES)
@pytest.mark.parametrize("phase1", VIRTUAL)
def test_closed_forms_equal_contributions_that_are_formed(phase1, phase2):
    for case in (signed(), signed(scores=3)):
        naive = contribution_map(*case, phase1, phase2, naive=True)
        torch.testing.assert_close(contribution_map(*case, phase1, phase2), naive, rtol=1e-10, atol=1e-12)
        single = contribution_map(case[0].float(), case[1].float(), phase1, phase2).double()
        torch.testing.assert_close(single / naive.abs().max(), naive / naive.abs().max(), rtol=0, atol=1e-6)


def test_the_naive_path_is_phase_two_of_phase_one():
    x, g = signed()
    outer = torch.einsum("bihw,bjhw->bijhw", x, g).flatten(1, 2)
    torch.testing.assert_close(extract(x, g, "conv1x1"), outer)
    torch.testing.assert_close(aggregate(outer, "norm")[:, 0], outer.square().sum(dim=1).sqrt())
    torch.testing.assert_close(aggregate(outer, "filter-norm")[:, 0], outer.clamp(min=0).square().sum(dim=1).sqrt())
    torch.testing.assert_close(aggregate(outer, "sum")[:, 0], x.sum(dim=1) * g.sum(dim=1))
    assert torch.equal(aggregate(outer, "max")[:, 0], outer.amax(dim=1))
    assert torch.equal(aggregate(outer, "abs-max")[:, 0], outer.abs().amax(dim=1))
    assert aggregate(outer, "none") is outer


def test_normgrad_is_the_product_of_two_norms_and_selective_normgrad_keeps_what_speaks_for_the_target():
    x, g = signed()
    torch.testing.assert_close(normgrad_map(x, g)[:, 0], x.norm(dim=1) * g.norm(dim=1))
    torch.testing.assert_close(selective_normgrad_map(x, g)[:, 0], (x * g).clamp(min=0).norm(dim=1))


def test_the_maximum_looks_at_all_four_corners():
    x, g = torch.tensor([[3.0, 1.0]]), torch.tensor([[-2.0, -1.0]])  # no entry of x is negative, none of g positive
    assert contribution_map(x[..., None, None], g[..., None, None], "conv1x1", "max").item() == -1.0
    assert contribution_map(-x[..., None, None], g[..., None, None], "conv1x1", "max").item() == 6.0


def test_a_window_at_the_border_sees_the_zeros_outside():
    x, g = -torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    found = contribution_map(x, g, "conv3x3", "max")[0, 0]
    assert found[1, 1] == -1
    assert found[0, 0] == found[0, 1] == 0


@pytest.mark.parametrize("phase1", VIRTUAL)
def test_norms_are_even_and_a_score_times_s_makes_maps_times_s(phase1):
    x, g = signed()
    norm, total = (contribution_map(x, g, phase1, phase2) for phase2 in ("norm", "sum"))
    torch.testing.assert_close(contribution_map(x, -g, phase1, "norm"), norm)
    torch.testing.assert_close(contribution_map(-x, g, phase1, "norm"), norm)
    torch.testing.assert_close(contribution_map(x, -3 * g, phase1, "norm"), 3 * norm)
    torch.testing.assert_close(contribution_map(x, -3 * g, phase1, "sum"), -3 * total)


def test_norms_of_very_small_gradients_do_not_vanish_in_float32():
    x, g = (1e-6 * each.float().abs() for each in signed())
    found = contribution_map(x, 1e-11 * g, "conv1x1", "norm")
    torch.testing.assert_close(found, (x.double().norm(dim=1) * 1e-11 * g.double().norm(dim=1)).float().unsqueeze(1), rtol=1e-3, atol=0)


# -- several terms: shared weights, paths through a step ---------------------------------------------------------------------------


@pytest.mark.parametrize("phase2", AGGREGATES)
@pytest.mark.parametrize("phase1", VIRTUAL)
def test_terms_are_added_before_they_are_aggregated(phase1, phase2, monkeypatch):
    monkeypatch.setattr("graftwork_normgrad.phases.AT_ONCE", 500)  # so that parts are made
    terms = [Term(*signed(scores=2)) for _ in range(3)]
    expected = aggregate(sum(extract(term.activations, term.gradients, phase1) for term in terms), phase2).squeeze(2)
    torch.testing.assert_close(saliency_of(Contributions(terms), phase1, phase2), expected, rtol=1e-9, atol=1e-11)


def test_a_term_that_is_none_of_the_bias_stays_out_of_it():
    terms = [Term(*signed(scores=1)), Term(*signed(scores=1), in_bias=False)]
    torch.testing.assert_close(saliency_of(Contributions(terms), "bias", "sum"), terms[0].gradients.sum(dim=2))


# -- a real convolution ------------------------------------------------------------------------------------------------------------

GEOMETRIES = [
    {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "groups": 2},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1)},
    {"kernel_size": 1},
    {"kernel_size": (1, 5), "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": 2, "padding_mode": "reflect", "groups": 3},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda each: ",".join(f"{k}={v}" for k, v in each.items()))
def test_a_real_convolutions_extracts_add_up_to_its_gradient_and_have_closed_forms(geometry):
    layer = nn.Conv2d(6, 12, **geometry, bias=False).double()
    x = torch.randn(2, 6, 11, 9, dtype=torch.double)
    out = layer(x)
    g = torch.randn_like(out)
    out.backward(g)
    window, groups = Window.of(layer), layer.groups
    formed = extract(x, g, "conv", window, groups)
    summed = formed.sum(dim=(0, 2, 3)).view(groups, -1, 12 // groups).transpose(1, 2).reshape(layer.weight.shape)
    torch.testing.assert_close(summed, layer.weight.grad, rtol=0, atol=1e-10)
    contributions = Contributions([Term(x, g.unsqueeze(1))], window, groups)
    for phase2 in AGGREGATES:
        expected = aggregate(formed, phase2)
        torch.testing.assert_close(saliency_of(contributions, "conv", phase2), expected, rtol=1e-9, atol=1e-11)


def test_the_norms_of_groups_combine_as_the_root_of_the_sum_of_squares():
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    x, g = torch.randn(1, 4, 5, 5), torch.randn(1, 1, 4, 5, 5)
    both = saliency_of(Contributions([Term(x, g)], Window.of(layer), 2), "conv", "norm")
    each = [saliency_of(Contributions([Term(x[:, s], g[:, :, s])], Window.of(layer), 1), "conv", "norm") for s in (slice(2), slice(2, 4))]
    torch.testing.assert_close(both, (each[0] ** 2 + each[1] ** 2).sqrt())


# -- memory, and what is refused ---------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """The largest number of entries that any operation gave."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.entries = max([self.entries, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


@pytest.mark.parametrize("phase2", AGGREGATES)
def test_closed_forms_hold_no_more_than_the_features_themselves(phase2):
    x, g = torch.randn(1, 512, 7, 7), torch.randn(1, 512, 7, 7)
    for phase1 in ("conv1x1", "conv3x3", "conv3x3-depthwise"):
        with LargestTensor() as seen:
            contribution_map(x, g, phase1, phase2)
        assert seen.entries <= 512 * 9 * 9  # the features with the margin of the window
    with LargestTensor() as seen:
        contribution_map(x, g, "conv1x1", phase2, naive=True)
    assert seen.entries == 512 * 512 * 7 * 7


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (("conv5x5", "norm"), "phase1 is one of bias, scaling, conv1x1, conv3x3, conv3x3-depthwise, conv; found"),
        (("scaling", "filter_norm"), "phase2 is one of sum, norm, filter-norm, max, abs-max, none; found"),
        (("conv", "norm"), "its window is needed"),
    ],
)
def test_unknown_phases_list_the_choices(phases, message):
    with pytest.raises(ValueError, match=message):
        contribution_map(*signed(), *phases)


def test_shapes_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"activations \(2, 7, 5, 6\) and gradients \(2, 1, 6, 5, 6\) do not go together"):
        contribution_map(signed()[0], signed()[1][:, :6])
