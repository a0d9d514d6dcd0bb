from __future__ import annotations

import inspect
import sys
import sysconfig
import textwrap
import typing

import pytest

from graftwork import DataError
from graftwork_testbed.text.docstrings import DESCRIPTIONS, MODULES, LibraryArea, docstring_text, docstrings_of

BEFORE = set(sys.modules)
DATA = docstring_text()
AFTER = set(sys.modules)


def column(data, key):
    return [value for samples in data.values() for value in samples.columns[key]]


def test_every_area_has_modules_of_its_own_and_a_description():
    names = [name for names in MODULES.values() for name in names.split()]
    assert len(set(names)) == len(names)
    assert list(MODULES) == list(DESCRIPTIONS) == list(typing.get_args(LibraryArea))


def test_reading_docstrings_imports_none_of_the_modules():
    assert not (AFTER - BEFORE) & {name for names in MODULES.values() for name in names.split()}


def test_docstrings_are_those_that_python_itself_gives():
    found = {text for _, text in docstrings_of("textwrap")}
    public = [textwrap, textwrap.TextWrapper, textwrap.wrap, textwrap.fill, textwrap.TextWrapper.wrap, textwrap.dedent]
    assert {inspect.getdoc(each) for each in public if inspect.getdoc(each)} <= found


def test_a_summary_is_the_first_paragraph_and_its_label_the_area():
    first = " ".join(inspect.getdoc(textwrap.fill).split("\n\n")[0].split())
    samples = {
        text: (label, module) for text, label, module in zip(*(column(DATA, key) for key in ("text", "label", "module")), strict=True)
    }
    label, module = samples[first]
    assert (DATA.info.classes[label], module) == ("text", "textwrap")


def test_no_module_and_no_text_is_in_two_splits_and_every_area_is_in_each():
    for key in ("module", "text"):
        found = [set(samples.columns[key]) for samples in DATA.values()]
        assert sum(map(len, found)) == len(set.union(*found))
    assert len(set(column(DATA, "text"))) == sum(map(len, DATA.values()))
    assert all(set(samples.columns["label"].tolist()) == set(range(6)) for samples in DATA.values())


def test_modules_alone_give_one_sample_each():
    modules = column(docstring_text(["module"]), "module")
    assert len(set(modules)) == len(modules)


def test_whole_docstrings_are_longer_and_within_the_limit():
    whole = docstring_text(unit="docstring", max_words=40)
    lengths = [len(text.split()) for text in column(whole, "text")]
    assert max(lengths) <= 40
    assert sum(lengths) > sum(min(len(text.split()), 40) for text in column(DATA, "text"))


def test_the_seed_alone_decides():
    assert docstring_text(seed=3).fingerprint() == docstring_text(seed=3).fingerprint() != DATA.fingerprint()


def test_private_names_are_left_out(tmp_path, monkeypatch):
    source = '"""The module."""\nclass _Hidden:\n    """Hidden class."""\nclass Shown:\n    """Shown class."""\n    def _hidden(self):\n'
    source += '        """Hidden method."""\n    async def shown(self):\n        """Shown method."""\ndef bare(): pass\n'
    (tmp_path / "made_up.py").write_text(source)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert docstrings_of("made_up") == (("module", "The module."), ("class", "Shown class."), ("function", "Shown method."))
    assert docstrings_of("absent.module") == ()


def test_a_python_without_sources_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match=f"no sources of the standard library in {tmp_path}"):
        docstring_text()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"owners": []}, r"each once; found \[\]"),
        ({"owners": ["class", "class"]}, "each once"),
        ({"owners": ["method"]}, "one or more of module, class and function"),
        ({"unit": "line"}, 'unit must be "summary" or "docstring"; found "line"'),
        ({"max_words": 7}, "max_words must be at least 8; found 7"),
        ({"seed": -1}, "must not be negative; found -1"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        docstring_text(**parameters)
