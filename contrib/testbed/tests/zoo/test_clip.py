from __future__ import annotations

import pytest
import torch
from transformers import CLIPModel

from graftwork import Engine, TrainConfig
from graftwork.builtin.dual_encoder import TransformersDualEncoder
from graftwork.builtin.objectives import InfoNCE
from graftwork.interfaces import DualEncoder
from graftwork_testbed.scenes.dataset import digit_scenes
from graftwork_testbed.text.blocks import Tokenized
from graftwork_testbed.zoo.clip import caption_clip
from graftwork_testbed.zoo.tokenizers import LENGTH


@pytest.fixture
def model():
    torch.manual_seed(0)
    return caption_clip(16, 1, 1, attention_heads=2, projection=8)


def scenes():
    return Tokenized(digit_scenes(size=64, train=32, val=4, test=4), "captions", LENGTH, key="caption")


def test_it_is_a_clip_with_both_towers(model):
    assert isinstance(model, DualEncoder)
    assert model.encode_image(torch.rand(2, 3, 64, 64)).shape == (2, 8)
    assert model.encode(["a red three", "a blue one above a pink four"]).shape == (2, 8)


def test_it_is_the_same_after_saving(model, tmp_path):
    model.save_pretrained(tmp_path)
    images, texts = torch.rand(2, 3, 64, 64), ["a red three", "two green sixes"]
    again = TransformersDualEncoder(str(tmp_path))
    torch.testing.assert_close(again.encode_image(images), model.encode_image(images))
    torch.testing.assert_close(again.encode(texts), model.encode(texts))
    assert isinstance(CLIPModel.from_pretrained(tmp_path), CLIPModel)


def test_tokens_are_those_that_the_model_encodes(model):
    data = scenes()
    batch = data["train"].__getitems__([0, 1, 2])
    torch.testing.assert_close(model.encode_text(batch["input_ids"], batch["attention_mask"]), model.encode(batch["caption"]))
    assert torch.equal(data["train"][1]["input_ids"], batch["input_ids"][1])


def test_training_aligns_and_leaves_its_temperature_in_the_model(model):
    rows, objective = [], InfoNCE(temperature=0.5)
    train = TrainConfig(steps=30, batch_size=32, log_every=10, optimizer={"use": "adam", "lr": 0.003})
    Engine(model, objective, scenes(), train, device="cpu", log=lambda step, row: rows.append(row["loss"])).fit()
    assert rows[-1] < rows[0]
    objective(model, {"train": scenes()["train"].__getitems__(range(4))}, 1.0)
    assert model.logit_scale.item() == pytest.approx(objective.log_scale.item())


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="patch_size image_size; found 4, 96, 7, 64"):
        caption_clip(patch_size=7)
