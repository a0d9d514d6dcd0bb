"""What others trained, by Hugging Face id or local folder: how it is asked for, and what is said when it cannot be had."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from graftwork.errors import GraftworkError
from graftwork.interfaces import DiffusionPipeline

__all__ = ["Precision", "diffusers_pipeline", "load", "need", "transformers_classifier", "transformers_model"]

Precision: TypeAlias = Literal["float32", "float16", "bfloat16"]
"""Type of a model's weights."""

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def need(module: str, extra: str, distribution: str = "graftwork") -> Any:
    """Import an optional dependency.

    Args:
        module: what to import.
        extra: of the distribution, that installs it.
        distribution: whose extra that is.

    Raises:
        GraftworkError: if it cannot be imported, saying what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise GraftworkError(f'{module} cannot be imported ({error}): pip install "{distribution}[{extra}]"') from error


def load(name: str, loader: Callable[[str], Any], what: str, kind: type[GraftworkError] = GraftworkError) -> Any:
    """Call a library's loader with a local folder, or with a Hugging Face id where there is no such folder.

    Args:
        name: a folder, or an id: "name" or "owner/name".
        loader: takes the one or the other.
        what: what is loaded, for messages.
        kind: what to raise.

    Raises:
        GraftworkError: saying what was tried, and what the library said.
    """
    folder = Path(name).expanduser().absolute()
    if not folder.is_dir() and not HUB_ID.fullmatch(name):
        raise kind(f'{what} "{name}": there is no folder {folder}; a Hugging Face id is "name" or "owner/name"')
    tried = f"the folder {folder}" if folder.is_dir() else f"the Hugging Face Hub, as there is no folder {folder}"
    try:
        return loader(str(folder) if folder.is_dir() else name)
    except GraftworkError:
        raise
    except Exception as error:  # each library has its own for the same few causes
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise kind(f'{what} "{name}" cannot be loaded; tried {tried}: {said}') from error


def transformers_model(automatic: str, name: str, what: str, dtype: Precision = "float32", **settings: Any) -> tuple[Any, list[str]]:
    """A model of transformers; from safetensors only, and without code of its repository.

    Args:
        automatic: the class that knows which model a checkpoint is, such as "AutoModelForCausalLM".
        name: Hugging Face id or folder.
        what: what is loaded, for messages.
        dtype: of the weights; left to itself transformers 5 keeps the checkpoint's, half precision among them.
        settings: further ones of `from_pretrained`.

    Returns:
        The model, and the names of weights that the checkpoint lacks or has in another shape, which are made anew.

    Raises:
        GraftworkError: if it cannot be loaded.
    """
    loader = getattr(need("transformers", "transformers"), automatic)
    always = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True, "dtype": getattr(torch, dtype)}
    model, found = load(name, lambda source: loader.from_pretrained(source, **always, **settings), what)
    return model, sorted(key if isinstance(key, str) else key[0] for key in (*found["missing_keys"], *found["mismatched_keys"]))


def transformers_classifier(
    automatic: str,
    name: str,
    what: str,
    outputs: int | None,
    heads: Collection[str],
    dtype: Precision = "float32",
    remedy: str = "for a new head give num_classes",
) -> Any:
    """A model of transformers with a head, which is made anew where another number of outputs is asked for.

    Args:
        automatic: as `transformers_model` takes it.
        name: Hugging Face id or folder.
        what: what is loaded, for messages.
        outputs: of the head; None keeps the checkpoint's.
        heads: names of the modules that may then lack weights.
        dtype: of the weights.
        remedy: what to do about a checkpoint without a head, for the message.

    Raises:
        GraftworkError: if it cannot be loaded, or lacks weights other than a new head's.
    """
    settings = {} if outputs is None else {"num_labels": outputs, "ignore_mismatched_sizes": True}
    model, new = transformers_model(automatic, name, what, dtype, **settings)
    if lacking := [key for key in new if outputs is None or not set(heads) & set(key.split("."))]:
        raise GraftworkError(f'{what} "{name}" has no weights for {", ".join(lacking[:4])}; {remedy}')
    return model


def diffusers_pipeline(name: str, dtype: Precision = "float32", device: str | None = None, variant: str | None = None) -> DiffusionPipeline:
    """A diffusers pipeline without its progress bar; from safetensors only, and without code of its repository.

    Args:
        name: Hugging Face id or folder.
        dtype: of the weights.
        device: where to; none leaves that to the run.
        variant: of the weight files, such as "fp16".

    Raises:
        GraftworkError: if it cannot be loaded.
    """
    settings = {"dtype": getattr(torch, dtype), "variant": variant, "use_safetensors": True, "trust_remote_code": False}
    if any(Path(name).expanduser().glob("**/*.py")):
        raise GraftworkError(f'pipeline "{name}" holds Python code, which is never run')
    pipeline = load(name, lambda source: _known_parts(source).from_pretrained(source, **settings), "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(getattr(torch, dtype))  # older versions know the loader's argument by another name, and pass it over
    return pipeline.to(device) if device else pipeline  # type: ignore[no-any-return]


def _known_parts(source: str) -> Any:
    """`diffusers.DiffusionPipeline`, once it is sure that a pipeline's index names no module but its libraries' own.

    Whatever else it names would be imported.
    """
    library = need("diffusers", "diffusers")
    for part, described in library.DiffusionPipeline.load_config(source).items():
        module = described[0] if isinstance(described, list) and described else None
        if isinstance(module, str) and module not in ("diffusers", "transformers") and not hasattr(library.pipelines, module):
            raise GraftworkError(f'pipeline "{source}" takes its {part} from the Python module {module}, which is not imported')
    return library.DiffusionPipeline
