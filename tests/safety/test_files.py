"""Files that a user's path leads to run no code, unpack nothing that harms, and are refused by name when they are not what they seem."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import graftwork as gw
from graftwork.artifact import Artifact
from graftwork.builtin.datasets import HuggingFaceDataset, ImageFolder, Pixels, read_image
from graftwork.builtin.dual_encoder import TransformersDualEncoder
from graftwork.builtin.hub import diffusers_pipeline
from graftwork.builtin.language_models import TransformersCausalLM
from graftwork.builtin.tokenization import load_tokenizer
from graftwork.builtin.transformers_models import TransformersImageClassifier, TransformersTextEncoder
from graftwork.document import Document

from .conftest import Traps

ROOT = Path(__file__).parents[2]
SOURCES = [
    path for part in ("framework", "plugins", "contrib", "tools") for path in (ROOT / part).rglob("*.py") if "tests" not in path.parts
]
PICKLES = ["pytorch_model.bin", "model.pt", "model.ckpt", "model.pth", "data.pkl", "a.npy", "a.npz", "a.joblib", "vocab.pickle"]


def code_of(path: Path) -> str:
    """A source without its comments and docstrings' lines; what is left is near enough to what runs."""
    return re.sub(r'""".*?"""|#.*', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


# -- no pickle, in the sources -------------------------------------------------------------------------------------------------


def test_no_source_trusts_remote_code_or_unpickles() -> None:
    assert len(SOURCES) > 200
    forbidden = {
        r"trust_remote_code\W{1,4}(?!False)\w": "trust_remote_code is False or absent",
        r"allow_pickle\s*=\s*True": "arrays of objects are pickles",
        r"(pickle|dill|cloudpickle|joblib|shelve|marshal)\.(load|loads|open)\(": "pickles run code",
        r"read_pickle\(|unsafe_load|full_load|yaml\.load\(": "these build any object",
        r"(?<![\w.])(eval|exec)\(|os\.system\(": "these run what they are given",
        r"extractall\(|unpack_archive\(": "archives are read member by member",
    }
    found = [
        f"{path.relative_to(ROOT)}: {why}" for path in SOURCES for pattern, why in forbidden.items() if re.search(pattern, code_of(path))
    ]
    assert found == []


def test_every_torch_load_takes_weights_alone_and_every_weight_is_safetensors() -> None:
    for path in SOURCES:
        code = code_of(path)
        for call in re.finditer(r"torch\.load\(", code):
            assert "weights_only=True" in code[call.start() : call.start() + 200], path
        for call in re.finditer(r"(?<!def )(?<!Tokenizer\.)(?<!automatic\.)\bfrom_pretrained\(([^)]*)\)", code):
            safe = "use_safetensors=True" in call[1] or "**" in call[1]  # the settings of the two places, which hold it
            assert safe or "zoo" in path.parts or "unified_petl" in str(path), f"{path}: {call[0]}"


@pytest.mark.parametrize("name", PICKLES)
def test_each_trap_springs_when_it_is_opened_without_care(name: str, tmp_path: Path) -> None:
    """Else the tests below would prove nothing."""
    traps = Traps(tmp_path / "sprung")
    path = traps.plant(tmp_path / name)
    if path.suffix in (".npy", ".npz"):
        held = np.load(path, allow_pickle=True)
        [held[key] for key in held] if path.suffix == ".npz" else held
    elif path.suffix in (".pkl", ".pickle"):
        pickle.loads(path.read_bytes())
    elif path.suffix == ".joblib":
        pytest.importorskip("joblib").load(path)
    else:
        torch.load(path, weights_only=False)
    assert traps.sprung


# -- no pickle, in a folder ----------------------------------------------------------------------------------------------------

LOADERS = {
    "image classifier": TransformersImageClassifier,
    "text encoder": TransformersTextEncoder,
    "causal language model": TransformersCausalLM,
    "dual encoder": TransformersDualEncoder,
    "tokenizer": load_tokenizer,
    "pipeline": diffusers_pipeline,
    "dataset": HuggingFaceDataset,
    "image folder": ImageFolder,
    "artifact": lambda folder: Artifact.load(Path(folder)),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_folder_of_pickles_is_refused_and_none_is_opened(loader: str, tmp_path: Path, traps: Any, quiet_network: None) -> None:
    folder = tmp_path / "given"
    for name in PICKLES:
        traps.plant(folder / name)
        traps.plant(folder / "train" / "class" / name)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTForImageClassification"]}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}))
    for part in ("tokenizer.json", "artifact.json", "tensors.safetensors", "model.safetensors"):
        traps.plant(folder / part)
    with pytest.raises(gw.GraftworkError):
        LOADERS[loader](str(folder))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.pkl", "spiece.model", "vocab.txt", "merges.txt", "tokenizer_config.json"])
def test_a_planted_tokenizer_file_is_not_unpickled(kind: str, file: str, tmp_path: Path, traps: Any, quiet_network: None) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "config.json").write_text(json.dumps({"model_type": kind}))
    traps.plant(tmp_path / "t" / file)
    with contextlib.suppress(gw.GraftworkError):  # some it passes over, and makes an empty tokenizer; the trap says what counts
        load_tokenizer(str(tmp_path / "t"))
    assert not traps.sprung


def test_weights_beside_planted_ones_are_loaded_without_them(tmp_path: Path, traps: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "m")
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt"):
        traps.plant(tmp_path / "m" / name)
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 8, "width": 8}}
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps(settings))
    assert isinstance(TransformersImageClassifier(str(tmp_path / "m")), torch.nn.Module)


