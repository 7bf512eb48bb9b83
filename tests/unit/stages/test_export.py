"""Exports: loaded as a stranger would load them, read back by this project, and honest about where they come from."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from huggingface_hub import constants

from dilm.artifacts.shards import read_shards, write_shards
from dilm.config.schema import Config
from dilm.core.errors import ConfigError, SourceError
from dilm.core.io import read_json
from dilm.data.text_table import table
from dilm.stages import audit, evaluate, export, generate, train

Compose = Callable[..., Config]


@pytest.fixture
def random_sets(tiny: Compose) -> Path:
    return generate.run(tiny("method=random")).folder


def loaded(folder: Path, cache: Path) -> datasets.DatasetDict:
    found: datasets.DatasetDict = datasets.load_dataset(str(folder), cache_dir=str(cache))
    return found


def test_a_stranger_loads_it_with_label_names_and_a_split_for_each_data_set(
    tiny: Compose, random_sets: Path, tmp_path: Path
) -> None:
    assert export.run(tiny(f"shard={random_sets}", f"to={tmp_path / 'out'}")) == f"wrote {tmp_path / 'out'}"
    found, rows = loaded(tmp_path / "out", tmp_path / "hf"), read_shards(random_sets)
    assert list(found) == ["data_set_00", "data_set_01"]
    assert found["data_set_00"].features["label"].names == ["negative", "positive"]
    for number, split in enumerate(found.values()):
        own = rows.take(np.flatnonzero(rows.dataset == number))
        assert [(text,) for text in split["sentence"]] == own.table.texts
        assert split["label"] == own.table.labels.tolist()
        assert split.column_names == ["sentence", "label"], "what is unknown of all rows is no column"


def test_its_lines_are_data_sets_that_this_project_evaluates(tiny: Compose, random_sets: Path, tmp_path: Path) -> None:
    export.run(tiny(f"shard={random_sets}", f"to={tmp_path / 'out'}"))
    again = generate.run(tiny("method=published", f"published.path={tmp_path / 'out' / 'jsonl'}"))
    assert read_shards(again.folder).table.texts == read_shards(random_sets).table.texts


def test_the_card_tells_sizes_scores_copies_and_limits(tiny: Compose, random_sets: Path, tmp_path: Path) -> None:
    keys = [f"shard={random_sets}", f"to={tmp_path / 'out'}"]
    export.run(tiny(*keys))
    before = (tmp_path / "out" / "README.md").read_text()
    assert "Not evaluated yet." in before and "Not audited" in before
    evaluate.run(tiny("method=random", "evaluator=words"))
    audit.run(tiny(*keys, "learner.freeze_encoder=true"))
    export.run(tiny(*keys, "force=true"))
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "unknown" and front["language"] == "en"
    assert [split["split"] for split in front["configs"][0]["data_files"]] == ["data_set_00", "data_set_01"]
    assert "| words | words | accuracy | " in text and "| 4 |" in text
    assert "Of 16 distinct texts 16 are training texts and 0 dev texts" in text
    assert "The training set's terms are not known" in text and "language model wrote" not in text


def test_the_sources_terms_are_on_the_card(tiny: Compose, tmp_path: Path) -> None:
    made = generate.run(tiny("method=random", "task.licence=CC BY 4.0", "seed=3"))
    export.run(tiny(f"shard={made.folder}", f"to={tmp_path / 'out'}"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "The training set's terms: CC BY 4.0." in text and "license_name: CC BY 4.0" in text


def test_provenance_follows_the_parents_to_the_generators_weights(tiny: Compose, tmp_path: Path) -> None:
    keys = ["method=lm", "pretrain.steps=2", "generate.pool_dpc=40", "task.max_length=60", "dpc=1"]
    train.pretrain(tiny(*keys))
    try:
        made = generate.run(tiny(*keys))
    except Exception as error:  # two steps rarely write a text that is well-formed
        pytest.fail(str(error))
    export.run(tiny(f"shard={made.folder}", f"to={tmp_path / 'out'}"))
    found = read_json(tmp_path / "out" / "provenance.json")
    assert found["export"] == made.key and found["counts"]["chosen"] == 4 and found["counts"]["written"] == 80
    assert 0 < found["counts"]["candidates"] <= 80
    assert set(found["code"]) >= {"version"} and "torch" in found["packages"]
    (candidates,) = found["parents"].values()
    (generator,) = candidates["parents"].values()
    assert generator["name"].startswith("lm-tiny-") and len(generator["weights"]["model.safetensors"]) == 64
    assert str(tmp_path) not in json.dumps(found), "no path of this machine is anybody's affair"
    assert set(found["seeds"]["data_sets"]) == {"0", "1"}
    assert "A language model wrote the texts" in (tmp_path / "out" / "README.md").read_text()


def test_half_characters_and_a_single_data_set(tiny: Compose, random_sets: Path, tmp_path: Path) -> None:
    index, rows = read_json(random_sets / "index.json"), read_shards(random_sets)
    own = rows.take([0, 1])
    odd = replace(own, table=table(("sentence",), [("half \ud83d",), ("é 😀",)], [0, 1]))
    attributes = {name: index[name] for name in ("key", "task", "method", "dpc", "labels")}
    folder = tmp_path / "odd"
    folder.mkdir()
    write_shards(folder, odd.with_columns(nll=np.array([1.5, np.nan])), attributes, index["about"])
    export.run(tiny(f"shard={folder}", f"to={tmp_path / 'out'}"))
    found = loaded(tmp_path / "out", tmp_path / "hf")
    assert found["train"]["sentence"] == ["half ?", "é 😀"] and found["train"]["nll"] == [1.5, None]


def test_nothing_but_an_export_is_replaced(tiny: Compose, random_sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    keys = [f"shard={random_sets}", f"to={out}"]
    export.run(tiny(*keys))  # an empty folder
    assert export.run(tiny(*keys)) == f"found {out}"
    other = generate.run(tiny("method=random", "seed=1")).folder
    with pytest.raises(ConfigError, match="name another, or force=true"):
        export.run(tiny(f"shard={other}", f"to={out}"))
    export.run(tiny(f"shard={other}", f"to={out}", "force=true"))
    assert read_json(out / "provenance.json")["seeds"]["seed"] == 1
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("precious")
    for keys in ([f"to={mine}"], [f"to={mine}", "force=true"]):
        with pytest.raises(ConfigError, match="no export of dilm"):
            export.run(tiny(f"shard={random_sets}", *keys))
    assert (mine / "thesis.tex").read_text() == "precious"
    with pytest.raises(ConfigError, match="to is not set"):
        export.run(tiny(f"shard={random_sets}"))


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a push of small files needs."""

    commits: list[str]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer({"id": "me/toy", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(content)["files"]
            ]
            self._answer({"files": files})
        elif self.path.endswith("/validate-yaml"):
            self._answer({"errors": [], "warnings": []})
        elif self.path.endswith("/commit/main"):
            self.commits.append(content)
            self._answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/datasets/me/toy/commit/{'1' * 40}",
                    "commitOid": "1" * 40,
                    "pullRequestUrl": None,
                }
            )
        elif self.path.endswith("/repos/create"):
            self._answer({"url": f"http://{self.headers['Host']}/datasets/me/toy"})
        else:
            self._answer({"error": self.path}, 404)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    Hub.commits = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_push_is_one_commit_of_the_same_files(
    tiny: Compose, random_sets: Path, hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert export.run(tiny(f"shard={random_sets}", "to=hub://me/toy")) == "pushed hub://me/toy"
    (commit,) = Hub.commits
    paths = {json.loads(line)["value"]["path"] for line in commit.splitlines() if '"file"' in line}
    assert {"README.md", "provenance.json", "data/data_set_00.parquet", "jsonl/data_set_01.jsonl"} <= paths


def test_a_hub_that_cannot_be_reached_is_one_line(
    tiny: Compose, random_sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(SourceError, match="can't be pushed") as caught:
        export.run(tiny(f"shard={random_sets}", "to=hub://me/toy"))
    assert "hf_secret" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="user/name"):
        export.run(tiny(f"shard={random_sets}", "to=hub://toy"))
