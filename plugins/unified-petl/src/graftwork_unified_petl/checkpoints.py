"""What was learned, in a folder of its own: safetensors and JSON; and LoRA as PEFT has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from graftwork import DataError, GraftworkError
from graftwork_unified_petl.builder import NAME, Petl, attach, is_attached, owner_of, petl_of
from graftwork_unified_petl.grafts import ParallelGraft
from graftwork_unified_petl.modification import Modification, modification_from_json
from graftwork_unified_petl.placement import projections
from graftwork_unified_petl.prefix import PrefixBank
from graftwork_unified_petl.sites import find_blocks

__all__ = ["load_petl", "save_peft_lora", "save_petl"]

HEADER, TENSORS = "petl.json", "petl.safetensors"


def save_petl(model: nn.Module, folder: str | Path) -> None:
    """Write what was learned: the modifications, the task's head, with BitFit the biases. Prefixes are folded in the file alone.

    Args:
        model: modified.
        folder: made where it is missing.

    Raises:
        InterfaceError: if the model is not modified.
        GraftworkError: if it is merged.
    """
    petl = petl_of(model)
    if petl.merges:
        raise GraftworkError("the modifications are merged into the frozen weights: unmerge(model) before saving them")
    new = {id(parameter) for parameter in petl.parameters()}
    inside = {id(one): f"model.{name}" for name, one in owner_of(model).named_parameters()}
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad and id(one) not in new]
    tensors = {inside.get(id(one), f"outside.{name}"): one for name, one in trained}
    banks = {name for name, module in petl.named_modules() if isinstance(module, PrefixBank)}
    for name, one in petl.named_parameters():
        if not any(name.startswith(f"{bank}.") for bank in banks):
            tensors[f"{NAME}.{name}"] = one
    for name in banks:
        bank: Any = petl.get_submodule(name)
        for layer, both in enumerate(bank.stored()):
            tensors[f"{NAME}.{name}.direct.{layer}"] = both
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_file({name: one.detach().cpu().contiguous().clone() for name, one in tensors.items()}, target / TENSORS)
    described = [
        {**one.to_json(), "reparameterisation": None} if isinstance(one, Modification) else one.to_json() for one in petl.modifications
    ]
    (target / HEADER).write_text(json.dumps({"version": 1, "modifications": described}, indent=1))


def load_petl(model: nn.Module, folder: str | Path) -> nn.Module:
    """Modify a model as `save_petl` wrote it, or as a pipeline's run saved the whole model; every tensor is used or named.

    Args:
        model: of the same architecture as the one that was modified; modified in place, unless it is already in the same way.
        folder: written by `save_petl`, or by `save_pretrained` of a modified model.

    Raises:
        DataError: if the folder holds none, or its tensors do not fit the model.
    """
    source = Path(folder)
    modifications, state = _read_own(source) if (source / HEADER).is_file() else _read_pretrained(source)
    if not is_attached(model):
        attach(model, modifications, seed=0)
    petl = petl_of(model)
    stored = {name.removeprefix(f"{NAME}."): one for name, one in state.items() if name.startswith(f"{NAME}.")}
    if any(".direct." in name for name in stored):
        petl.fold()
    _fill(petl, stored, folder)
    for holder, prefix in ((owner_of(model), "model."), (model, "outside.")):
        rest = {name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)}
        if foreign := sorted(set(rest) - {name for name, _ in holder.named_parameters()}):
            raise DataError(f"{folder} holds {', '.join(foreign[:4])}, which {type(holder).__name__} lacks")
        _fill(holder, rest, folder, strict=False)
    return model


def _fill(module: nn.Module, state: dict[str, Tensor], folder: str | Path, strict: bool = True) -> None:
    try:
        module.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        raise DataError(f"{folder} does not fit this model: {' '.join(str(error).split())}") from None


def _read_own(folder: Path) -> tuple[list[Any], dict[str, Tensor]]:
    try:
        header = json.loads((folder / HEADER).read_text())
        if header["version"] > 1:
            raise DataError(f"{folder} is of layout {header['version']}; this version reads 1: upgrade graftwork-unified-petl")
        return [modification_from_json(one) for one in header["modifications"]], load_file(folder / TENSORS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{folder} holds no modifications that can be read: {error}") from None


def _read_pretrained(folder: Path) -> tuple[list[Any], dict[str, Tensor]]:
    try:
        described = json.loads((folder / "config.json").read_text())[NAME]
        files = sorted(folder.glob("*.safetensors"))
        state = {name: one for file in files for name, one in load_file(file).items() if name.startswith(f"{NAME}.")}
        return [modification_from_json(one) for one in described], state
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{folder} holds no modifications: neither {HEADER} nor a config.json with {NAME} ({error})") from None


def save_peft_lora(model: nn.Module, folder: str | Path) -> None:
    """Write LoRA in PEFT's format, so that `peft.PeftModel.from_pretrained` loads it onto the model of transformers.

    Args:
        model: of transformers, modified by LoRA at projections of their own, with one r and one scale.
        folder: made where it is missing.

    Raises:
        GraftworkError: if it is modified in a way that PEFT's LoRA has no form for.
    """
    petl: Petl = petl_of(model)
    lora = [one for one in petl.modifications if isinstance(one, Modification) and one.form == "lora" and one.insertion == "parallel"]
    settings = {(one.bottleneck, one.scale, one.layernorm) for one in lora}
    if len(lora) < len(petl.modifications) or len(settings) != 1:
        raise GraftworkError("PEFT's format holds LoRA alone, with one r and one scale: use save_petl")
    ((rank, scale, layernorm),) = settings
    sites = {path: one for block in find_blocks(owner_of(model)) for path, one, _, _ in projections(block)}
    if isinstance(scale, str) or layernorm != "none" or any(path not in sites for _, path, _ in petl.sites):
        raise GraftworkError("PEFT's format holds LoRA at projections with a constant scale and no layernorm: use save_petl")
    if fused := [sites[path].path for _, path, _ in petl.sites if sites[path].width != sites[path].total]:
        raise GraftworkError(f"{fused[0]} is one part of a fused matrix, which PEFT's LoRA cannot tell apart: use save_petl")
    state, targets = {}, []
    for graft, (_, path, _) in zip(petl.grafts, petl.sites, strict=True):
        assert isinstance(graft, ParallelGraft)
        targets.append(sites[path].path)
        for name, layer in (("lora_A", graft.change.down), ("lora_B", graft.change.up)):
            state[f"base_model.model.{targets[-1]}.{name}.weight"] = layer.weight.detach().cpu().contiguous().clone()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_file(state, target / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": scale * rank, "target_modules": targets, "bias": "none", "task_type": None}
    (target / "adapter_config.json").write_text(json.dumps(config, indent=1))
