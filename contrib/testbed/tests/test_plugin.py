from __future__ import annotations

import subprocess
import sys

import pytest

import graftwork as gw
from graftwork import ConfigError

NAMES = (
    "digits",
    "digit-domains",
    "photos",
    "textures",
    "medical-patches",
    "faces",
    "shifted-moons",
    "diabetes",
    "template-text",
    "karate",
)


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_is_registered_and_builds_from_its_defaults(name):
    data = gw.dataset(name)
    assert {split.split("/")[-1] for split in data} == {"train", "val", "test"}
    assert all(len(samples) for samples in data.values())
    assert data.info.description


def test_declaring_the_components_imports_no_torch():
    code = "import sys, graftwork_testbed.plugin as p; list(p.graftwork_datasets()); print({'torch', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "parameters", "place"),
    [
        ("digits", {"size": 4}, "size: "),
        ("digits", {"classes": [0, 11]}, "classes.1: "),
        ("digit-domains", {"domains": ["sketch"]}, "domains.0: "),
        ("photos", {"shrink": 0}, "shrink: "),
        ("textures", {"crops": 0}, "crops: "),
        ("shifted-moons", {"noise": 2}, "noise: "),
        ("diabetes", {"val_fraction": 1.5}, "val_fraction: "),
    ],
)
def test_configuration_refuses_what_is_out_of_range(name, parameters, place):
    with pytest.raises(ConfigError, match=place):
        gw.dataset(name, **parameters)
