"""The general builder: modifications of a frozen transformer, put in, merged, folded and taken out again."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from graftwork import GraftworkError, InterfaceError
from graftwork_unified_petl.bottleneck import Adapter, LowRank
from graftwork_unified_petl.grafts import HeadGraft, ParallelGraft, SequentialGraft
from graftwork_unified_petl.merging import Merge, widened_ffn, with_low_rank
from graftwork_unified_petl.modification import BitFit, Modification, PromptTuning
from graftwork_unified_petl.placement import chosen_blocks, new_change, places, projections, to_like, wanted
from graftwork_unified_petl.prefix import PrefixBank
from graftwork_unified_petl.prompt import PromptGraft
from graftwork_unified_petl.routing import unroute
from graftwork_unified_petl.sites import Attention, Block, find_blocks

__all__ = ["HEADS", "NAME", "Petl", "attach", "detach", "fold", "freeze", "is_attached", "merge", "owner_of", "petl_of", "unmerge"]

NAME = "petl"
"""Attribute of the model under which everything new is: the reference's marker is "ef_"."""
HEADS = (
    r"(^|\.)(classifier|score|classification_head|qa_outputs|pre_classifier|sequence_summary|cls_classifier|distillation_classifier|head)\."
)
"""Parameters that are a task's own head, and are trained too."""

Graft: TypeAlias = HeadGraft | ParallelGraft | SequentialGraft | PromptGraft
Change: TypeAlias = Modification | PromptTuning | BitFit


