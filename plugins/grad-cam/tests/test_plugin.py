"""The distribution as users meet it: names, parameters, pictures, a pipeline."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
import torch

import graftwork as gw
from graftwork.errors import ConfigError, PipelineError
from graftwork.registry import installed
from graftwork_grad_cam.figures import Cell, as_picture, overlay, sheet, signed_picture, truncated
from graftwork_grad_cam.grad_cam import GradCAM

NAMES = (
    "grad-cam",
    "guided-backprop",
    "guided-grad-cam",
    "cam",
    "neuron-importance",
    "saliency-localization",
    "pointing-game",
    "occlusion-faithfulness",
    "box-contrast",
)


@pytest.mark.parametrize("name", NAMES)
def test_every_component_builds_from_its_defaults_and_describes_its_parameters(name):
    from graftwork import config

    component = installed().find("evaluator", name)
    gw.evaluator(name)
    undescribed = [key for key, parameter in config.parameters(component.load()).items() if not parameter.description]
    assert not undescribed
    assert config.json_schema(component.load())["properties"]


def test_declaring_the_components_imports_no_torch():
    code = "import sys, graftwork_grad_cam.plugin as p; list(p.graftwork_evaluators()); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"target": "predict"}, r'did you mean "predicted"'),
        ({"target": {"name": "captoin"}}, r'no target "captoin" \(did you mean "caption"\?\)'),
        ({"limit": 0}, "greater than or equal to 1"),
        ({"overlay": 1.5}, "less than or equal to 1"),
        ({"normalize": "softmax"}, "'none', 'max' or 'minmax'"),
        ({"colormap": "grayscale"}, 'matplotlib has no colour map "grayscale"'),
    ],
)
def test_bad_parameters_are_refused_before_anything_runs(parameters, message):
    with pytest.raises(ConfigError, match=message):
        gw.evaluator("grad-cam", **parameters)


def test_a_report_has_pictures_a_table_and_metrics(colours, scenes):
    report = GradCAM(limit=4).evaluate(colours, scenes)
    assert set(report.metrics) == {"grad-cam-empty-maps", "grad-cam-area"}
    assert report.metrics["grad-cam-area"] == pytest.approx(100 / 1024)
    table = report.tables["maps"]
    assert len(table.rows) == 4
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert table.rows[0][1] == table.rows[0][2] in scenes.info.classes
    assert len(report.figures["maps"].figure.axes) == 2 * 4 + 1
    report.figures["maps"].figure.savefig("/dev/null", format="png", dpi=40)


@pytest.mark.parametrize("name", ["guided-backprop", "guided-grad-cam", "cam"])
def test_the_other_maps_have_pictures_too(colours, scenes, name):
    report = gw.evaluator(name, limit=2).evaluate(colours, scenes)
    assert f"{name}-area" in report.metrics
    assert "maps" in report.figures


def test_an_empty_map_says_so_and_another_class_than_the_predicted_one_is_named(colours, scenes):
    report = GradCAM(limit=2, target={"name": "class", "each": [0, 1, 2]}).evaluate(colours, scenes)
    notes = {axis.get_xlabel() for axis in report.figures["maps"].figure.axes}
    assert {"for red", "for green", "for blue"} & notes
    assert any(note.endswith("no evidence found") for note in notes)


def test_labels_are_asked_for_when_a_pipeline_is_assembled():
    keys = {target: GradCAM(target=target).keys for target in ("label", "predicted")}
    assert keys == {"label": ("inputs", "label"), "predicted": ("inputs",)}
    document = {
        "stages": {
            "look": {
                "dataset": {"use": "shifted-moons"},
                "model": {"use": "small-cnn"},
                "evaluate": [{"use": "grad-cam", "split": "nowhere/test"}],
            }
        }
    }
    pytest.importorskip("graftwork_testbed")
    with pytest.raises(PipelineError, match='split is "nowhere/test", which the dataset lacks'):
        gw.Pipeline.from_dict(document).assemble()


def test_the_recipe_assembles():
    pytest.importorskip("graftwork_testbed")
    plan = gw.Pipeline.from_yaml(str(files("graftwork_grad_cam") / "recipes" / "grad-cam.yaml")).assemble()
    assert plan.claim is not None


# -- pictures ----------------------------------------------------------------------------------------------------------------------


def test_small_images_are_enlarged_without_blur():
    image = torch.rand(3, 8, 8)
    picture = as_picture(image)
    assert picture.shape == (192, 192, 3)
    np.testing.assert_allclose(picture[12::24, 12::24], image.permute(1, 2, 0).numpy())
    assert len(np.unique(picture[:24, :24].reshape(-1, 3), axis=0)) == 1


def test_grey_and_normalised_images_become_pictures():
    assert as_picture(torch.rand(1, 8, 8)).shape == (192, 192, 3)
    shifted = as_picture(torch.randn(3, 8, 8))
    assert shifted.min() == 0
    assert shifted.max() == 1


def test_an_overlay_is_half_image_and_half_jet_from_blue_to_red():
    saliency = torch.zeros(8, 8)
    saliency[0, 0] = 3.0
    picture = overlay(torch.zeros(3, 8, 8), saliency)
    np.testing.assert_allclose(picture[0, 0], [0.25, 0, 0], atol=0.01)  # half of jet's darkest red
    np.testing.assert_allclose(picture[-1, -1], [0, 0, 0.25], atol=0.01)  # half of its darkest blue
    np.testing.assert_allclose(overlay(torch.ones(3, 8, 8), saliency, 1.0), 1)


def test_a_signed_map_is_grey_where_it_is_zero():
    signed = torch.zeros(3, 4, 4)
    signed[0, 0, 0], signed[0, 3, 3] = 1.0, -1.0
    picture = signed_picture(signed)
    assert picture[0, 0, 0] > 0.9
    assert picture[-1, -1, 0] < 0.1
    np.testing.assert_allclose(picture[100, 100], 0.5)
    np.testing.assert_allclose(signed_picture(torch.zeros(3, 4, 4)), 0.5)


def test_a_sheet_holds_every_cell_in_rows():
    cells = [Cell([as_picture(torch.rand(3, 8, 12))] * 2, str(index)) for index in range(5)]
    figure, axes = sheet(cells, columns=2, title="five")
    assert len(axes) == 5
    assert all(len(panels) == 2 for panels in axes)
    figure.draw_without_rendering()
    heights = [round(panels[0].get_position().y0, 3) for panels in axes]
    assert heights[0] == heights[1] > heights[2] == heights[3] > heights[4]


def test_long_names_are_cut():
    assert truncated("short") == "short"
    assert truncated("a very long name of a class", 10) == "a very lo…"
