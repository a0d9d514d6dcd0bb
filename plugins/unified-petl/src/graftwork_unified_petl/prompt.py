"""Prompt tuning: learned embeddings before those of the input, a baseline (Lester et al., 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.hooks import RemovableHandle

from graftwork import InterfaceError
from graftwork_unified_petl.sites import find_blocks

__all__ = ["PromptGraft"]


class PromptGraft(nn.Module):
    """l embeddings before those of the encoder, or of a decoder alone; the attention mask grows by as many (Lester et al., 2021).

    As in the authors' code, prompts of an encoder get no position and are not scaled, and what precedes the first layer (a norm,
    dropout) applies to them too. What the stack gives has no prompts in it, except that a decoder attends to those of its encoder.
    In a decoder they take the first l positions.

    Args:
        model: of transformers, of text or of ViT.
        length: l.
        generator: what they are drawn with; torch's global one by default.

    Raises:
        InterfaceError: if the model's embeddings are of no known structure.
    """

    def __init__(self, model: nn.Module, length: int, generator: torch.Generator | None = None):
        super().__init__()
        self.handles: list[RemovableHandle] = []
        block = find_blocks(model)[0]
        stack: Any = _holder(model, block.stack)
        width, like = block.attentions[0].query.in_width, block.ffn.output.module.weight
        drawn = torch.empty(length, width).normal_(std=0.02, generator=generator)
        self.prompt = nn.Parameter(drawn.to(device=like.device, dtype=like.dtype))
        if block.kind == "decoder":
            self._join_decoder(stack)
        elif hasattr(stack, "embed_tokens"):
            self._join_encoder(model, stack)
        else:
            self._join_embeddings(model, stack)

    def _pre(self, module: nn.Module, hook: Any) -> None:
        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _post(self, module: nn.Module, hook: Any) -> None:
        self.handles.append(module.register_forward_hook(hook))

    def _join_decoder(self, stack: Any) -> None:
        """GPT-2, Llama: the stack takes embeddings in place of tokens."""
        if getattr(stack, "get_input_embeddings", None) is None:
            raise InterfaceError(f"prompt tuning knows no input embeddings in {type(stack).__name__}")
        self._embed = (stack.get_input_embeddings(),)
        self._pre(stack, self.lengthen)
        self._post(stack, self.cut)

    def _join_encoder(self, model: nn.Module, stack: Any) -> None:
        """BART, T5: so does the encoder; its positions are counted from the first token."""
        self._embed = (stack.embed_tokens,)
        self._pre(stack, self.lengthen)
        if hasattr(stack, "embed_positions"):
            self._pre(stack.embed_positions, self.without_prompt)
            self._post(stack.embed_positions, self.nothing_for_prompt)
        pairs: list[Any] = [one for one in model.modules() if getattr(one, "encoder", None) is stack]
        decoder = next((one.decoder for one in pairs if hasattr(one, "decoder")), None)
        if decoder is not None:
            self._pre(decoder, self.lengthen_cross)
        else:
            self._post(stack, self.cut)

    def _join_embeddings(self, model: nn.Module, stack: Any) -> None:
        """BERT, ViT: embeddings are a module of their own."""
        holder: Any = next((one for one in model.modules() if hasattr(one, "embeddings") and _below(one, stack)), None)
        embeddings: Any = getattr(holder, "embeddings", None)
        if embeddings is None:
            raise InterfaceError(f"prompt tuning knows no embeddings in {type(model).__name__}: it takes BERT, BART, T5, GPT, Llama, ViT")
        if hasattr(embeddings, "LayerNorm"):
            self._pre(embeddings.LayerNorm, self.before)
            self._pre(holder, self.lengthen_mask)
            self._post(stack, self.cut)
        elif hasattr(holder, "layernorm"):
            self._post(embeddings, self.after)
            self._pre(holder.layernorm, self.cut_end)
        else:
            raise InterfaceError(f"prompt tuning knows no way into {type(holder).__name__}: it takes BERT, BART, T5, GPT, Llama, ViT")

    def _rows(self, like: Tensor) -> Tensor:
        return self.prompt.to(like.dtype).expand(like.shape[0], -1, -1)

    def _longer(self, kwargs: dict[str, Any], name: str) -> None:
        mask = kwargs.get(name)
        if isinstance(mask, Tensor):
            if mask.dim() != 2:
                raise InterfaceError(f"prompt tuning lengthens masks (B, T); {name} has {mask.dim()} dimensions")
            kwargs[name] = pad(mask, (len(self.prompt), 0), value=1)

    def lengthen(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pre-hook of a stack that takes embeddings: prompts first, unless a cache holds them already."""
        if args:
            kwargs = {**kwargs, "input_ids": args[0]}
        kwargs, cache, count = dict(kwargs), kwargs.get("past_key_values"), len(self.prompt)
        embeds = kwargs.pop("inputs_embeds", None)
        tokens = kwargs.pop("input_ids", None)
        embeds = self._embed[0](tokens) if embeds is None else embeds
        started = cache is not None and cache.get_seq_length() > 0
        positions = kwargs.get("position_ids")
        if positions is not None:
            first = torch.arange(0 if started else count, device=positions.device).expand(len(positions), -1)
            kwargs["position_ids"] = torch.cat([first[:, : 0 if started else count], positions + count], dim=1)
        self._cut = 0 if started else count
        self._longer(kwargs, "attention_mask")
        return (), {**kwargs, "inputs_embeds": embeds if started else torch.cat([self._rows(embeds), embeds], dim=1)}

    def lengthen_mask(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pre-hook of a model whose embeddings are a module."""
        kwargs = dict(kwargs)
        if len(args) > 1:
            kwargs["attention_mask"], args = args[1], (args[0],)
        self._cut = len(self.prompt)
        self._longer(kwargs, "attention_mask")
        return args, kwargs

    def lengthen_cross(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pre-hook of a decoder: it sees its encoder's prompts."""
        kwargs = dict(kwargs)
        self._longer(kwargs, "encoder_attention_mask")
        return args, kwargs

    def before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pre-hook of the embeddings' norm."""
        return (torch.cat([self._rows(args[0]), args[0]], dim=1),), kwargs

    def after(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of embeddings without a mask: at the end, as order means nothing to them."""
        return torch.cat([output, self._rows(output)], dim=1)

    def cut_end(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pre-hook of the last norm."""
        return (args[0][:, : -len(self.prompt)],), kwargs

    def without_prompt(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pre-hook of positions, which are counted along the second dimension."""
        return (args[0][:, len(self.prompt) :], *args[1:]), kwargs

    def nothing_for_prompt(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of positions."""
        return pad(output, (0, 0, len(self.prompt), 0))

    def cut(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook of a stack: what it gives is of the tokens alone."""
        if isinstance(output, tuple):
            return (output[0][:, self._cut :], *output[1:])
        output["last_hidden_state"] = output["last_hidden_state"][:, self._cut :]
        return output


def _holder(model: nn.Module, path: str) -> nn.Module:
    """The module that holds a list of layers."""
    return model.get_submodule(path.rpartition(".")[0])


def _below(module: nn.Module, wanted: nn.Module) -> bool:
    return any(one is wanted for one in module.modules())