def test_a_pipeline_that_names_another_module_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    (tmp_path / "planted_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Part: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "p").mkdir()
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.30.0", "unet": ["planted_module", "Part"]}
    (tmp_path / "p" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(gw.GraftworkError, match="takes its unet from the Python module planted_module, which is not imported"):
        diffusers_pipeline(str(tmp_path / "p"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "header", ["[]", "3", '{"type": 3}', '{"type": "a", "version": "1"}', '{"type": "a", "data": []}', "[" * 100_000, '{"tensors": {}}']
)
def test_an_artifact_with_a_strange_header_is_refused(header: str, tmp_path: Path) -> None:
    Artifact("a", {"x": torch.ones(1)}).save(tmp_path / "a")
    (tmp_path / "a" / "artifact.json").write_text(header)
    with pytest.raises(gw.ArtifactError, match="holds no artifact"):
        Artifact.load(tmp_path / "a")


@pytest.mark.parametrize(
    "tag", ['!!python/object/apply:os.system ["touch ran"]', "!!python/name:os.system", "!!python/module:os", "!mine x"]
)
def test_a_tag_in_yaml_builds_nothing(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(gw.PipelineError, match=r"p\.yaml:1:9: .*the tag .* is not taken"):
        Document.parse(f"stages: {tag}", "p.yaml")
    with pytest.raises(gw.PipelineError, match=r"the tag .* is not taken"):
        Document({}).override([f"a.b={tag}"])
    assert list(tmp_path.iterdir()) == []


# -- data sets in folders ------------------------------------------------------------------------------------------------------


def test_a_data_folder_with_a_loading_script_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.csv").write_text("label\n1\n")
    (tmp_path / "mine" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(gw.DataError, match="is a loading script, which is never run"):
        HuggingFaceDataset(str(tmp_path / "mine"))
    assert not (tmp_path / "ran").exists()


def archive(path: Path, member: str, kind: bytes = tarfile.REGTYPE, size: int = 3) -> Path:
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo(member)
        info.type, info.linkname, info.size = kind, "/etc/passwd", size if kind == tarfile.REGTYPE else 0
        file.addfile(info, io.BytesIO(b"x" * size) if kind == tarfile.REGTYPE else None)
    return path


@pytest.mark.parametrize("name", ["a.tar", "a.csv", "a.zip", "a.json", "a.csv.gz"])
def test_an_archive_among_the_data_is_refused_whatever_its_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "good.csv").write_text("label\n1\n")
    if name in ("a.tar", "a.csv"):
        archive(folder / name, "../../escaped.csv")
    elif name.endswith(".gz"):
        bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
        (folder / name).write_bytes(b"".join([*(bomb.compress(bytes(2**20)) for _ in range(64)), bomb.flush()]))
    else:
        with zipfile.ZipFile(folder / name, "w") as file:
            file.writestr("../../escaped.csv", "label\n1\n")
    with pytest.raises(gw.DataError, match=f"{re.escape(name)} is a .* archive, which is not unpacked here"):
        HuggingFaceDataset(str(folder))


@pytest.mark.parametrize("place", ["../outside.csv", "/etc/passwd", "https://example.org/a.csv", "sub/../../outside.csv"])
def test_a_readme_cannot_send_the_loader_out_of_the_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "outside.csv").write_text("label\n1\n")
    (tmp_path / "given" / "a.csv").write_text("label\n1\n")
    files = json.dumps([{"split": "train", "path": place}])
    (tmp_path / "given" / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\nText\n")
    with pytest.raises(gw.DataError, match=r"README.md takes its data from .*, which leads out of the folder"):
        HuggingFaceDataset(str(tmp_path / "given"))


@pytest.mark.parametrize(
    ("member", "kind", "expected"),
    [
        ("../0123456789abcdef.jpg", tarfile.REGTYPE, "leads out of the archive"),
        ("/tmp/0123456789abcdef.jpg", tarfile.REGTYPE, "leads out of the archive"),
        ("a/0123456789abcdef.jpg", tarfile.SYMTYPE, "is a link"),
        ("a/0123456789abcdef.jpg", tarfile.LNKTYPE, "is a link"),
        ("a/0123456789abcdef.jpg", tarfile.CHRTYPE, "is a device"),
        ("a/0123456789abcdef.jpg", tarfile.FIFOTYPE, "is a device"),
    ],
)
def test_an_archive_of_landmarks_that_could_harm_is_refused(member: str, kind: bytes, expected: str, tmp_path: Path) -> None:
    archives = pytest.importorskip("graftwork_google_landmarks.archives")
    path = archive(tmp_path / "images_000.tar", member, kind)
    with pytest.raises(gw.DataError, match=f"images_000.tar is not unpacked .* {expected}"):
        archives.TarImages([path])
    assert [one.name for one in tmp_path.iterdir()] == ["images_000.tar"]


# -- images --------------------------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_an_image_over_the_bound_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "large.png").write_bytes(png(10_000, 6_000))
    with pytest.raises(gw.DataError, match=r"large.png has 10000 x 6000 pixels; max_pixels is 50000000"):
        ImageFolder(str(tmp_path))["train"][0]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pillows_own_bound_is_an_error_that_its_own_switch_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    large = Pixels(most=10**12)
    with pytest.raises(gw.DataError, match=rf"it has 10000 x 10000 pixels; PIL.Image.MAX_IMAGE_PIXELS is {Image.MAX_IMAGE_PIXELS}"):
        read_image(png(10_000, 10_000), "it", large)
    with pytest.raises(gw.DataError, match=r"it cannot be read as an image: .*exceeds limit"):
        read_image(png(60_000, 60_000), "it", large)
    small = io.BytesIO()
    Image.new("RGB", (20, 20)).save(small, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    with pytest.raises(gw.DataError, match="MAX_IMAGE_PIXELS is 399"):
        read_image(small.getvalue(), "it", large)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(small.getvalue(), "it", large).shape == (3, 20, 20)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_an_image_that_is_cut_short_or_overwritten_is_an_error_that_names_it(form: str) -> None:
    from PIL import Image

    held = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(held, form)
    whole = held.getvalue()
    for broken in (whole[: len(whole) // 2], b"", whole[:10], b"\x00" * 200):
        with pytest.raises(gw.DataError, match="the file cannot be read as an image"):
            read_image(broken, "the file", Pixels())
    read_image(whole, "the file", Pixels())


def test_an_image_of_a_folder_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "given").mkdir()
    shutil.copy(tmp_path / "secret.png", tmp_path / "given" / "good.png")
    (tmp_path / "given" / "metadata.csv").write_text("file_name,label\ngood.png,1\n../secret.png,2\n")
    with pytest.raises(gw.DataError):
        every_row(tmp_path / "given")


def every_row(folder: Path) -> list[Any]:
    rows = HuggingFaceDataset(str(folder))["train"]
    return [rows[index] for index in range(len(rows))]
