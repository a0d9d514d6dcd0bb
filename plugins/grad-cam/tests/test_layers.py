from __future__ import annotations

import pytest
import torch
from torch import nn

from graftwork.errors import InterfaceError
from graftwork_grad_cam.evidence import observe, prepared
from graftwork_grad_cam.grad_cam import grad_cam
from graftwork_grad_cam.layers import Layout, find_layer, find_layout


def chosen(model: nn.Module, height: int = 64, width: int = 64, target="predicted") -> str:
    batch, asked = prepared(model.eval(), torch.rand(2, 3, height, width), target)
    return find_layer(model, batch, asked)


# -- layouts -----------------------------------------------------------------------------------------------------------------------


def test_every_layout_gives_the_same_positions():
    expected = torch.randn(2, 5, 3, 4)
    rows = expected.flatten(2).transpose(1, 2)
    tokens = torch.cat([torch.randn(2, 2, 5), rows, torch.randn(2, 3, 5)], dim=1)
    assert torch.equal(Layout("nchw", (3, 4)).spatial(expected), expected)
    assert torch.equal(Layout("nhwc", (3, 4)).spatial(expected.permute(0, 2, 3, 1)), expected)
    assert torch.equal(Layout("tokens", (3, 4), 2, 3).spatial(tokens), expected)
    assert torch.equal(Layout("tokens", (3, 4), 2, 3).spatial(torch.stack([tokens, 2 * tokens])), torch.stack([expected, 2 * expected]))


@pytest.mark.parametrize(
    ("shape", "image", "patches", "expected"),
    [
        ((2, 512, 7, 7), (224, 224), None, Layout("nchw", (7, 7))),
        ((2, 7, 7, 768), (224, 224), None, Layout("nhwc", (7, 7))),
        ((2, 8, 4, 6), (64, 96), None, Layout("nchw", (4, 6))),
        ((2, 4, 6, 8), (64, 96), None, Layout("nhwc", (4, 6))),
        ((2, 197, 768), (224, 224), (14, 14, 768), Layout("tokens", (14, 14), 1)),
        ((2, 201, 768), (224, 224), (14, 14, 768), Layout("tokens", (14, 14), 5)),
        ((2, 25, 16), (64, 96), (4, 6, 16), Layout("tokens", (4, 6), 1)),
        ((2, 49, 768), (224, 224), (56, 56, 96), Layout("tokens", (7, 7))),
        ((2, 20, 32), (66, 98), (17, 25, 8), None),
        ((2, 197, 768), (224, 224), None, Layout("tokens", (14, 14), 1)),
        ((2, 25, 16), (64, 96), None, Layout("tokens", (4, 6), 1)),
        ((2, 35, 32), (66, 98), (17, 25, 16), Layout("tokens", (5, 7))),
    ],
)
def test_layouts_are_found_from_shapes(shape, image, patches, expected):
    if expected is None:
        with pytest.raises(InterfaceError, match="which do not match"):
            find_layout(shape, image, patches)
    else:
        assert find_layout(shape, image, patches) == expected


def test_tokens_that_do_not_fit_the_grid_are_told_with_their_numbers():
    with pytest.raises(InterfaceError, match="gives 197 tokens, which do not match 1 prefix tokens, a grid of 7 x 8 = 56"):
        find_layout((2, 197, 8), (224, 224), grid=(7, 8), prefix=1)
    with pytest.raises(
        InterfaceError, match=r"30 tokens.* 2 prefix tokens, a grid of 4 x 6 = 24 and 5 behind it: give `grid` and `prefix_tokens`"
    ):
        find_layout((2, 30, 8), (64, 96), (4, 6, 8), prefix=2, suffix=5)


def test_a_layout_that_the_output_cannot_have_is_refused():
    with pytest.raises(InterfaceError, match=r"gives \(2, 8, 4, 6\), which has no positions as tokens"):
        find_layout((2, 8, 4, 6), (64, 96), kind="tokens")


# -- the layer that is chosen ------------------------------------------------------------------------------------------------------


def vgg() -> nn.Sequential:
    features = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    )
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Dropout(), nn.Linear(6 * 49, 3))


def test_on_a_vgg_it_is_the_last_relu_before_pooling():
    assert chosen(vgg()) == "0.4"


def test_the_chosen_layer_is_named_in_the_result(gap):
    assert list(grad_cam(gap, torch.rand(2, 3, 16, 16), 0).raw) == ["features"]


