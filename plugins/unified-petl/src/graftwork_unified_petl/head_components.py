"""Registered models whose new parameters are keys, values or embeddings: prefixes, multi-head adapters, prompts."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import nn

from graftwork_unified_petl.builder import attach
from graftwork_unified_petl.components import Count, Dropout, Layers, Seed, _layers
from graftwork_unified_petl.modification import AttentionKind, Composition, Init, LayerNormAt, Modification, PromptTuning, Scale

__all__ = ["multi_head_parallel_adapter", "prefix_gated_add", "prefix_tuning", "prefix_vanilla_add", "prompt_tuning"]

Kinds = list[AttentionKind] | None


def _kinds(attentions: Kinds) -> tuple[AttentionKind, ...] | None:
    return None if attentions is None else tuple(attentions)


def _prefix(
    composition: Composition,
    length: int,
    layernorm: LayerNormAt,
    reparameterisation: int | None,
    dropout: float,
    attentions: Kinds,
    scale: Scale = 1.0,
) -> Modification:
    return Modification(
        "prefix",
        "heads",
        "parallel",
        composition,
        length,
        scale,
        layernorm=layernorm,
        reparameterisation=reparameterisation,
        dropout=dropout,
        attentions=_kinds(attentions),
    )


def prefix_tuning(
    backbone: nn.Module,
    length: Count = 200,
    reparameterisation: Count | None = 800,
    dropout: Dropout = 0.0,
    attentions: Kinds = None,
    layers: Layers = None,
    seed: Seed = None,
) -> nn.Module:
    """Prefix tuning: l learned keys and values before those of each attention (Li and Liang, 2021; He et al., 2022, section 2.2).

    Args:
        backbone: of transformers, or a model that holds one; modified in place.
        length: l.
        reparameterisation: width of the network that generates the prefix while training, or none for direct parameters.
        dropout: on the prefix.
        attentions: "encoder", "decoder", "cross"; all by default.
        layers: indices within each stack; all by default.
        seed: of the new weights; without one they are drawn from torch's global generator, which a run seeds.

    Raises:
        InterfaceError: if the backbone has no attention that a prefix can be put into.
    """
    one = _prefix("concatenated", length, "none", reparameterisation, dropout, attentions)
    one = dataclasses.replace(one, layers=_layers(layers))
    return attach(backbone, [one], seed=seed)


def prefix_gated_add(
    backbone: nn.Module,
    length: Count = 200,
    layernorm: Literal["none", "in"] = "none",
    reparameterisation: Count | None = 800,
    dropout: Dropout = 0.0,
    attentions: Kinds = None,
    seed: Seed = None,
) -> nn.Module:
    """Prefix tuning as attention to P beside the frozen one, composed by the exact gate (He et al., 2022, eq. 5).

    Without a layernorm it gives what `prefix-tuning` gives.

    Args:
        backbone: of transformers, or a model that holds one; modified in place.
        length: l.
        layernorm: "in" puts a new LayerNorm before the frozen W_q, for the query of the prefix alone.
        reparameterisation: width of the network that generates the prefix while training, or none for direct parameters.
        dropout: on the prefix.
        attentions: "encoder", "decoder", "cross"; all by default.
        seed: of the new weights; without one they are drawn from torch's global generator, which a run seeds.

    Raises:
        InterfaceError: if the backbone has no attention that a prefix can be put into.
    """
    one = _prefix("gated", length, layernorm, reparameterisation, dropout, attentions)
    return attach(backbone, [one], seed=seed)


def prefix_vanilla_add(
    backbone: nn.Module,
    length: Count = 200,
    layernorm: Literal["none", "in"] = "in",
    scale: Scale = 1.0,
    reparameterisation: Count | None = 800,
    dropout: Dropout = 0.0,
    attentions: Kinds = None,
    seed: Seed = None,
) -> nn.Module:
    """Attention to P with a softmax of its own, added to the frozen heads without a gate (He et al., 2022, section 4.5).

    Args:
        backbone: of transformers, or a model that holds one; modified in place.
        length: l.
        layernorm: "in" puts a new LayerNorm before the frozen W_q, as the authors' `cross_attn`; "none" is their `cross_attn_noln`.
        scale: s, or "learnable"; the authors' is 1.
        reparameterisation: width of the network that generates the prefix while training, or none for direct parameters.
        dropout: on the prefix.
        attentions: "encoder", "decoder", "cross"; all by default.
        seed: of the new weights; without one they are drawn from torch's global generator, which a run seeds.

    Raises:
        InterfaceError: if the backbone has no attention that a prefix can be put into.
    """
    one = _prefix(_composition(scale), length, layernorm, reparameterisation, dropout, attentions, scale)
    return attach(backbone, [one], seed=seed)


def _composition(scale: Scale) -> Literal["add", "scaled"]:
    return "add" if scale == 1.0 else "scaled"


def multi_head_parallel_adapter(
    backbone: nn.Module,
    bottleneck: Count = 30,
    layernorm: Literal["none", "in"] = "in",
    scale: Scale = 1.0,
    reparameterisation: Count | None = 800,
    init: Init = "bert",
    attentions: Kinds = None,
    seed: Seed = None,
) -> nn.Module:
    """ReLU bottlenecks within each attention head, whose down-projection is the frozen query (He et al., 2022, section 3.3).

    Args:
        backbone: of transformers, or a model that holds one; modified in place.
        bottleneck: r of each head: as many parameters as a prefix of that length.
        layernorm: "in" puts a new LayerNorm before the frozen W_q, as the authors do.
        scale: s, or "learnable"; the authors' is 1.
        reparameterisation: width of the network that generates P while training, or none for direct parameters.
        init: of direct parameters, "bert" or "lora"; with the latter the model starts as it was.
        attentions: "encoder", "decoder", "cross"; all by default.
        seed: of the new weights; without one they are drawn from torch's global generator, which a run seeds.

    Raises:
        InterfaceError: if the backbone has no attention whose heads can be reached.
    """
    one = Modification(
        "multi-head",
        "heads",
        composition=_composition(scale),
        scale=scale,
        bottleneck=bottleneck,
        layernorm=layernorm,
        reparameterisation=reparameterisation,
        init=init,
        attentions=_kinds(attentions),
    )
    return attach(backbone, [one], seed=seed)


def prompt_tuning(backbone: nn.Module, length: Count = 20, seed: Seed = None) -> nn.Module:
    """Prompt tuning, a baseline: l learned embeddings before those of the input (Lester et al., 2021).

    Args:
        backbone: of transformers, or a model that holds one; modified in place.
        length: l.
        seed: of the new weights; without one they are drawn from torch's global generator, which a run seeds.

    Raises:
        InterfaceError: if the backbone's embeddings are of no known structure.
    """
    return attach(backbone, [PromptTuning(length)], seed=seed)
