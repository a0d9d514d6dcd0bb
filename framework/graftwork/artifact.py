"""Artifacts: typed files that one component makes and another takes. Tensors in safetensors, the rest in JSON beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from graftwork.errors import ArtifactError

__all__ = ["Artifact", "StoredTensors", "fingerprint"]

HEADER = "artifact.json"
TENSORS = "tensors.safetensors"


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read from disk when it is asked for.

    Args:
        path: the file.
        device: where the tensors go.

    Raises:
        ArtifactError: if the file is missing or damaged.
    """

    def __init__(self, path: Path, device: str | torch.device = "cpu"):
        try:
            opened: Any = safe_open(path, framework="pt", device=str(device))
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path} cannot be read as safetensors: {error}") from None
        self._file = opened
        self._keys = list(opened.keys())

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._keys:
            raise KeyError(key)
        return cast(Tensor, self._file.get_tensor(key))

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@dataclass(frozen=True)
class Artifact:
    """What one component hands to another when it is neither a model nor a metric.

    Args:
        type: what it is, such as "diagonal-fisher"; a consumer asks for it by name.
        tensors: name -> tensor.
        data: everything else; must be JSON.
        version: of the type's layout.
        model: fingerprint of the model that it was made from, or "".
        dataset: fingerprint of the data that it was made from, or "".
    """

    type: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    model: str = ""
    dataset: str = ""

    def save(self, folder: Path) -> None:
        """Write the artifact into `folder`, which is made; the header comes last, so a folder with a header is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.tensors.items()}
        save_file(tensors, folder / TENSORS)
        header = {"type": self.type, "version": self.version, "model": self.model, "dataset": self.dataset, "data": dict(self.data)}
        beside = folder / f"{HEADER}.part"
        beside.write_text(json.dumps(header, indent=2))
        beside.replace(folder / HEADER)

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> Artifact:
        """Open an artifact; its tensors are read key by key.

        Raises:
            ArtifactError: if the folder holds none, or it is damaged.
        """
        try:
            header = json.loads((folder / HEADER).read_text())
            kinds = {"type": str, "version": int, "model": str, "dataset": str, "data": dict}
            if not isinstance(header, dict) or not all(isinstance(header.get(key, kind()), kind) for key, kind in kinds.items()):
                raise ValueError(f"{HEADER} is of another form")
            return cls(tensors=StoredTensors(folder / TENSORS, device), **header)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{folder} holds no artifact: {error}") from None

    def check(self, type: str, *, version: int = 1, model: nn.Module | None = None, dataset: Any = None) -> Artifact:
        """Give the artifact back if it is what the caller takes.

        Args:
            type: the type that the caller takes.
            version: the newest layout that the caller reads.
            model: the module that it will be used with; None leaves that unchecked.
            dataset: the Dataset that it will be used with; None leaves that unchecked.

        Raises:
            ArtifactError: if type or version differ, or it was made from another model or other data; both are named.
        """
        if self.type != type:
            raise ArtifactError(f'an artifact of type "{type}" is expected; this one is "{self.type}"')
        if self.version > version:
            raise ArtifactError(f'"{type}" is of layout {self.version}; this version reads up to {version}: upgrade its plugin')
        for what, made, used in (
            ("model", self.model, fingerprint(model) if model is not None else ""),
            ("dataset", self.dataset, dataset.fingerprint() if dataset is not None else ""),
        ):
            if made and used and made != used:
                raise ArtifactError(f'this "{type}" was made from {what} {made[:12]} and cannot be used with {what} {used[:12]}')
        return self


def fingerprint(module: nn.Module) -> str:
    """Hex SHA-256 of a module's parameters and buffers: names, dtypes, shapes and bytes, one tensor at a time."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
