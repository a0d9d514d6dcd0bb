"""Datasets, artifacts, configuration, interfaces, guidance and run hooks, each by itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
import yaml
from pydantic import Field
from torch import nn

import graftwork as gw
from graftwork import config
from graftwork.document import Document, dump
from graftwork.interfaces import Backbone, classify, embed, missing_members
from graftwork.kinds.dataset import collate, to_device
from graftwork.kinds.evaluator import evaluating, split_batches

# -- datasets ------------------------------------------------------------------------------------------------------------------


def test_columns_come_out_as_samples_and_as_whole_batches() -> None:
    samples = gw.TensorSamples(image=torch.full((4, 3, 2, 2), 255, dtype=torch.uint8), label=torch.arange(4), text=list("abcd"))
    assert samples[1]["image"].dtype == torch.float32
    assert samples[1]["image"].max() == 1
    batch = samples.__getitems__([2, 0])
    assert batch["label"].tolist() == [2, 0]
    assert batch["text"] == ["c", "a"]
    assert torch.equal(batch["image"], collate([samples[2], samples[0]])["image"])
    assert samples.select(torch.tensor([3]))[0]["text"] == "d"


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(gw.DataError, match=r"differ in length: \{'a': 2, 'b': 3\}"):
        gw.TensorSamples(a=torch.zeros(2), b=torch.zeros(3))


def test_samples_that_differ_in_shape_stay_a_list() -> None:
    batch = collate([{"boxes": torch.zeros(n, 4), "label": n, "text": "x"} for n in (1, 2)])
    assert [tuple(boxes.shape) for boxes in batch["boxes"]] == [(1, 4), (2, 4)]
    assert batch["label"].tolist() == [1, 2]


def test_an_unknown_split_names_the_nearest() -> None:
    data = gw.Dataset({"train": gw.TensorSamples(label=torch.zeros(1))})
    with pytest.raises(gw.DataError, match=r'no split "trian" \(did you mean "train"\?\); the dataset has train'):
        data["trian"]


def test_measuring_leaves_the_stream_that_training_draws_from() -> None:
    data = gw.Dataset({"train": gw.TensorSamples(features=torch.zeros(8, 2))})
    model = nn.Linear(2, 1)
    before = torch.get_rng_state()
    assert len(list(split_batches(data, "train", model, batch_size=4))) == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fingerprint_changes_with_the_data() -> None:
    def of(value: float) -> str:
        return gw.Dataset({"train": gw.TensorSamples(features=torch.full((20, 2), value))}).fingerprint()

    assert of(1.0) == of(1.0) != of(2.0)


def test_a_hugging_face_dataset_dict_fits_as_it_is() -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"features": [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], "label": [0, 1, 0]}).with_format("torch")
    data = gw.Dataset(datasets.DatasetDict({"train": table}))
    (batch,) = split_batches(data, "train", nn.Linear(2, 1))
    assert batch["features"].shape == (3, 2)
    assert batch["label"].tolist() == [0, 1, 0]


# -- artifacts -----------------------------------------------------------------------------------------------------------------


def test_an_artifact_comes_back_as_it_was(tmp_path: Path) -> None:
    made = gw.Artifact("diagonal-fisher", {"a": torch.arange(3.0), "b": torch.ones(2, 2)}, {"samples": 5}, model="m" * 64)
    made.save(tmp_path)
    found = gw.Artifact.load(tmp_path)
    assert (found.type, found.data, found.model) == (made.type, made.data, made.model)
    assert set(found.tensors) == {"a", "b"}
    assert torch.equal(found.tensors["a"], torch.arange(3.0))


def test_an_artifact_of_another_type_model_or_layout_is_refused() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    made = gw.Artifact("fisher", version=2, model=gw.fingerprint(one))
    with pytest.raises(gw.ArtifactError, match='type "coefficients" is expected; this one is "fisher"'):
        made.check("coefficients")
    with pytest.raises(gw.ArtifactError, match="is of layout 2; this version reads up to 1"):
        made.check("fisher")
    assert made.check("fisher", version=2, model=one) is made
    with pytest.raises(
        gw.ArtifactError, match=f"made from model {gw.fingerprint(one)[:12]} and cannot be used with model {gw.fingerprint(other)[:12]}"
    ):
        made.check("fisher", version=2, model=other)


def test_a_damaged_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(gw.ArtifactError, match="holds no artifact"):
        gw.Artifact.load(tmp_path)
    gw.Artifact("x", {"a": torch.ones(100)}).save(tmp_path)
    file = tmp_path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(gw.ArtifactError, match="cannot be read as safetensors"):
        gw.Artifact.load(tmp_path)


def test_a_fingerprint_sees_names_shapes_types_and_values() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(2, 2)
    first = gw.fingerprint(layer)
    assert gw.fingerprint(layer) == first
    assert gw.fingerprint(layer.double()) != first
    with torch.no_grad():
        layer.float().weight[0, 0] += 1
    assert gw.fingerprint(layer) != first


# -- configuration -------------------------------------------------------------------------------------------------------------


class Shade(Enum):
    LIGHT = "light"


def factory(
    size: Annotated[int, Field(ge=1, le=9, description="how big")],
    mode: Literal["a", "b"] = "a",
    teacher: Backbone | None = None,
    others: list[Backbone] | None = None,
    split: gw.Split = "test",
    shade: Shade = Shade.LIGHT,
    call: Callable[[int], int] | None = None,
    schema: float = 1.0,
) -> dict:
    """Make something.

    Args:
        size: described in its Field.
        mode: one of two,
            told over two lines.
        schema: a name that pydantic's own models use.
    """
    return {"size": size, "mode": mode, "shade": shade, "schema": schema}


def test_parameters_are_read_off_the_signature() -> None:
    found = config.parameters(factory)
    assert found["size"].required
    assert found["size"].description == "how big"
    assert found["mode"].description == "one of two, told over two lines."
    assert (found["teacher"].reference, found["teacher"].interface) == ("model", Backbone)
    assert found["others"].reference == "model"
    assert found["split"].split
    assert found["split"].reference is None


def test_values_are_converted_and_defaults_left_to_the_factory() -> None:
    values, invalid = config.validate(factory, {"size": "3", "shade": "light", "schema": 2})
    assert not invalid
    assert values == {"size": 3, "shade": Shade.LIGHT, "schema": 2.0}
    assert config.build(factory, values, "it")["size"] == 3


def test_everything_wrong_is_told_with_its_parameter() -> None:
    _, invalid = config.validate(factory, {"size": 10, "mode": "c", "teacher": 5, "sise": 1})
    told = {".".join(map(str, one.path)): one.message for one in invalid}
    assert told["size"] == "input should be less than or equal to 9; found 10"
    assert told["mode"].startswith("input should be 'a' or 'b'")
    assert "a reference is a name, or a mapping with `use` or `from` (`load` for an artifact); found 5" in told["teacher"]
    assert told["sise"].startswith('unknown parameter "sise" (did you mean "size"?)')


def test_the_schema_of_a_signature_round_trips_through_json() -> None:
    schema = json.loads(json.dumps(config.json_schema(factory)))
    assert schema["required"] == ["size"]
    assert schema["properties"]["size"]["maximum"] == 9
    assert schema["properties"]["mode"]["enum"] == ["a", "b"]
    assert {"x-reference": "model"} in schema["properties"]["teacher"]["anyOf"]


def test_a_constructors_refusal_names_the_component() -> None:
    def refusing(x: int = 1) -> None:
        raise ValueError("x is odd")

    with pytest.raises(gw.ConfigError, match='model "m" cannot be built: x is odd'):
        config.build(refusing, {}, 'model "m"')


# -- interfaces ----------------------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_features = 3
        self.norm = nn.BatchNorm1d(3)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x if pre_logits else -x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def test_missing_members_are_named_for_instances_and_methods_for_classes() -> None:
    assert missing_members(Tiny(), Backbone) == []
    assert missing_members(Tiny, Backbone) == []
    assert missing_members(nn.Linear(1, 1), Backbone) == ["forward_features", "forward_head", "num_features"]
    assert missing_members(nn.Linear, Backbone) == ["forward_features", "forward_head"]


def test_logits_and_features_of_a_backbone() -> None:
    model, image = Tiny().eval(), torch.randn(4, 3)
    assert torch.equal(classify(model, {"image": image}), -embed(model, {"image": image}))
    with pytest.raises(gw.DataError, match="Tiny takes image; the batch has features and lacks image"):
        classify(model, {"features": image})
    with pytest.raises(gw.InterfaceError, match="Linear gives no features"):
        embed(nn.Linear(3, 3), {"image": image})


def test_evaluating_restores_each_modules_own_mode_also_after_an_exception() -> None:
    model = nn.Sequential(Tiny(), Tiny())
    model[1].eval()

    def inside() -> None:
        with evaluating(model):
            assert not model[0].training
            assert not torch.is_grad_enabled()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        inside()
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert torch.is_grad_enabled()


# -- guidance and sampling -----------------------------------------------------------------------------------------------------

GUIDANCE = '''
from contextlib import contextmanager
from types import SimpleNamespace

import torch
import yaml
from graftwork import Component, Guidance, hookimpl
from torch import nn


class Painter(nn.Module):
    """A pipeline that paints noise."""

    scheduler = None

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.shift = 0.0

    def forward(self, prompt, output_type="pt"):
        return SimpleNamespace(images=torch.rand(len(prompt), 3, 8, 8) * self.gain.detach() * 0.5 + self.shift)


class Brighter(Guidance):
    """Brighten."""

    def __init__(self, amount: float = 0.25):
        self.amount = amount

    @contextmanager
    def attach(self, pipeline):
        pipeline.shift = self.amount
        try:
            yield
        finally:
            pipeline.shift = 0.0


@hookimpl
def graftwork_models():
    yield Component("painter", "graftwork_paint:Painter")


@hookimpl
def graftwork_guidance():
    yield Component("brighter", "graftwork_paint:Brighter")
'''


def test_a_stage_samples_under_guidance_and_keeps_the_pictures(install, tmp_path: Path) -> None:
    install("graftwork-paint", GUIDANCE)
    stage = {"model": "painter", "sample": {"guidance": {"use": "brighter", "amount": 0.5}, "inputs": {"prompt": ["a", "b"]}}}
    result = gw.Pipeline.from_dict({"stages": {"s": stage}}).run(tmp_path / "run", device="cpu")
    folder = tmp_path / "run/stages/s/samples"
    assert len(list(folder.glob("*.png"))) == 2
    assert json.loads((folder / "samples.json").read_text())["prompts"] == ["a", "b"]
    assert result.models["s"].shift == 0.0
    assert (tmp_path / "run/report.html").read_text().count("<img") == 2


# -- run hooks -----------------------------------------------------------------------------------------------------------------

TRACKER = """
from graftwork import hookimpl

