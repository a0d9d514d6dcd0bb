"""Merging folders on disk: the same numbers as in memory, every tensor accounted for, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import graftwork as gw
from graftwork_fisher_merging import Checkpoint, diagonal_fisher, merge_checkpoints, merge_models, write_safetensors
from graftwork_fisher_merging.checkpoints import Stored

transformers = pytest.importorskip("transformers", reason="needs transformers for its classes")

SHAPE = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def classifier(seed: int, labels: int = 3):
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**SHAPE, max_position_embeddings=12, num_labels=labels)
    ).eval()


def tokens(seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 30, (6, 8), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def pair(tmp_path):
    """Two classifiers of different tasks, saved, with their Fishers."""
    models = [classifier(0), classifier(1, labels=5)]
    folders = [tmp_path / name for name in ("one", "other")]
    for model, folder in zip(models, folders, strict=True):
        model.save_pretrained(folder)
    fishers = [diagonal_fisher(model, [tokens()]).artifact(model) for model in models]
    return models, folders, fishers


@pytest.mark.parametrize("with_fishers", [True, False])
def test_a_folder_merged_on_disk_is_the_model_merged_in_memory(pair, tmp_path, with_fishers) -> None:
    models, folders, fishers = pair
    given = fishers if with_fishers else None
    found = merge_checkpoints(folders, tmp_path / "out", given, [0.3, 0.7])
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    expected = merge_models(models, given, [0.3, 0.7])
    for (name, a), b in zip(loaded.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert loaded(**tokens()).logits.shape == (6, 3)
    assert set(found.kept) == {"classifier.weight", "classifier.bias"}
    assert set(found.merged) | set(found.kept) == set(Checkpoint(folders[0]))


def test_shards_are_read_through_their_index(pair, tmp_path) -> None:
    models, folders, fishers = pair
    models[1].save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert not (tmp_path / "shards/model.safetensors").exists()
    merge_checkpoints([folders[0], tmp_path / "shards"], tmp_path / "out", fishers)
    merge_checkpoints(folders, tmp_path / "whole", fishers)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_fishers_of_graftworks_loaders_are_found_under_their_prefix(pair, tmp_path) -> None:
    _, folders, fishers = pair
    wrapped = [gw.Artifact(one.type, {f"model.{name}": t for name, t in one.tensors.items()}) for one in fishers]
    merge_checkpoints(folders, tmp_path / "out", wrapped, prefix="model.")
    merge_checkpoints(folders, tmp_path / "plain", fishers)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "plain/model.safetensors").read_bytes()
    with pytest.raises(gw.DataError, match='the Fishers cover none of the tensors to merge; do their names begin with the prefix ""'):
        merge_checkpoints(folders, tmp_path / "wrong", wrapped)


def test_fishers_of_other_weights_are_refused(pair, tmp_path) -> None:
    _, folders, fishers = pair
    with pytest.raises(gw.ArtifactError, match=r'the Fisher of model 0 was made from other weights than .*: "bert.* differs'):
        merge_checkpoints(folders, tmp_path / "out", fishers[::-1])
    assert not (tmp_path / "out").exists()


def test_half_precision_stays_half_precision(pair, tmp_path) -> None:
    models, folders, _ = pair
    for model, folder in zip(models, folders, strict=True):
        model.to(torch.bfloat16).save_pretrained(folder)
    merge_checkpoints(folders, tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    assert {one.dtype for one in merged.values()} == {torch.bfloat16}
    name = "bert.encoder.layer.0.output.dense.weight"
    a, b = (load_file(folder / "model.safetensors")[name].float() for folder in folders)
    assert torch.equal(merged[name], ((a + b) / 2).bfloat16())


def test_of_a_causal_language_model_everything_is_merged_and_ties_stay(tmp_path) -> None:
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=8))
        folders.append(tmp_path / str(seed))
        model.save_pretrained(folders[-1])
    found = merge_checkpoints(folders, tmp_path / "out")
    assert not found.kept
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    a, b = (load_file(folder / "model.safetensors")["transformer.wte.weight"] for folder in folders)
    torch.testing.assert_close(loaded.lm_head.weight.detach(), (a + b) / 2)


def test_batch_norms_statistics_are_the_targets(tmp_path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=3)
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = transformers.ResNetForImageClassification(config).train()
        model(torch.randn(4, 3, 32, 32))
        folders.append(tmp_path / str(seed))
        model.save_pretrained(folders[-1])
    found = merge_checkpoints(folders, tmp_path / "out")
    merged, target = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", folders[0]))
    statistics = [name for name in target if "running_" in name or "num_batches" in name]
    assert statistics
    assert set(statistics) < set(found.kept)
    assert all(torch.equal(merged[name], target[name]) for name in statistics)


def test_a_file_written_tensor_by_tensor_is_what_safetensors_writes(tmp_path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(4).bfloat16(),
        "c": torch.arange(3),
        "d": torch.tensor([True, False, True]),
        "e": torch.randn(2, 0),
        "f": torch.tensor(1.5, dtype=torch.float16),
        "g": torch.randn(2).to(torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "theirs.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "theirs.safetensors").rename(tmp_path / "folder/model.safetensors")
    checkpoint = Checkpoint(tmp_path / "folder")
    write_safetensors(tmp_path / "ours.safetensors", checkpoint.specs, (checkpoint[name] for name in checkpoint))
    found = load_file(tmp_path / "ours.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].float(), tensor.float())
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(ValueError, match="a has 8 bytes where 12 were announced"):
        write_safetensors(tmp_path / "bad.safetensors", {"a": Stored("F32", (3,))}, iter([torch.zeros(2)]))
    assert not (tmp_path / "bad.safetensors").exists()


def test_folders_that_cannot_be_merged_are_refused(pair, tmp_path) -> None:
    _, folders, fishers = pair
    (tmp_path / "pickled").mkdir()
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "pickled/pytorch_model.bin")
    with pytest.raises(gw.GraftworkError, match=r"holds neither model.safetensors nor .*; checkpoints are read from safetensors alone"):
        merge_checkpoints([folders[0], tmp_path / "pickled"], tmp_path / "out")
    with pytest.raises(gw.GraftworkError, match="there are 2 models but 1 Fishers"):
        merge_checkpoints(folders, tmp_path / "out", fishers[:1])
    with pytest.raises(ValueError, match="there are 2 models but 3 coefficients"):
        merge_checkpoints(folders, tmp_path / "out", coefficients=[1, 1, 1])
    with pytest.raises(gw.GraftworkError, match="is not empty: a merged checkpoint needs a folder of its own"):
        merge_checkpoints(folders, folders[0])
    (folders[0] / "config.json").unlink()
    with pytest.raises(gw.DataError, match=r"has no config\.json that names a class of transformers: say what is merged with `mergeable`"):
        merge_checkpoints(folders, tmp_path / "out")
    assert merge_checkpoints(folders, tmp_path / "out", mergeable="^bert").merged


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))
    with pytest.raises(gw.GraftworkError, match="names a file outside of its folder"):
        Checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(gw.GraftworkError, match="is no index of shards"):
        Checkpoint(tmp_path)
