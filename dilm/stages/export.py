"""Export: a folder that `datasets.load_dataset` loads, with a data card and everything that made it."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dilm.artifacts.artifact import code_and_packages
from dilm.artifacts.huggingface import columns_of, features_of, splits_of
from dilm.artifacts.shards import Inspected, inspected
from dilm.config.schema import Config
from dilm.core.errors import ConfigError, DilmError, SourceError
from dilm.core.io import TEMPORARY, new_folder, read_json, sha256_file, write_bytes, write_json
from dilm.data.text_table import LABELS
from dilm.report.card import card

HUB = "hub://"
PLACES = ("root", "cache", "tracking_uri", "shard", "to")  # of one machine: nobody else's affair
PROVENANCE = "provenance.json"


def run(config: Config) -> str:
    """Export the data sets of `shard=` to `to=`; what was done, in a line. Raises ConfigError and SourceError."""
    if config.to is None:
        raise ConfigError("to is not set; name a folder, such as to=exported/sst2, or hub://user/name.")
    subject = inspected(config)
    if config.to.startswith(HUB):
        return _push(config, subject, config.to.removeprefix(HUB))
    folder = Path(config.to).expanduser()
    if _stands(folder, subject, config.force):
        return f"found {folder}"
    with new_folder(folder.absolute()) as temporary:
        write_export(config, subject, temporary)
    return f"wrote {folder}"


def _stands(folder: Path, subject: Inspected, force: bool) -> bool:
    """Whether the very export stands there. Raises ConfigError for what should not be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    provenance = folder / PROVENANCE
    found = read_json(provenance) if provenance.is_file() and (folder / "README.md").is_file() else {}
    if "export" not in found:
        raise ConfigError(f"to {str(folder)!r} is there and no export of dilm; name another folder.")
    if force:
        return False
    if found["export"] != subject.key:
        raise ConfigError(f"to {str(folder)!r} has the export of {found['export']}; name another, or force=true.")
    return True


def write_export(config: Config, subject: Inspected, folder: Path) -> None:
    """Fill a folder with Parquet, JSON lines, the card and the provenance."""
    from datasets import Dataset

    splits, features = splits_of(subject.rows), features_of(subject.index, subject.rows)
    for name, rows in splits.items():
        columns = columns_of(subject.index["fields"], rows, features)
        path = folder / "data" / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        Dataset.from_dict(columns, features=features).to_parquet(path)
        _write_lines(folder / "jsonl" / f"{name}.jsonl", subject.index["fields"], columns)
    write_bytes(folder / "README.md", card(subject, list(splits), Path(config.root)).encode())
    write_json(folder / PROVENANCE, provenance_of(subject))


def _write_lines(path: Path, fields: list[str], columns: dict[str, list[Any]]) -> None:
    """The lines that `method=published` reads: the task's fields, and the label's number."""
    rows = zip(*(columns[name] for name in fields), columns["label"], strict=True)
    lines = [json.dumps(dict(zip([*fields, LABELS], row, strict=True)), ensure_ascii=False) + "\n" for row in rows]
    write_bytes(path, "".join(lines).encode())


def provenance_of(subject: Inspected) -> dict[str, Any]:
    """Everything that made the data sets: settings, seeds, versions, hashes, counts, and the same of all parents."""
    own, about = _provenance(subject.folder), subject.index["about"]
    numbers, first = np.unique(subject.rows.dataset, return_index=True)
    drawn = zip(numbers, subject.rows.seed[first], strict=True)
    seeds = {str(number): int(seed) for number, seed in drawn if number >= 0 and seed >= 0}
    return {
        "export": subject.key,
        "exported_by": code_and_packages(),
        "config": {name: value for name, value in about["config"].items() if name not in PLACES},
        "seeds": {"seed": about["config"]["seed"], "data_sets": seeds},
        "counts": {"chosen": len(subject.rows), "candidates": about.get("candidates"), **_written(subject)},
        "shards": {entry["file"]: entry["sha256"] for entry in subject.index["shards"]},
        **own,
        "parents": _parents(subject.folder.parent, own.get("science", {})),
    }


def _provenance(folder: Path) -> dict[str, Any]:
    """What an artifact's own provenance says, without its configuration and job."""
    path = folder / PROVENANCE
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return {name: found[name] for name in ("science", "code", "packages", "time") if name in found}


def _parents(task_folder: Path, science: dict[str, Any]) -> dict[str, Any]:
    """The artifacts that an artifact was made from, where they still stand beside it, with their weights' hash."""
    key = science.get("parent")
    if key is None:
        return {}
    folder = next((path for path in task_folder.glob(f"*-{key}") if TEMPORARY not in path.name), None)
    if folder is None:
        return {key: "no longer there"}
    own = _provenance(folder)
    weights = {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
    described = {"name": folder.name, **own, "weights": weights, "parents": _parents(task_folder, own["science"])}
    return {key: described}


def _written(subject: Inspected) -> dict[str, int]:
    """How many texts a generator wrote, where its pool still stands beside the data sets."""
    key = _provenance(subject.folder).get("science", {}).get("parent")
    index = next(subject.folder.parent.glob(f"candidates-*-{key}/index.json"), None) if key else None
    found = read_json(index)["about"] if index else subject.index["about"]
    return {"written": found["written"]} if "written" in found else {}


def _push(config: Config, subject: Inspected, name: str) -> str:
    """Push an export to the hub, whole or not at all: it is one commit."""
    from huggingface_hub import HfApi

    if name.count("/") != 1 or not all(name.split("/")):
        raise ConfigError(f"to {config.to!r}: after hub:// stands user/name.")
    folder = Path(tempfile.mkdtemp(prefix="dilm-export-"))
    try:
        write_export(config, subject, folder)
        api = HfApi()
        api.create_repo(name, repo_type="dataset", exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, repo_type="dataset", commit_message=f"dilm {subject.key}")
    except DilmError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SourceError(
            f"{config.to} can't be pushed ({reason}). Log in with `hf auth login` or set $HF_TOKEN where the hub can "
            "be reached, or export to a folder."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return f"pushed {config.to}"
