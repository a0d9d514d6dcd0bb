"""What a parameter-efficient method is: one modification, described along the paper's four dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from pydantic import ConfigDict, Field

__all__ = [
    "AttentionKind",
    "BitFit",
    "Composition",
    "Form",
    "Init",
    "Insertion",
    "LayerNormAt",
    "Modification",
    "PromptTuning",
    "Scale",
    "Site",
    "modification_from_json",
]

Form: TypeAlias = Literal["prefix", "multi-head", "adapter", "lora"]
"""How the change is computed: softmax(q P_k^T) P_v, ReLU(q P_k^T) P_v, ReLU(x W_down) W_up, x W_down W_up."""
Insertion: TypeAlias = Literal["parallel", "sequential"]
Site: TypeAlias = Literal["heads", "attention", "query", "key", "value", "attention-output", "ffn", "ffn-in", "ffn-out", "layer"]
Composition: TypeAlias = Literal["add", "scaled", "gated", "concatenated"]
Init: TypeAlias = Literal["bert", "lora"]
LayerNormAt: TypeAlias = Literal["none", "in", "out"]
AttentionKind: TypeAlias = Literal["encoder", "decoder", "cross"]
Scale: TypeAlias = Annotated[float, Field(gt=0)] | Literal["learnable"]
CHOICES = {
    "form": Form,
    "insertion": Insertion,
    "site": Site,
    "composition": Composition,
    "init": Init,
    "layernorm": LayerNormAt,
}
HEAD_FORMS = ("prefix", "multi-head")
OF_ATTENTION = ("heads", "attention", "query", "key", "value", "attention-output")


@dataclass(frozen=True)
class Modification:
    """One modification Delta-h of one hidden state h of a frozen transformer (He et al., 2022, section 3.2, table 1).

    Args:
        form: functional form: "prefix" is attention to `bottleneck` learned keys and values, "multi-head" the same with ReLU for softmax
            and without 1/sqrt(d_h), "adapter" a ReLU bottleneck with biases, "lora" a linear one without.
        site: h: "heads" (each head's output, before W_o), "attention" and "ffn" (outputs of the sub-layers), "layer" (after the FFN's
            residual and norm, Pfeiffer's place), or the output of one projection: "query", "key", "value", "attention-output", "ffn-in",
            "ffn-out".
        insertion: "parallel" reads what the sub-layer or projection reads; "sequential" reads h.
        composition: "add", h + Delta-h; "scaled", h + s Delta-h; "gated", (1 - lambda) h + lambda Delta-h with prefix tuning's gate;
            "concatenated", the gate's other spelling: one attention over prefix and keys together.
        bottleneck: r of a bottleneck, l of a prefix.
        scale: s of "scaled": a number, or "learnable", which starts at 1. LoRA's is alpha / r.
        init: "bert", N(0, 0.02) and zero biases; "lora", down (or P_k) Kaiming-uniform with a = sqrt 5, up (or P_v) and biases zero, so
            that an added change starts at exactly 0.
        layernorm: a new LayerNorm on what is read ("in") or on the change ("out").
        dropout: on the hidden units of an adapter, on the input of LoRA, on the generated or direct P of a prefix.
        reparameterisation: width of the MLP that generates a prefix while training, or None for direct parameters.
        attentions: which attentions or, for other sites, which layers by the kind of their self-attention ("encoder" or "decoder");
            None for all.
        layers: indices within each stack, negative ones from the end; None for all.

    Raises:
        ValueError: if a value is out of range, or the crossing does not exist.
    """

    form: Form
    site: Site
    insertion: Insertion = "parallel"
    composition: Composition = "add"
    bottleneck: Annotated[int, Field(ge=1)] = 16
    scale: Scale = 1.0
    init: Init = "bert"
    layernorm: LayerNormAt = "none"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    reparameterisation: Annotated[int, Field(ge=1)] | None = None
    attentions: tuple[AttentionKind, ...] | None = None
    layers: tuple[int, ...] | None = None

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            known = get_args(choices)
            if getattr(self, name) not in known:
                raise ValueError(f'{name} is one of {", ".join(known)}; found "{getattr(self, name)}"')
        for name in ("bottleneck", "reparameterisation"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(
                    f"{name} (r of a bottleneck, l of a prefix) is at least 1; found {value}"
                    if name == "bottleneck"
                    else f"{name} is at least 1; found {value}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is in [0, 1); found {self.dropout}")
        for name, least in (("attentions", get_args(AttentionKind)), ("layers", None)):
            chosen = getattr(self, name)
            if chosen is not None:
                object.__setattr__(self, name, tuple(chosen))
                if not chosen:
                    raise ValueError(f"{name} names none; leave it out for all")
                if least and (unknown := [one for one in chosen if one not in least]):
                    raise ValueError(f'{name} are of {", ".join(least)}; found "{unknown[0]}"')
        self._check_scale()
        if reason := self._impossible():
            raise ValueError(f"form {self.form}, {self.insertion}, site {self.site}, {self.composition}: {reason}")

    def _check_scale(self) -> None:
        if isinstance(self.scale, str):
            if self.scale != "learnable":
                raise ValueError(f'scale is a positive number or "learnable"; found "{self.scale}"')
        elif not self.scale > 0:
            raise ValueError(f'scale is a positive number or "learnable"; found {self.scale}')
        if self.scale != 1.0 and self.composition != "scaled":
            raise ValueError(f'scale {self.scale} needs composition "scaled"; found "{self.composition}"')

    def _impossible(self) -> str | None:
        """Why this crossing does not exist, or None."""
        of_heads, gates = self.form in HEAD_FORMS, self.composition in ("gated", "concatenated")
        rules: tuple[tuple[bool, str], ...] = (
            (of_heads and self.site != "heads", "it reads each head's query, which there is at site heads alone"),
            (self.site == "heads" and self.insertion == "sequential", "heads have no output of their own to follow; insert in parallel"),
            (self.site == "heads" and not of_heads, "a bottleneck beside the heads is site attention, parallel; per head it is multi-head"),
            (self.site == "layer" and self.insertion == "parallel", "site layer is Pfeiffer's, after the norm: sequential alone"),
            (gates and self.form != "prefix", "the gate is a ratio of softmax sums, which only a prefix has: use add or scaled"),
            (self.composition == "concatenated" and self.layernorm != "none", "one attention has one query: with a layernorm use gated"),
            (of_heads and self.layernorm == "out", "a prefix takes a layernorm at its query: in"),
            (not of_heads and self.reparameterisation is not None, "only prefixes are generated by a network"),
            (self.reparameterisation is not None and self.init == "lora", "a generated prefix is initialised by its network: init bert"),
        )  # fmt: skip
        return next((why for wrong, why in rules if wrong), None)

    def to_json(self) -> dict[str, Any]:
        """Its fields, as JSON holds them; `modification_from_json` is the way back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class PromptTuning:
    """l learned embeddings N(0, 0.02) before those of the input, and a longer mask (Lester et al., 2021).

    Args:
        length: l.

    Raises:
        ValueError: if the length is below 1.
    """

    length: int = 20

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length is at least 1; found {self.length}")

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"method": "prompt-tuning", "length": self.length}


@dataclass(frozen=True)
class BitFit:
    """Train every parameter with "bias" in its name, and nothing new (Ben Zaken et al., 2022)."""

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"method": "bitfit"}


def modification_from_json(fields: Mapping[str, Any]) -> Modification | PromptTuning | BitFit:
    """What `to_json` was made from.

    Raises:
        ValueError: if a field is unknown or its value is.
    """
    rest = dict(fields)
    kinds = {None: Modification, "prompt-tuning": PromptTuning, "bitfit": BitFit}
    method = rest.pop("method", None)
    if method not in kinds:
        raise ValueError(f'unknown method "{method}"; known are {", ".join(str(one) for one in kinds if one)}')
    try:
        made: Modification | PromptTuning | BitFit = kinds[method](**rest)
    except TypeError as error:
        raise ValueError(f"a modification cannot be read: {error}") from None
    return made
