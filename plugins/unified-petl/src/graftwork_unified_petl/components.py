"""The registered models: a frozen backbone, given by reference, with one of the paper's methods or any other modifications."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from graftwork_unified_petl.builder import attach
from graftwork_unified_petl.modification import BitFit, Init, LayerNormAt, Modification, Scale

__all__ = [
    "bitfit",
    "lora_attn",
    "lora_ffn",
    "mam_adapter",
    "parallel_adapter",
    "petl",
    "scaled_parallel_adapter",
    "sequential_adapter",
]

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)] | None
Dropout = Annotated[float, Field(ge=0, lt=1)]
Layers = list[int] | None
Where = Literal["attention", "ffn"]


def _layers(layers: Layers) -> tuple[int, ...] | None:
    return None if layers is None else tuple(layers)


def petl(backbone: nn.Module, spec: list[Modification], seed: Seed = None) -> nn.Module:
    """A frozen backbone with any modifications: form, site, insertion and composition of each (He et al., 2022, table 1, https://arxiv.org/abs/2110.04366).

    Only what is new and the task's head require gradients afterwards.

    Args:
        backbone: of transformers, or a model that holds one; modified in place.
        spec: the modifications; each has `form`, `site`, `insertion`, `composition`, `bottleneck`, `scale`, `init`, `layernorm`, `dropout`,
            `reparameterisation`, `attentions` and `layers`. An empty list freezes the backbone and leaves its outputs.
        seed: of the new weights; without one they are drawn from torch's global generator, which a run seeds.

    Raises:
        ValueError: if the crossing does not exist, or the backbone is modified already.
        InterfaceError: if the backbone has no such site.
    """
    return attach(backbone, spec, seed=seed)


def sequential_adapter(
    backbone: nn.Module,
    bottleneck: Count = 200,
    placement: Literal["houlsby", "pfeiffer", "attention", "ffn"] = "houlsby",
    init: Init = "bert",
    layernorm: LayerNormAt = "none",
    dropout: Dropout = 0.0,
    layers: Layers = None,
    seed: Seed = None,
) -> nn.Module:
    """Adapters after sub-layers (Houlsby et al., 2019; Pfeiffer et al., 2021; He et al., 2022, section 2.2).

    Args:
        backbone: of transformers, or a model that holds one; modified in place.
        bottleneck: r.
        placement: "houlsby" after attention and FFN, before their residuals; "pfeiffer" after the FFN's residual and norm; or one of
            Houlsby's two places.
        init: "bert" or "lora"; with the latter the model starts as it was.
        layernorm: a new LayerNorm "in" front of the adapters, or after them, "out". Those of attention have it "in" where this is "none"
            with placement "houlsby", as in the authors' code.
        dropout: on the hidden units.
        layers: indices within each stack; all by default.
        seed: of the new weights; without one they are drawn from torch's global generator, which a run seeds.

    Raises:
        InterfaceError: if the backbone has no transformer layer.
    """
    common = {"insertion": "sequential", "bottleneck": bottleneck, "init": init, "dropout": dropout, "layers": _layers(layers)}
    sites = {"houlsby": ("attention", "ffn"), "pfeiffer": ("layer",)}.get(placement, (placement,))
    spec = []
    for site in sites:
        norm = "in" if placement == "houlsby" and site == "attention" and layernorm == "none" else layernorm
        spec.append(Modification("adapter", site, layernorm=norm, **common))  # type: ignore[arg-type]
    return attach(backbone, spec, seed=seed)


def parallel_adapter(
    backbone: nn.Module,
    bottleneck: Count = 512,
    site: Where = "ffn",
    init: Init = "bert",
    layernorm: LayerNormAt = "none",
    dropout: Dropout = 0.0,
    layers: Layers = None,
    seed: Seed = None,
) -> nn.Module:
    """Adapters beside sub-layers, which read what the sub-layer reads (He et al., 2022, section 3.3).

    Args:
        backbone: of transformers, or a model that holds one; modified in place.
        bottleneck: r.
        site: "ffn"; or "attention", where the change is added to the concatenated heads before W_o.
        init: "bert" or "lora"; with the latter the model starts as it was.
        layernorm: a new LayerNorm in front of the adapters ("in", the authors' choice at attention) or after them ("out").
        dropout: on the hidden units.
        layers: indices within each stack; all by default.
        seed: of the new weights; without one they are drawn from torch's global generator, which a run seeds.

    Raises:
        InterfaceError: if the backbone has no transformer layer.
    """
    one = Modification("adapter", site, bottleneck=bottleneck, init=init, layernorm=layernorm, dropout=dropout, layers=_layers(layers))
    return attach(backbone, [one], seed=seed)


def scaled_parallel_adapter(
    backbone: nn.Module,
    bottleneck: Count = 512,
    scale: Scale = 4.0,
    site: Where = "ffn",
    init: Init = "lora",
    layernorm: LayerNormAt = "none",
    dropout: Dropout = 0.0,
    layers: Layers = None,
    seed: Seed = None,
) -> nn.Module:
    """Parallel adapters whose change is multiplied by s (He et al., 2022, section 3.3, scaled PA).

    Args:
        backbone: of transformers, or a model that holds one; modified in place.
        bottleneck: r.
        scale: s, or "learnable", a scalar of each adapter that starts at 1.
        site: "ffn"; or "attention", where the change is added to the concatenated heads before W_o.
        init: "bert" or "lora"; with the latter the model starts as it was.
        layernorm: a new LayerNorm in front of the adapters ("in") or after them ("out").
        dropout: on the hidden units.
        layers: indices within each stack; all by default.
        seed: of the new weights; without one they are drawn from torch's global generator, which a run seeds.

    Raises:
        InterfaceError: if the backbone has no transformer layer.
    """
    settings = {"bottleneck": bottleneck, "scale": scale, "init": init, "layernorm": layernorm, "dropout": dropout}
    return attach(backbone, [Modification("adapter", site, composition="scaled", layers=_layers(layers), **settings)], seed=seed)  # type: ignore[arg-type]


def lora_attn(
    backbone: nn.Module,
    rank: Count = 16,
    alpha: Annotated[float, Field(gt=0)] = 32.0,
    dropout: Dropout = 0.1,
    init: Init = "lora",
    layers: Layers = None,
    seed: Seed = None,
) -> nn.Module:
    """LoRA on W_q and W_v (Hu et al., 2021; He et al., 2022, section 2.2).

    Args:
        backbone: of transformers, or a model that holds one; modified in place.
        rank: r.
        alpha: the change is multiplied by alpha / r.
        dropout: on what LoRA reads.
        init: "lora", A Kaiming-uniform and B zero; or "bert", both N(0, 0.02).
        layers: indices within each stack; all by default.
        seed: of the new weights; without one they are drawn from torch's global generator, which a run seeds.

    Raises:
        InterfaceError: if the backbone has no transformer layer.
    """
    return _lora(backbone, ("query", "value"), rank, alpha, dropout, init, layers, seed)


def lora_ffn(
    backbone: nn.Module,
    rank: Count = 16,
    alpha: Annotated[float, Field(gt=0)] = 32.0,
    dropout: Dropout = 0.1,
    init: Init = "lora",
    layers: Layers = None,
    seed: Seed = None,
) -> nn.Module:
    """LoRA on both matrices of the feed-forward sub-layer (He et al., 2022, section 4.4).

    Args:
        backbone: of transformers, or a model that holds one; modified in place.
        rank: r.
        alpha: the change is multiplied by alpha / r.
        dropout: on what LoRA reads.
        init: "lora", A Kaiming-uniform and B zero; or "bert", both N(0, 0.02).
        layers: indices within each stack; all by default.
        seed: of the new weights; without one they are drawn from torch's global generator, which a run seeds.

    Raises:
        InterfaceError: if the backbone has no transformer layer.
    """
    return _lora(backbone, ("ffn-in", "ffn-out"), rank, alpha, dropout, init, layers, seed)


def _lora(
    backbone: nn.Module,
    sites: tuple[str, str],
    rank: int,
    alpha: float,
    dropout: float,
    init: Init,
    layers: Layers,
    seed: int | None,
) -> nn.Module:
    if rank < 1 or alpha <= 0:
        raise ValueError(f"rank is at least 1 and alpha positive; found {rank} and {alpha}")
    common = {"composition": "scaled", "bottleneck": rank, "scale": alpha / rank, "dropout": dropout, "init": init}
    return attach(backbone, [Modification("lora", one, layers=_layers(layers), **common) for one in sites], seed=seed)  # type: ignore[arg-type]


def bitfit(backbone: nn.Module) -> nn.Module:
    """BitFit, a baseline: every parameter with "bias" in its name is trained, and nothing is added (Ben Zaken et al., 2022).

    Args:
        backbone: any model with biases; changed in place.

    Raises:
        InterfaceError: if it has none.
    """
    return attach(backbone, [BitFit()])


def mam_adapter(
    backbone: nn.Module,
    length: Count = 30,
    bottleneck: Count = 512,
    scale: Scale = 4.0,
    reparameterisation: Count | None = 800,
    dropout: Dropout = 0.0,
    seed: Seed = None,
) -> nn.Module:
    """The Mix-And-Match adapter: a short prefix at attention, a large scaled parallel adapter at the FFN (He et al., 2022, section 4.6).

    The defaults are those for XSum and en-ro with BART-large; for GLUE with RoBERTa-base the authors have 16, 16 and 2.

    Args:
        backbone: of transformers, or a model that holds one; modified in place.
        length: l of the prefix.
        bottleneck: r of the adapters, which start at 0 and have no layernorm.
        scale: s of the adapters, or "learnable".
        reparameterisation: width of the network that generates the prefix while training, or none for direct parameters.
        dropout: on the adapters' hidden units.
        seed: of the new weights; without one they are drawn from torch's global generator, which a run seeds.

    Raises:
        InterfaceError: if the backbone has no attention that a prefix can be put into.
    """
    prefix = Modification("prefix", "heads", composition="concatenated", bottleneck=length, reparameterisation=reparameterisation)
    adapter = Modification("adapter", "ffn", composition="scaled", bottleneck=bottleneck, scale=scale, init="lora", dropout=dropout)
    return attach(backbone, [prefix, adapter], seed=seed)
