"""What the test bed registers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_datasets"]

DANN = Paper("Domain-Adversarial Training of Neural Networks", arxiv="1505.07818", year=2016, venue="JMLR")
LARS = Paper("Least Angle Regression", arxiv="math/0406456", year=2004, venue="Annals of Statistics")


@hookimpl
def graftwork_datasets() -> Iterator[Component]:
    """The data sets of the test bed."""
    yield Component("digits", "graftwork_testbed.handwriting:digits", "1,797 handwritten digits; optionally unseen classes for testing")
    yield Component("digit-domains", "graftwork_testbed.domains:digit_domains", "The digits in up to six domains", DANN)
    yield Component("photos", "graftwork_testbed.photographs:photos", "Crops of nine natural photographs")
    yield Component("textures", "graftwork_testbed.texture_crops:textures", "Grey crops of six surfaces, labelled by surface")
    yield Component("shifted-moons", "graftwork_testbed.moons:shifted_moons", "Twin moons, and the same rotated as the target domain", DANN)
    yield Component("diabetes", "graftwork_testbed.tabular:diabetes", "442 patients, ten measurements, progression to regress", LARS)
