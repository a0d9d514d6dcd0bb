"""What a plugin declares: components, and the papers that they come from. Plain data; importing this imports nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KINDS", "Component", "Paper"]

KINDS = ("dataset", "model", "objective", "guidance", "evaluator")
"""The five kinds of component, singular; the hook that registers a kind is named in `hookspecs.HOOKS`."""


@dataclass(frozen=True)
class Paper:
    """The paper behind a component.

    Args:
        title: as printed on the paper.
        arxiv: arXiv identifier, such as "1505.07818".
        year: year of publication.
        venue: where it appeared, such as "CVPR".
        url: a page to read it at, where arXiv has none.
    """

    title: str
    arxiv: str | None = None
    year: int | None = None
    venue: str | None = None
    url: str | None = None

    @property
    def link(self) -> str | None:
        """The address to read the paper at, or None."""
        return self.url or (f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else None)


@dataclass(frozen=True)
class Component:
    """One thing that a plugin offers by name; loaded from `target` on first use.

    Args:
        name: lower-case words joined by hyphens; what YAML writes after `use:`.
        target: "package.module:attribute" of a class or factory function. Its signature is the component's parameters.
        summary: one sentence for `graft list`.
        paper: where the method comes from.
        example: parameters with which the component can be built, where its defaults do not suffice (references as in YAML).
        deferred: whether making it takes long (a search, a merge of large models), so that a pipeline's assembly checks its parameters
            and leaves it to the run.
    """

    name: str
    target: str
    summary: str = ""
    paper: Paper | None = None
    example: Mapping[str, Any] = field(default_factory=dict)
    deferred: bool = False
