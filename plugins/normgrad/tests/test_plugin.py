"""The distribution as users meet it: names, parameters, pictures, pipelines, and networks of transformers."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import pytest
import torch

import graftwork as gw
import graftwork_normgrad
from graftwork import config
from graftwork.errors import ConfigError
from graftwork.registry import installed
from graftwork_grad_cam.evidence import prepared
from graftwork_grad_cam.testing import TINY_SWIN, save_tiny_transformer
from graftwork_normgrad import (
    ClassSensitivity,
    CombinedSaliency,
    MetaSaliency,
    ModelRandomization,
    NormGrad,
    combination_layers,
    extract_aggregate,
    normgrad,
    saliency_grid,
)
from graftwork_normgrad.labels import short_names

NAMES = (
    "extract-aggregate",
    "normgrad",
    "combined-saliency",
    "meta-saliency",
    "layer-weights",
    "class-sensitivity",
    "saliency-correlation",
    "model-randomization",
    "pointing-grid",
)


@pytest.mark.parametrize("name", NAMES)
def test_every_component_builds_from_its_defaults_and_describes_its_parameters(name):
    gw.evaluator(name)
    parameters = config.parameters(installed().find("evaluator", name).load())
    assert parameters
    assert all(parameter.description for parameter in parameters.values())


def test_declaring_the_components_imports_no_torch():
    code = (
        "import sys, graftwork_normgrad, graftwork_normgrad.plugin as p; list(p.graftwork_evaluators()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_load_from_the_package():
    assert all(hasattr(graftwork_normgrad, name) for name in graftwork_normgrad.__all__)
    assert {"normgrad", "extract_aggregate", "meta_saliency", "combined_saliency"} <= set(dir(graftwork_normgrad))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("extract-aggregate", {"phase1": "conv5x5"}, "'bias', 'scaling', 'conv1x1', 'conv3x3', 'conv3x3-depthwise' or 'conv'"),
        ("extract-aggregate", {"phase2": "mean"}, "'sum', 'norm', 'filter-norm', 'max', 'abs-max' or 'none'"),
        ("normgrad", {"target": "predict"}, r'did you mean "predicted"'),
        ("normgrad", {"selective": True, "virtual_identity": False}, "selective NormGrad scales channels"),
        ("meta-saliency", {"lr": -1}, "greater than or equal to 0"),
        ("combined-saliency", {"table": {"a": 0.0, "b": 0.0}}, "layer weights are all zero"),
        ("combined-saliency", {"weights": "best"}, "'uniform', 'linear', 'accuracy', 'pointing-accuracy' or 'activation'"),
        ("normgrad", {"colormap": "grayscale"}, 'matplotlib has no colour map "grayscale"'),
    ],
)
def test_bad_parameters_are_refused_before_anything_runs(name, parameters, message):
    with pytest.raises(ConfigError, match=message):
        gw.evaluator(name, **parameters)


def test_a_report_has_pictures_a_table_metrics_and_the_grid(resnet, scenes):
    report = gw.evaluator("extract-aggregate", limit=2, layer=["layer3", "layer4"]).evaluate(resnet, scenes)
    assert set(report.metrics) == {"extract-aggregate-empty-maps", "extract-aggregate-area"}
    assert len(report.tables["maps"].rows) == 2
    grid = report.figures["grid"].figure
    assert [axis.get_title() for axis in grid.axes] == ["layer3", "layer4", "combined"]
    assert [label.get_text() for label in grid.axes[0].get_yticklabels()] == [
        name.replace("-", "\n") for name in graftwork_normgrad.GRID[0]
    ]
    grid.savefig("/dev/null", format="png", dpi=40)
    assert "grid" not in gw.evaluator("extract-aggregate", limit=1, gallery=False).evaluate(resnet, scenes).figures
    assert set(gw.evaluator("normgrad", limit=2).evaluate(resnet, scenes).figures) == {"maps"}


def test_the_recipe_assembles():
    pytest.importorskip("graftwork_testbed")
    plan = gw.Pipeline.from_yaml(str(files("graftwork_normgrad") / "recipes" / "normgrad.yaml")).assemble()
    assert plan.claim is not None


def test_a_pipeline_measures_layers_and_combines_by_what_was_found():
    pytest.importorskip("graftwork_testbed")
    document = {
        "stages": {
            "look": {
                "dataset": {"use": "digits", "size": 16},
                "model": {"use": "small-cnn", "grid": 1, "width": 4, "depth": 2},
                "evaluate": [{"use": "layer-weights", "limit": 40, "strategies": ["accuracy"]}],
            },
            "combine": {
                "dataset": {"from": "look"},
                "model": {"from": "look"},
                "evaluate": [
                    {"use": "combined-saliency", "weights": "accuracy", "measured": {"from": "look/layer-weights"}, "limit": 2},
                    {
                        "use": "saliency-correlation",
                        "saliencies": {"a": "normgrad", "b": {"use": "normgrad", "selective": True}},
                        "limit": 2,
                    },
                ],
            },
        }
    }
    result = gw.Pipeline.from_dict(document).run()
    assert result.metric("look/accuracy-best-layer") in (1, 2)
    assert result.metric("combine/combined-saliency-area") > 0
    assert -1 <= result.metric("combine/correlation-a-b") <= 1


# -- networks of transformers, saved and loaded again ------------------------------------------------------------------------------


VISION = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 16, "num_labels": 4}
ZOO = {
    "vit": ("ViTConfig", "ViTForImageClassification", {**VISION, "image_size": (64, 96)}),
    "shallow-vit": ("ViTConfig", "ViTForImageClassification", {**VISION, "image_size": (64, 96), "num_hidden_layers": 2}),
    "swin": TINY_SWIN,
    "resnet": (
        "ResNetConfig",
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 12, 16], "depths": [1, 1, 1], "layer_type": "basic", "num_labels": 4},
    ),
}


@pytest.fixture
def loaded(tmp_path):
    """loaded("vit"): a tiny model with random weights, saved and read back."""
    pytest.importorskip("transformers")
    return lambda name: gw.model(
        "transformers-image-classifier", name=str(save_tiny_transformer(tmp_path / name, *ZOO[name])), resize=False
    )


@pytest.mark.parametrize("name", ["vit", "swin", "resnet"])
def test_transformers_classifiers_have_maps_of_every_cell_at_their_own_layers(loaded, name):
    model, x = loaded(name), torch.rand(2, 3, 64, 96 if name == "vit" else 64)
    layers = combination_layers(model, *prepared(model, x, "predicted"))
    assert len(layers) == {"vit": 4, "swin": 3, "resnet": 3}[name], layers
    grid = saliency_grid(model, x, "predicted", layers)
    for cell, maps in grid.maps.items():
        for layer, each in maps.items():
            assert each.isfinite().all(), (cell, layer)
    assert all(each.amax() > 0 for each in grid.maps[graftwork_normgrad.CELLS["normgrad"]].values())
    found = normgrad(model, x, [1, 2])
    assert found.maps.shape == (2, 1, *x.shape[2:])
    assert found.maps.amax() > 0


def test_a_vits_patches_have_the_closed_form_and_windows_over_their_grid(loaded):
    model, x = loaded("vit"), torch.rand(1, 3, 64, 96)
    (layer,) = normgrad(model, x).raw
    assert normgrad(model, x).raw[layer].shape == (1, 1, 4, 6)
    closed, naive = (extract_aggregate(model, x, 1, layer, "conv3x3", "norm", naive=each).raw[layer] for each in (False, True))
    torch.testing.assert_close(closed, naive, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["shallow-vit", "resnet"])
def test_transformers_classifiers_take_steps_of_first_and_second_order(loaded, name):
    model, x = loaded(name), torch.rand(3, 3, 64, 96 if name == "shallow-vit" else 64)
    before = {key: each.clone() for key, each in model.state_dict().items()}
    for second_order in (False, True):
        meta = MetaSaliency(saliency=NormGrad(target="predicted"), lr=0.1, second_order=second_order)
        assert meta.explain(model, x).maps.isfinite().all()
    assert all(torch.equal(each, before[key]) for key, each in model.state_dict().items())
    combined = CombinedSaliency(saliency=MetaSaliency(saliency=NormGrad(target="predicted")))
    assert combined.explain(model, x).maps.amax() <= 1
    data = gw.Dataset({"test": [{"image": each, "label": 0} for each in x]})
    assert -1 <= ClassSensitivity(columns=1).evaluate(model, data).metrics["class-sensitivity"] <= 1
    report = ModelRandomization(saliency=NormGrad(target="predicted"), modules=None, limit=1, columns=1).evaluate(model, data)
    assert report.tables["modules"].rows[0][0].endswith(("classifier", "classifier.1"))


def test_names_in_pictures_are_short_and_still_told_apart():
    assert short_names(["m.encoder.stages.0", "m.encoder.stages.1"]) == ["stages.0", "stages.1"]
    assert short_names(["layer1", "layer2.0"]) == ["layer1", "layer2.0"]
    assert short_names(["a.b.c"], 4) == ["…b.c"]
    assert short_names([]) == []