@pytest.mark.parametrize(
    ("name", "size", "target", "expected"),
    [
        ("vit", (64, 96), "predicted", "vit.layers.1.layernorm_before"),
        ("swin", (64, 96), "predicted", "swin.encoder.layers.2"),
        ("convnext", (64, 96), "predicted", "convnext.encoder.stages.1"),
        ("resnet", (64, 96), "predicted", "resnet.encoder.stages.1"),
        ("segformer", (64, 96), {"name": "segmentation", "region": "image"}, "decode_head.activation"),
        ("yolos", (64, 96), {"name": "detection", "boxes": [[1, 2, 30, 40]]}, "vit.encoder.layer.1.layernorm_before"),
        ("detr", (64, 96), {"name": "detection", "boxes": [[1, 2, 30, 40]]}, "model.input_projection"),
        ("blip", (64, 64), "caption", "vision_model.encoder.layers.1"),
    ],
)
def test_on_transformers_models_it_is_the_last_that_matters(loaded, name, size, target, expected):
    assert chosen(loaded(name), *size, target) == expected


def test_registers_are_left_out(loaded):
    found = observe(loaded("registers"), torch.rand(2, 3, 64, 64), "predicted")
    assert next(iter(found.layers.values()))[0].layout == Layout("tokens", (4, 4), 5)


class TokenNet(nn.Module):
    """Patches, a class token, blocks with attention; the head reads the class token or the mean of the patches."""

    class Block(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attention, self.mlp = nn.MultiheadAttention(width, 2, batch_first=True), nn.Linear(width, width)

        def forward(self, x):
            y = self.norm1(x)
            x = x + self.attention(y, y, y, need_weights=False)[0]
            return x + self.mlp(self.norm2(x)).relu()

    def __init__(self, mean: bool, width: int = 8):
        super().__init__()
        self.mean = mean
        self.patch_embed, self.token = nn.Conv2d(3, width, 16, stride=16), nn.Parameter(torch.randn(1, 1, width))
        self.blocks, self.norm, self.head = nn.ModuleList([self.Block(width) for _ in range(2)]), nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 1:].mean(dim=1) if self.mean else x[:, 0])


def test_a_head_on_the_class_token_wants_the_last_blocks_first_norm_and_one_on_the_mean_the_block():
    assert chosen(TokenNet(mean=False)) == "blocks.1.norm1"
    assert chosen(TokenNet(mean=True)) == "blocks.1"


def test_the_last_block_of_a_class_token_head_is_refused_with_what_to_use_instead(loaded):
    said = "no gradient reaches the patch tokens.*use blocks.-1.norm1"
    with pytest.raises(InterfaceError, match=said + '.*here "blocks.1.norm1"'):
        grad_cam(TokenNet(mean=False).eval(), torch.rand(2, 3, 64, 64), 0, "blocks.-1")
    with pytest.raises(InterfaceError, match=said + '.*here "vit.layers.1.layernorm_before"'):
        grad_cam(loaded("vit"), torch.rand(2, 3, 64, 96), 0, "vit.layers.-1")
    with pytest.raises(InterfaceError, match=said):
        grad_cam(loaded("vit"), torch.rand(2, 3, 64, 96), 0, "vit.layernorm")
    assert grad_cam(TokenNet(mean=False).eval(), torch.rand(2, 3, 64, 64), 0, "blocks.-1.norm1").maps.shape == (2, 1, 64, 64)


def test_prefix_tokens_that_contradict_the_tokens_are_refused():
    with pytest.raises(InterfaceError, match="gives 17 tokens, which do not match 2 prefix tokens, a grid of 4 x 4 = 16"):
        grad_cam(TokenNet(mean=True).eval(), torch.rand(2, 3, 64, 64), 0, "blocks.1", prefix_tokens=2)


def test_a_model_that_states_its_prefix_tokens_is_believed():
    model = TokenNet(mean=True).eval()
    model.num_prefix_tokens = 2
    with pytest.raises(InterfaceError, match="2 prefix tokens"):
        grad_cam(model, torch.rand(2, 3, 64, 64), 0, "blocks.1")


class Bright(nn.Module):
    """Tokens or maps that are bright where the image is: a classifier whose evidence is known."""

    def __init__(self, tokens: bool):
        super().__init__()
        self.tokens = tokens
        self.patch_embed, self.blocks = nn.Conv2d(3, 4, 16, stride=16, bias=False), nn.ModuleList([nn.ReLU()])
        nn.init.constant_(self.patch_embed.weight, 0.01)

    def forward(self, x):
        x = self.patch_embed(x)
        x = self.blocks[0](x.flatten(2).transpose(1, 2) if self.tokens else x)
        return x.mean(dim=1) if self.tokens else x.mean(dim=(2, 3))


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize(("row", "column"), [(0, 5), (3, 0), (3, 5), (1, 4)])
def test_a_map_of_an_oblong_image_is_not_transposed(tokens, row, column):
    x = torch.zeros(1, 3, 64, 96)
    x[..., 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 1
    found = grad_cam(Bright(tokens).eval(), x, 0, "blocks.0").maps[0, 0]
    assert found.shape == (64, 96)
    peak = divmod(int(found.argmax()), 96)
    assert (peak[0] // 16, peak[1] // 16) == (row, column)
