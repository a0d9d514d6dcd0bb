from __future__ import annotations

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from graftwork_adaptive_guidance import prediction_of, take_rows, with_prediction


def numbered(rows: int, *shape: int) -> torch.Tensor:
    return torch.arange(rows, dtype=torch.float32).view(rows, *[1] * len(shape)).expand(rows, *shape).contiguous()


def test_every_argument_with_a_row_a_sample_is_cut_wherever_it_is() -> None:
    arguments = {
        "sample": numbered(6, 4, 2, 2),
        "timestep": torch.tensor(7),
        "encoder_hidden_states": numbered(6, 3, 8),
        "added_cond_kwargs": {"text_embeds": numbered(6, 5), "time_ids": numbered(6, 6), "image_embeds": [numbered(6, 1, 8)]},
        "down_block_additional_residuals": (numbered(6, 4, 2, 2), numbered(6, 8, 1, 1)),
        "encoder_attention_mask": numbered(6, 3),
        "img_shapes": [[(1, 2, 2)]] * 3 + [[(1, 4, 4)]] * 3,
        "return_dict": False,
        "cross_attention_kwargs": None,
    }
    for chosen in ([3, 4, 5], [0, 2, 3, 4, 5]):
        found = take_rows(arguments, chosen, 6)
        parts = [
            found["sample"],
            found["encoder_hidden_states"],
            *found["added_cond_kwargs"].values(),
            *found["down_block_additional_residuals"],
            found["encoder_attention_mask"],
        ]
        for part in parts:
            tensor = part[0] if isinstance(part, list) else part
            assert tensor.flatten(1)[:, 0].tolist() == chosen
        assert found["img_shapes"] == [arguments["img_shapes"][row] for row in chosen]
        assert found["timestep"] is arguments["timestep"]
        assert (found["return_dict"], found["cross_attention_kwargs"]) == (False, None)


def test_consecutive_rows_are_a_view() -> None:
    sample = numbered(6, 4)
    assert take_rows({"sample": sample}, [3, 4, 5], 6)["sample"].data_ptr() == sample[3:].data_ptr()


def test_tables_of_positions_stay_whole_even_when_they_have_as_many_rows() -> None:
    arguments = {
        "hidden_states": numbered(4, 4, 8),
        "img_ids": numbered(4, 3),
        "txt_ids": numbered(4, 3),
        "image_rotary_emb": (numbered(4, 2),) * 2,
    }
    found = take_rows(arguments, [1], 4)
    assert found["hidden_states"].shape[0] == 1
    assert (found["img_ids"].shape[0], found["txt_ids"].shape[0], found["image_rotary_emb"][0].shape[0]) == (4, 4, 4)


def test_a_prediction_is_found_and_replaced_in_whatever_a_denoiser_returns() -> None:
    old, new = torch.zeros(2, 3), torch.ones(2, 3)
    for output in (old, (old, "more"), UNet2DConditionOutput(sample=old)):
        assert prediction_of(output) is old
        replaced = with_prediction(output, new)
        assert type(replaced) is type(output)
        assert prediction_of(replaced) is new
    assert with_prediction((old, "more"), new)[1] == "more"
