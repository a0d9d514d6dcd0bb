"""Merging checkpoints on disk, key by key: models that are larger than memory need none of it at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from graftwork import Artifact, ArtifactError, DataError, GraftworkError
from graftwork.artifact import StoredTensors
from graftwork_fisher_merging.fisher import ARTIFACT, digest
from graftwork_fisher_merging.names import CAUSAL, Choice, Unmatched, check_count, matching_names
from graftwork_fisher_merging.weighted_mean import check_coefficients, fisher_norms, merged_tensors, normalized

__all__ = ["Checkpoint", "MergedCheckpoint", "Stored", "merge_checkpoints", "write_safetensors"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = {"F64", "F32", "F16", "BF16"}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Last words of buffers of batch norm, which are never averaged."""


@dataclass(frozen=True)
class Stored:
    """A tensor that has not been read.

    Args:
        dtype: as safetensors writes it, such as "F32".
        shape: of the tensor.
    """

    dtype: str
    shape: tuple[int, ...]


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a folder that `save_pretrained` wrote, in one file or in shards, each read when it is asked for.

    Args:
        folder: holds model.safetensors, or shards with an index.

    Attributes:
        specs: name -> type and shape, without reading the tensor.

    Raises:
        GraftworkError: if it holds no safetensors; pickles are never read.
        ArtifactError: if a file is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        if (self.folder / INDEX).is_file():
            try:
                files = sorted(set(json.loads((self.folder / INDEX).read_text())["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise GraftworkError(f"{self.folder / INDEX} is no index of shards: {error}") from None
        elif (self.folder / WEIGHTS).is_file():
            files = [WEIGHTS]
        else:
            raise GraftworkError(f"{self.folder} holds neither {WEIGHTS} nor {INDEX}; checkpoints are read from safetensors alone")
        if stray := [name for name in files if Path(name).name != name]:
            raise GraftworkError(f"{self.folder / INDEX} names a file outside of its folder: {stray[0]}")
        self._places: dict[str, StoredTensors] = {}
        self.specs: dict[str, Stored] = {}
        for name in files:
            shard = StoredTensors(self.folder / name)
            self._places |= dict.fromkeys(shard, shard)
            with safe_open(self.folder / name, framework="pt") as opened:
                for key in shard:
                    part = opened.get_slice(key)
                    self.specs[key] = Stored(part.get_dtype(), tuple(part.get_shape()))

    def __getitem__(self, key: str) -> Tensor:
        return self._places[key][key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True)
class MergedCheckpoint:
    """What became of every tensor.

    Args:
        folder: that was written.
        merged: names of what was merged.
        kept: names of what is the target's.
    """

    folder: Path
    merged: tuple[str, ...]
    kept: tuple[str, ...]


class _Renamed(Mapping[str, Tensor]):
    """Tensors whose names lack a prefix that their file has."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str):
        self._tensors, self._prefix = tensors, prefix

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[f"{self._prefix}{key}"]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._tensors if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def merge_checkpoints(
    models: Sequence[str | Path],
    out: str | Path,
    fishers: Sequence[Artifact] | None = None,
    coefficients: Sequence[float] | None = None,
    *,
    mergeable: Choice = None,
    unmatched: Unmatched = "refuse",
    floor: float = 1e-6,
    favor_target: bool = True,
    normalize: bool = True,
    prefix: str = "",
) -> MergedCheckpoint:
    """Merge folders of `save_pretrained` into one, reading one tensor of each at a time.

    A few tensors are held at once, whatever the models' size and number. Types are the target's; sums are in float32. The target's
    other files (configuration, tokenizer) are copied. Buffers, and whatever the Fishers do not cover, are the target's.

    Args:
        models: folders, the target's first.
        out: a new or empty folder.
        fishers: artifacts of `diagonal_fisher` or `fisher-diagonal`, one a model, such as `Artifact.load` opens; None averages plainly.
        coefficients: lambda, one a model; None for 1/M each.
        mergeable: which tensors are merged: a regular expression that is searched for in names, or a function of the name; None takes
            those of the base model that config.json names, without the head.
        unmatched: what becomes of tensors that some model lacks, or has in another shape.
        floor: the least that a Fisher's entry counts.
        favor_target: floor the target's Fisher alone.
        normalize: divide each coefficient by the norm of its model's Fisher.
        prefix: what stands before the checkpoint's names in the Fishers': "model." for those made of graftwork's loaders.

    Returns:
        What was merged, and what was kept.

    Raises:
        GraftworkError: if a folder holds no safetensors, `out` is not empty, or there are not as many Fishers as models.
        ValueError: if coefficients are wrong or the floor is negative.
        DataError: if the checkpoints differ, or which tensors are the head's cannot be told.
        ArtifactError: if a Fisher lacks a tensor, was made from other weights, or is damaged.
    """
    check_count("Fishers", fishers, len(models))
    if not floor >= 0:
        raise ValueError(f"floor is not negative; found {floor}")
    given = check_coefficients([1 / len(models)] * len(models) if coefficients is None else coefficients, len(models))
    target = Path(out).expanduser()
    if target.exists() and any(target.iterdir()):
        raise GraftworkError(f"{target} is not empty: a merged checkpoint needs a folder of its own")
    sources = [Checkpoint(folder) for folder in models]
    names = _names(sources, mergeable, unmatched)
    precisions: list[Mapping[str, Tensor]] | None = None
    if fishers is not None:
        precisions = [_Renamed(fisher.check(ARTIFACT).tensors, prefix) for fisher in fishers]
        names = [name for name in names if any(name in fisher for fisher in precisions)]
        if not names:
            raise DataError(f'the Fishers cover none of the tensors to merge; do their names begin with the prefix "{prefix}"?')
        for index, (source, fisher) in enumerate(zip(sources, fishers, strict=True)):
            _check_weights(index, source, fisher, names, prefix)
        norms = fisher_norms(precisions, names)
        given = normalized(given, norms) if normalize else given
    target.mkdir(parents=True, exist_ok=True)
    merged = merged_tensors(sources, names, given, precisions, floor, favor_target)
    write_safetensors(target / WEIGHTS, sources[0].specs, _in_order(sources[0], set(names), merged))
    for file in sources[0].folder.iterdir():
        if file.is_file() and file.suffix in (".json", ".txt", ".model", ".md", ".jinja") and file.name != INDEX:
            shutil.copyfile(file, target / file.name)
    chosen = set(names)
    return MergedCheckpoint(target, tuple(names), tuple(name for name in sources[0] if name not in chosen))


def _check_weights(index: int, source: Checkpoint, fisher: Artifact, names: Sequence[str], prefix: str) -> None:
    """Raise ArtifactError unless a Fisher was made from these very tensors, as far as it says."""
    made: Mapping[str, str] = fisher.data.get("weights", {})
    for name in names:
        if made.get(f"{prefix}{name}", found := digest(source[name])) != found:
            raise ArtifactError(f'the Fisher of model {index} was made from other weights than {source.folder}: "{name}" differs')


def _in_order(target: Checkpoint, names: set[str], merged: Iterator[tuple[str, Tensor]]) -> Iterator[Tensor]:
    """Every tensor of the target in its order, those that are merged in their place."""
    for name in target:
        if name not in names:
            yield target[name]
            continue
        found, tensor = next(merged)
        assert found == name
        yield tensor


def _names(sources: Sequence[Checkpoint], mergeable: Choice, unmatched: Unmatched) -> list[str]:
    """What is merged, in the target's order."""
    floats = [
        {name: spec for name, spec in source.specs.items() if spec.dtype in FLOATS and name.rpartition(".")[2] not in STATISTICS}
        for source in sources
    ]
    heads = set[str]() if mergeable is not None else set[str]().union(*(_head_names(source) for source in sources))
    names = set(matching_names(floats, mergeable, heads, unmatched))
    return [name for name in sources[0] if name in names]


def _head_names(source: Checkpoint) -> set[str]:
    """Names that lie outside of the base model of the class that config.json names; none for causal language models."""
    from graftwork.builtin.hub import need

    try:
        architecture = json.loads((source.folder / "config.json").read_text())["architectures"][0]
        base: Any = getattr(need("transformers", "transformers"), architecture).base_model_prefix
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise DataError(
            f"{source.folder} has no config.json that names a class of transformers: say what is merged with `mergeable`"
        ) from None
    if architecture.endswith(CAUSAL) or not any(name.startswith(f"{base}.") for name in source):
        return set()
    return {name for name in source if not name.startswith(f"{base}.")}


def write_safetensors(path: Path, specs: Mapping[str, Stored], tensors: Iterator[Tensor]) -> None:
    """Write a safetensors file tensor by tensor; beside its place, and renamed there when it is whole.

    Args:
        path: the file.
        specs: name -> type and shape, in the order of `tensors`.
        tensors: as `specs` says; read once, one held at a time.

    Raises:
        ValueError: if a tensor is not of the size that its spec says.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    sizes, start = [], 0
    for name, spec in specs.items():
        size = _bits(spec.dtype) * torch.Size(spec.shape).numel() // 8
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start, start + size]}
        sizes.append((name, size))
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    beside = path.with_name(f"{path.name}.part")
    with beside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for (name, size), tensor in zip(sizes, tensors, strict=True):
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            if data.nbytes != size:
                raise ValueError(f"{name} has {data.nbytes} bytes where {size} were announced")
            file.write(data.data)
    beside.replace(path)


def _bits(dtype: str) -> int:
    """Width of a safetensors type: its number, as in F32 or I64; a truth value takes a byte, and the 8-bit floats say so first."""
    if dtype == "BOOL":
        return 8
    return 8 if dtype.startswith("F8") else int("".join(character for character in dtype if character.isdigit()))