class Petl(nn.Module):
    """Everything that a set of modifications adds to one model; a submodule of it, named "petl".

    Args:
        model: what is modified, in place.
        modifications: may be none: the model is then as before.
        generator: what weights are drawn with; torch's global one by default.

    Attributes:
        modifications: as given.
        grafts: a module a site.
        banks: the prefixes that grafts at the heads share.
        sites: of each graft: index of its modification, path of its site, index within the stack.

    Raises:
        InterfaceError: if the model has no such site.
    """

    def __init__(self, model: nn.Module, modifications: Sequence[Change], generator: torch.Generator | None = None):
        super().__init__()
        self.modifications = tuple(modifications)
        self.grafts, self.banks = nn.ModuleList(), nn.ModuleDict()
        self.sites: list[tuple[int, str, int]] = []
        self.required: dict[str, bool] = {}
        self.originals: dict[str, Tensor] = {}
        self.merges: list[Merge] = []
        blocks = find_blocks(model) if any(isinstance(one, Modification) for one in modifications) else []
        self._routed: list[Attention] = []
        try:
            for index, modification in enumerate(self.modifications):
                if isinstance(modification, Modification):
                    self._insert(index, modification, chosen_blocks(blocks, modification), generator)
                elif isinstance(modification, PromptTuning):
                    self._add(PromptGraft(model, modification.length, generator), index, "prompt", 0)
        except BaseException:
            self.remove()
            raise
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        """What it is given: `nn.Sequential` calls whatever is put into it."""
        return x

    def _insert(self, index: int, modification: Modification, blocks: Sequence[Block], generator: torch.Generator | None) -> None:
        if modification.site == "heads":
            self._insert_heads(index, modification, blocks, generator)
            return
        for block in blocks:
            for place in places(block, modification):
                change = new_change(modification, place.read, place.give, generator)
                to_like(change, place.like)
                graft: Graft
                if modification.insertion == "parallel":
                    graft = ParallelGraft(change, place.source, place.target, place.before)
                elif modification.site == "layer":
                    graft = SequentialGraft(change, place.source)
                else:
                    graft = SequentialGraft(change, place.source, place.target.start, place.target.width)
                self._add(graft, index, place.path, block.index)

    def _insert_heads(self, index: int, modification: Modification, blocks: Sequence[Block], generator: torch.Generator | None) -> None:
        chosen = [(block, one) for block in blocks for one in block.attentions if wanted(one, modification)]
        groups: dict[tuple[str, str], list[tuple[Block, Attention]]] = {}
        for block, attention in chosen:
            groups.setdefault((block.stack, attention.kind), []).append((block, attention))
        for number, members in enumerate(groups.values()):
            first = members[0][1]
            bank = PrefixBank(
                len(members),
                modification.bottleneck,
                first.kv_heads,
                first.head_width,
                first.query.in_width,
                modification.reparameterisation,
                modification.init,
                modification.dropout,
                generator,
            )
            to_like(bank, first.key.module.weight)
            self.banks[f"{index}-{number}"] = bank  # no part of a path: transformers renames those that it knows when it saves
            for layer, (block, attention) in enumerate(members):
                graft = HeadGraft(modification, attention, bank, layer)
                to_like(graft, first.key.module.weight)
                self._routed.append(attention)
                self._add(graft, index, attention.path, block.index)

    def _add(self, graft: Graft, index: int, path: str, layer: int) -> None:
        self.grafts.append(graft)
        self.sites.append((index, path, layer))

    def remove(self) -> None:
        """Take every hook out of the model, and undo merges."""
        self.unmerge()
        for graft in self.grafts:
            for handle in graft.handles:  # type: ignore[union-attr]
                handle.remove()
        for attention in self._routed:
            unroute(attention)

    def fold(self) -> None:
        """Keep prefixes without the networks that generate them."""
        for bank in self.banks.values():
            bank.fold()  # type: ignore[operator]
        self.modifications = self.folded_modifications()

    def folded_modifications(self) -> tuple[Change, ...]:
        """The modifications as they are once prefixes are folded."""
        return tuple(
            dataclasses.replace(one, reparameterisation=None) if isinstance(one, Modification) else one for one in self.modifications
        )

    def count(self, folded: bool = False) -> int:
        """New parameters, and with BitFit the biases; prefixes as they are, or as they will be once folded."""
        counted = sum(one.numel() for one in self.originals.values())
        for name, module in self.named_modules():
            if isinstance(module, PrefixBank):
                counted += sum(one.numel() for one in (module.stored() if folded else module.parameters()))
            elif not name.startswith("banks."):
                counted += sum(one.numel() for one in module.parameters(recurse=False))
        return counted

    def merge(self, model: nn.Module) -> list[str]:
        """Merge what can be merged; as the function `merge`."""
        if self.merges:
            raise GraftworkError("the modifications are merged already: unmerge(model) first")
        blocks = find_blocks(model)
        sites = {path: projection for block in blocks for path, projection, _, _ in projections(block)}
        ffns = {f"{block.path}.ffn": block.ffn for block in blocks}
        try:
            for graft, (_, path, _) in zip(self.grafts, self.sites, strict=True):
                if not isinstance(graft, ParallelGraft):
                    continue
                if path in sites and isinstance(graft.change, LowRank):
                    self.merges.append(with_low_rank(sites[path], graft.change))
                elif path in ffns and isinstance(graft.change, Adapter):
                    self.merges.append(widened_ffn(ffns[path], graft.change, path))
                else:
                    continue
                self.merges[-1].apply()
                graft.merged = True
        except ValueError:
            self.unmerge()
            raise
        if not self.merges:
            raise GraftworkError("there is nothing to merge: only LoRA at projections, and parallel adapters beside a ReLU FFN, can be")
        return [one.path for one in self.merges]

    def unmerge(self) -> None:
        """Put the frozen weights back, bit for bit."""
        for one in reversed(self.merges):
            one.undo()
        self.merges.clear()
        for graft in self.grafts:
            if isinstance(graft, ParallelGraft):
                graft.merged = False


def attach(model: nn.Module, modifications: Sequence[Change], *, seed: int | None = None, heads: str = HEADS) -> nn.Module:
    """Modify a transformer in place, and freeze all of it but what is new and its task's head (He et al., 2022, section 3).

    Args:
        model: of transformers, of timm, or any module that holds one.
        modifications: of it; none leaves its outputs as they are.
        seed: of the new weights, drawn on the CPU; torch's global generator by default.
        heads: regular expression that is searched for in names: what else is trained.

    Returns:
        The model. What is new is under the name "petl" in its model of transformers, whose `save_pretrained` keeps it, or in itself.

    Raises:
        InterfaceError: if the model has no such site.
        ValueError: if it is modified already, or a modification does not fit.
    """
    if is_attached(model):
        raise ValueError(f"this {type(model).__name__} is modified already: give all modifications at once, or detach(model) first")
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    owner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)
    petl = Petl(owner, modifications, generator)
    owner.add_module(NAME, petl)
    if isinstance(owner, PreTrainedModel):
        setattr(owner.config, NAME, [one.to_json() for one in modifications])
    try:
        freeze(model, heads)
    except InterfaceError:
        detach(model)
        raise
    return model


