from __future__ import annotations

import pytest

import graftwork as gw
from graftwork import ConfigError, config
from graftwork.registry import installed

NAMES = (
    "karate",
    "les-miserables",
    "davis-women",
    "stochastic-block-model",
    "graphon",
    "academic-network",
    "pyg-dataset",
    "edge-list",
)


@pytest.mark.parametrize("name", NAMES)
def test_every_component_is_registered_and_its_example_fits_its_parameters(name):
    one = installed().find("dataset", name)
    values, invalid = config.validate(one.load(), one.component.example)
    assert not invalid
    assert set(values) == set(one.component.example)
    assert all(parameter.description for parameter in config.parameters(one.load()).values())


@pytest.mark.parametrize(
    ("name", "parameters", "place"),
    [
        ("karate", {"labels": "faction"}, "labels: "),
        ("les-miserables", {"features": "onehot"}, "features: "),
        ("davis-women", {"val_fraction": 0}, "val_fraction: "),
        ("stochastic-block-model", {"sizes": [10, 0]}, "sizes.1: "),
        ("stochastic-block-model", {"probabilities": [[0.5, 2]]}, "probabilities.0.1: "),
        ("stochastic-block-model", {"p_in": 1.1}, "p_in: "),
        ("graphon", {"graphons": ["xy"]}, "graphons.0: "),
        ("graphon", {"density": 0}, "density: "),
        ("graphon", {"steps": {"a": [[1.5]]}}, "steps.a.0.0: "),
        ("academic-network", {"areas": 1}, "areas: "),
        ("academic-network", {"target": "venue"}, "target: "),
        ("pyg-dataset", {"name": "DBLP"}, 'parameter "root" is required'),
        ("pyg-dataset", {"root": "x", "name": "DBLP", "settings": {"transform": [1]}}, "settings.transform"),
        ("edge-list", {"edges": "x.csv", "max_edges": 0}, "max_edges: "),
    ],
)
def test_configuration_refuses_what_is_out_of_range(name, parameters, place):
    with pytest.raises(ConfigError, match=place):
        gw.dataset(name, **parameters)


def test_a_mistake_that_only_the_data_can_tell_names_the_component():
    with pytest.raises(ConfigError, match=r"stochastic-block-model.*train_per_class 100 leaves class 0"):
        gw.dataset("stochastic-block-model", train_per_class=100)
