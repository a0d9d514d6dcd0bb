"""What this distribution registers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_evaluators", "graftwork_models"]

HERE = "graftwork_unified_petl"
MODELS, IN_HEADS = f"{HERE}.components", f"{HERE}.head_components"
PAPER = Paper("Towards a Unified View of Parameter-Efficient Transfer Learning", arxiv="2110.04366", year=2022, venue="ICLR")
PREFIX = Paper("Prefix-Tuning: Optimizing Continuous Prompts for Generation", arxiv="2101.00190", year=2021, venue="ACL")
ADAPTER = Paper("Parameter-Efficient Transfer Learning for NLP", arxiv="1902.00751", year=2019, venue="ICML")
LORA = Paper("LoRA: Low-Rank Adaptation of Large Language Models", arxiv="2106.09685", year=2022, venue="ICLR")
PROMPT = Paper("The Power of Scale for Parameter-Efficient Prompt Tuning", arxiv="2104.08691", year=2021, venue="EMNLP")
BITFIT = Paper("BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models", arxiv="2106.10199", year=2022)
VIT = {"backbone": {"use": "zoo/digit-source", "variant": "vit-clean"}}


@hookimpl
def graftwork_models() -> Iterator[Component]:
    """Frozen transformers with few new parameters."""
    spec = {**VIT, "spec": [{"form": "adapter", "site": "ffn"}]}
    yield Component("petl", f"{MODELS}:petl", "Any form, site, insertion and composition in a frozen transformer", PAPER, spec)
    yield Component("prefix-tuning", f"{IN_HEADS}:prefix_tuning", "Learned keys and values before each attention's own", PREFIX, VIT)
    yield Component("prefix-gated-add", f"{IN_HEADS}:prefix_gated_add", "Prefix tuning as a gated sum of two attentions", PAPER, VIT)
    yield Component("prefix-vanilla-add", f"{IN_HEADS}:prefix_vanilla_add", "Attention to a prefix, added without a gate", PAPER, VIT)
    yield Component("sequential-adapter", f"{MODELS}:sequential_adapter", "Adapters after sub-layers: Houlsby, Pfeiffer", ADAPTER, VIT)
    yield Component("parallel-adapter", f"{MODELS}:parallel_adapter", "Adapters beside the FFN or attention", PAPER, VIT)
    yield Component("scaled-parallel-adapter", f"{MODELS}:scaled_parallel_adapter", "Parallel adapters, multiplied by s", PAPER, VIT)
    yield Component("multi-head-parallel-adapter", f"{IN_HEADS}:multi_head_parallel_adapter", "ReLU bottlenecks in each head", PAPER, VIT)
    yield Component("lora-attn", f"{MODELS}:lora_attn", "LoRA on queries and values", LORA, VIT)
    yield Component("lora-ffn", f"{MODELS}:lora_ffn", "LoRA on both matrices of the FFN", LORA, VIT)
    yield Component("prompt-tuning", f"{IN_HEADS}:prompt_tuning", "Learned embeddings before the input's", PROMPT, VIT)
    yield Component("bitfit", f"{MODELS}:bitfit", "Train the biases alone", BITFIT, VIT)
    yield Component("mam-adapter", f"{MODELS}:mam_adapter", "A short prefix and a large scaled parallel adapter", PAPER, VIT)


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """What such a model trains."""
    target = f"{HERE}.evaluator:PetlParameterCount"
    yield Component("petl-parameter-count", target, "New parameters against frozen ones, by formula and by counting", PAPER)