def freeze(model: nn.Module, heads: str = HEADS) -> None:
    """Require gradients of what is new and of the task's head alone; with BitFit of every bias. `detach` undoes it.

    Raises:
        InterfaceError: if the model is not modified, or BitFit finds no bias.
    """
    petl = petl_of(model)
    new = {id(parameter) for parameter in petl.parameters()}
    named = [(name, parameter) for name, parameter in model.named_parameters() if id(parameter) not in new]
    petl.required = petl.required or {name: parameter.requires_grad for name, parameter in named}
    biases = any(isinstance(one, BitFit) for one in petl.modifications)
    for name, parameter in named:
        is_head, is_bias = bool(re.search(heads, name)), biases and "bias" in name
        parameter.requires_grad_(is_head or is_bias)
        if is_bias and not is_head:
            petl.originals.setdefault(name, parameter.detach().clone())
    if biases and not petl.originals:
        raise InterfaceError(f"BitFit trains biases, and {type(model).__name__} has none outside of its head")


def is_attached(model: nn.Module) -> bool:
    """Whether a model, or a module within it, is modified."""
    return any(isinstance(module, Petl) for module in model.modules())


def owner_of(model: nn.Module) -> nn.Module:
    """The module within a model that what is new is a submodule of.

    Raises:
        InterfaceError: if it is not modified.
    """
    found = next((module for module in model.modules() if isinstance(getattr(module, NAME, None), Petl)), None)
    if found is None:
        raise InterfaceError(f"this {type(model).__name__} has no modifications: attach(model, modifications) first")
    return found


def petl_of(model: nn.Module) -> Petl:
    """What a model was modified by.

    Raises:
        InterfaceError: if it is not modified.
    """
    petl: Petl = getattr(owner_of(model), NAME)
    return petl


def detach(model: nn.Module) -> nn.Module:
    """Take every modification out: module tree, weights, hooks and what requires gradients are as before.

    The task's head keeps what it has learned.

    Args:
        model: the one that `attach` was given.

    Raises:
        InterfaceError: if it is not modified.
    """
    owner, petl = owner_of(model), petl_of(model)
    petl.remove()
    delattr(owner, NAME)
    if isinstance(owner, PreTrainedModel):
        delattr(owner.config, NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(petl.required.get(name, parameter.requires_grad))
        if name in petl.originals:
            parameter.data.copy_(petl.originals[name])
    return model


def fold(model: nn.Module) -> nn.Module:
    """Keep prefixes alone, without the networks that generated them while training. Optimisers must be made anew afterwards."""
    owner, petl = owner_of(model), petl_of(model)
    petl.fold()
    if isinstance(owner, PreTrainedModel):
        setattr(owner.config, NAME, [one.to_json() for one in petl.modifications])
    return model


def merge(model: nn.Module) -> list[str]:
    """For inference: add LoRA to the matrices beside it, and join parallel adapters to the ReLU feed-forward beside them.

    Once merged they cost nothing extra, or one wider pair of matrix products. Prefixes and everything else stay as they are. What is merged
    gets no gradient: unmerge before training on.

    Returns:
        The modules that were merged into.

    Raises:
        ValueError: if one cannot be: its scale is learnable, it has a LayerNorm, or the FFN's activation is not ReLU.
        GraftworkError: if there is nothing to merge, or it is merged already.
    """
    return petl_of(model).merge(owner_of(model))


def unmerge(model: nn.Module) -> None:
    """Undo `merge`: the frozen weights come back bit for bit."""
    petl_of(model).unmerge()
