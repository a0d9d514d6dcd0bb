"""What is installed, what is broken, and what the messages say: a fault in one plugin never touches another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from graftwork import PluginError, UnknownComponentError, registry
from graftwork.registry import Registry

GOOD = """
from graftwork import Component, hookimpl

@hookimpl
def graftwork_models():
    yield Component("good-net", "json:loads", "A fine one")
"""
BROKEN = {
    "raises": ("raise RuntimeError('no such luck')", "importing graftwork_raises raised RuntimeError: no such luck"),
    "exits": ("import sys; sys.exit(3)", "importing graftwork_exits raised SystemExit: 3"),
    "asserts": ("assert False, 'never'", "importing graftwork_asserts raised AssertionError: never"),
    "misspelt": (GOOD.replace("graftwork_models", "graftwork_modles"), '"graftwork_modles" (did you mean "graftwork_models"?)'),
    "generator": (GOOD + "    raise KeyError('half way')", "registering raised KeyError: 'half way'"),
    "malformed": (GOOD.replace("good-net", "Good Net"), "a name is lower-case words joined by hyphens"),
    "nothing": (GOOD.replace('Component("good-net", "json:loads", "A fine one")', "42"), "gives 42, which is no Component"),
}

Graft = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_set_aside_with_its_reason_and_others_work(install, name: str) -> None:
    source, reason = BROKEN[name]
    install("graftwork-good", GOOD)
    install(f"graftwork-{name}", source)
    found = Registry()
    failure = next(one for one in found.failures if one.distribution == f"graftwork-{name}")
    assert reason in failure.reason
    assert found.find("model", "good-net").distribution == "graftwork-good"
    assert all(one.distribution != f"graftwork-{name}" for one in found)


def test_a_plugin_for_another_core_version_is_set_aside_unimported(install) -> None:
    install("graftwork-old", "raise RuntimeError('imported')", requires="graftwork>=7")
    reason = next(one.reason for one in Registry().failures if one.distribution == "graftwork-old")
    assert "it needs graftwork>=7; this is graftwork 0.1" in reason


def test_a_requirement_of_a_plugin_on_another_graftwork_distribution_is_not_one_on_the_core(install) -> None:
    install("graftwork-good", GOOD, requires="graftwork-other>=7")
    assert Registry().find("model", "good-net")


def test_two_plugins_that_register_one_name_are_both_named_and_can_be_picked(install) -> None:
    install("graftwork-good", GOOD)
    install("graftwork-also", GOOD + '    yield Component("mine", "json:dumps")')
    found = Registry()
    assert {one.distribution for one in found.failures if "good-net" in one.reason} == {"graftwork-good", "graftwork-also"}
    with pytest.raises(UnknownComponentError, match='"graftwork-also/good-net" or "graftwork-good/good-net"'):
        found.find("model", "good-net")
    assert found.find("model", "graftwork-also/good-net").distribution == "graftwork-also"
    assert found.find("model", "also/good-net").distribution == "graftwork-also"
    assert found.find("model", "mine")


def test_an_unknown_name_answers_with_the_nearest(install) -> None:
    install("graftwork-good", GOOD)
    with pytest.raises(UnknownComponentError, match=r'no model "goodnet" is installed \(did you mean "good-net"\?\)'):
        Registry().find("model", "goodnet")


def test_a_name_of_another_kind_says_which(install) -> None:
    install("graftwork-good", GOOD)
    with pytest.raises(UnknownComponentError, match='"good-net" is a model'):
        Registry().find("objective", "good-net")


def test_a_known_method_that_is_missing_names_its_distribution(install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_catalogue", lambda: {"objective": {"far-away": "graftwork-far"}})
    with pytest.raises(UnknownComponentError, match="graftwork-far provides it: pip install graftwork-far"):
        Registry().find("objective", "far-away")
    install("graftwork-far", "raise ImportError('no module named scipy')")
    with pytest.raises(UnknownComponentError, match="graftwork-far provides it but was set aside: importing graftwork_far raised"):
        Registry().find("objective", "far-away")


def test_a_target_that_is_not_there_names_distribution_and_target(install) -> None:
    install("graftwork-good", GOOD.replace("json:loads", "json:lods"))
    with pytest.raises(PluginError, match=r'model "good-net" of graftwork-good cannot be loaded from json:lods: AttributeError'):
        Registry().find("model", "good-net").load()


def test_doctor_names_distribution_what_and_why_and_exits_1_while_list_warns_and_exits_0(install, graft: Graft) -> None:
    install("graftwork-good", GOOD)
    for name in ("raises", "misspelt"):
        install(f"graftwork-{name}", BROKEN[name][0])
    install("graftwork-old", GOOD, requires="graftwork<0.1")
    install("graftwork-taken", GOOD)
    doctor = graft("doctor")
    assert doctor.returncode == 1
    for text in (
        "graftwork-raises",
        "no such luck",
        "graftwork-misspelt",
        "graftwork_modles",
        "it needs graftwork<0.1",
        "graftwork-taken",
        "good-net",
    ):
        assert text in doctor.stdout
    listed = graft("list")
    assert listed.returncode == 0
    assert "good-net" in listed.stdout
    assert len(listed.stderr.strip().splitlines()) == 1
    assert "graft doctor" in listed.stderr
    assert "Traceback" not in doctor.stderr + listed.stderr
    assert graft("doctor", "--json").returncode == 1


def test_doctor_finds_a_target_that_cannot_be_imported(install, graft: Graft) -> None:
    install("graftwork-good", GOOD.replace("json:loads", "nowhere:thing"))
    doctor = graft("doctor")
    assert doctor.returncode == 1
    assert "No module named 'nowhere'" in doctor.stdout


def test_list_imports_no_torch(install) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from graftwork.cli.commands import app; r = CliRunner().invoke(app, ['list']); "
    )
    code += "assert r.exit_code == 0, r.output; print([m for m in ('torch', 'transformers', 'diffusers') if m in sys.modules])"
    install("graftwork-good", GOOD)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_list_json_gives_the_documented_objects(install, graft: Graft) -> None:
    install("graftwork-good", GOOD)
    objects = json.loads(graft("list", "model", "--json").stdout)
    mine = next(one for one in objects if one["name"] == "good-net")
    assert mine == {"kind": "model", "name": "good-net", "distribution": "graftwork-good", "summary": "A fine one", "paper": None}