SEEN = []

@hookimpl
def graftwork_run_started(run):
    SEEN.append(("started", run.name))

@hookimpl
def graftwork_metrics_logged(run, stage, step, metrics):
    SEEN.append(("logged", stage, step, sorted(metrics)))

@hookimpl
def graftwork_run_finished(run, status):
    SEEN.append(("finished", status))
"""


def test_trackers_are_told_of_start_metrics_and_end(install, toy: Path) -> None:
    install("graftwork-tracker", TRACKER)
    stage = {"dataset": "blobs", "model": "net", "objective": "fit", "train": {"steps": 2}, "evaluate": ["hits"]}
    gw.Pipeline.from_dict({"stages": {"s": stage}}).run(device="cpu")
    import graftwork_tracker

    assert graftwork_tracker.SEEN == [
        ("started", "pipeline"),
        ("logged", "s", 2, ["loss", "lr", "plain"]),
        ("logged", "s", -1, ["hits"]),
        ("finished", "finished"),
    ]


def test_a_tracker_that_fails_warns_and_stops_nothing(install, toy: Path) -> None:
    install("graftwork-tracker", TRACKER.replace('SEEN.append(("started", run.name))', "1 / 0"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gw.Pipeline.from_dict({"stages": {"s": {"dataset": "blobs", "model": "net", "evaluate": ["hits"]}}}).run(device="cpu")
    assert any("a tracker failed in graftwork_run_started: ZeroDivisionError" in str(one.message) for one in caught)


# -- documents -----------------------------------------------------------------------------------------------------------------


def test_scalars_are_those_of_yaml_1_2_and_survive_being_written() -> None:
    text = "{on: 1e-3, off: yes, no: true, a: 'true', b: 1_000, c: null, d: 3e4}"
    data = Document.parse(text).data
    assert data == {"on": 1e-3, "off": "yes", "no": True, "a": "true", "b": 1000, "c": None, "d": 3e4}
    assert Document.parse(dump(data)).data == data
    assert yaml.safe_load(dump(data)) == data


class Chain:
    """A graph in PyG's manner: it moves as a whole, and prints the shapes of its tensors alone."""

    def __init__(self, edges: torch.Tensor):
        self.edges = edges

    def to(self, device: torch.device) -> Chain:
        return Chain(self.edges.to(device))

    def to_dict(self) -> dict[str, torch.Tensor]:
        return {"edges": self.edges}

    def __repr__(self) -> str:
        return f"Chain(edges={list(self.edges.shape)})"


def test_a_graph_moves_with_its_batch() -> None:
    moved = to_device({"graph": Chain(torch.zeros(2, 3)), "name": "a", "parts": [torch.zeros(1), "b"]}, torch.device("meta"))
    assert moved["graph"].edges.device.type == moved["parts"][0].device.type == "meta"
    assert (moved["name"], moved["parts"][1]) == ("a", "b")


def test_the_fingerprint_of_a_graph_covers_what_it_holds() -> None:
    def of(edges: torch.Tensor) -> str:
        return gw.Dataset({"train": [{"graph": Chain(edges)}]}).fingerprint()

    assert of(torch.zeros(2, 3)) == of(torch.zeros(2, 3))
    assert of(torch.zeros(2, 3)) != of(torch.ones(2, 3))
