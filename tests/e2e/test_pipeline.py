"""The whole path with models built in code: pre-train, match, generate, evaluate, collect."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dilm import evaluate as evaluate_command
from dilm import generate as generate_command
from dilm import train as train_command
from dilm.artifacts.fingerprint import candidates_artifact, generator_artifact
from dilm.artifacts.rows import read_rows
from dilm.artifacts.shards import ShardTable, read_index, read_shards
from dilm.config.schema import METHODS, Config
from dilm.core.errors import CellsFailedError, DataError, ShardError
from dilm.core.io import sha256_file
from dilm.data.corpus import load_corpus
from dilm.evaluation import finetune
from dilm.evaluation.text_metrics import NONE, copies
from dilm.stages import collect, evaluate, generate, train

Compose = Callable[..., Config]
TEACH = ("generate.real_candidates=100", "generate.teach.pool=200", "generate.teach.scored=100")
SCHEMA_1 = Path(__file__).parents[1] / "data" / "schema-1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with both generators, made once for this file."""
    return tmp_path_factory.mktemp("trained") / "runs"


@pytest.fixture
def at(tiny: Compose, trained: Path) -> Compose:
    def composed(*overrides: str) -> Config:
        config = tiny(*overrides)
        config.root = str(trained)
        return config

    train_command.run(composed())
    return composed


def test_every_method_ends_in_a_table(
    at: Compose, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = publish(read_shards(generate.run(at("method=random")).folder), tmp_path / "theirs")
    for method in METHODS:
        keys = [f"method={method}", f"published.path={published}", "evaluate.full.epochs=1"]
        generate_command.run(at(*keys))
        evaluate_command.run(at(*keys))
        evaluate_command.run(at(*keys, "learner.freeze_encoder=true"))
    rows = read_rows(trained)
    assert len(rows) == (len(METHODS) - 1) * 2 * 2 * 2 + 2 * 2  # data sets, seeds, protocols; one whole training set
    assert {row.status for row in rows} == {"done"}
    values = {(cell.method, cell.dataset, cell.seed, cell.evaluator): row.value for row in rows for cell in [row.cell]}
    for (method, *cell), value in values.items():  # the same texts are worth the same, whoever brought them
        if method == "published":
            assert value == values["random", *cell]
    tables = collect.run(trained, tmp_path / "report")
    assert [table.evaluator for table in tables] == ["finetune", "frozen"]
    assert all(set(table.methods) | {"full"} == set(METHODS) and table.below_full for table in tables)
    assert (tmp_path / "report" / "tables.md").read_text().count("| dilm |") == 2
    assert len(list((tmp_path / "report" / "plots").glob("*.svg"))) == 2 + 2 + 1  # scores, trainings, costs

    capsys.readouterr()
    evaluate_command.run(at("method=dilm"))
    assert "0 cells evaluated, 4 found" in capsys.readouterr().out


def publish(shards: ShardTable, folder: Path) -> Path:
    """Data sets as their authors would publish them: a file each, a line a text."""
    folder.mkdir()
    for dataset in np.unique(shards.dataset):
        rows = np.flatnonzero(shards.dataset == dataset)
        lines = [
            json.dumps({"sentence": text[0], "labels": int(label)}) + "\n"
            for text, label in zip(shards.table.take(rows).texts, shards.table.labels[rows], strict=True)
        ]
        (folder / f"dataset_{dataset}.jsonl").write_text("".join(lines))
    return folder


def test_ranked_texts_are_the_likeliest_of_their_half(at: Compose, trained: Path) -> None:
    chosen = read_shards(generate.run(at("method=rank")).folder)
    (folder,) = trained.glob("tiny/candidates-rank-*")
    ranked = read_shards(folder)
    everything = dict(zip(ranked.table.texts, ranked.nll, strict=True))
    assert np.isfinite(ranked.nll).all()
    for dataset in (0, 1):
        for label in (0, 1):
            rows = np.flatnonzero((chosen.dataset == dataset) & (chosen.table.labels == label))
            nll = chosen.nll[rows]
            assert (np.diff(nll) >= 0).all()
            assert [everything[text] for text in chosen.table.take(rows).texts] == nll.tolist()
            assert nll.max() < np.median(ranked.nll[ranked.table.labels == label])
    assert set(chosen.take(np.flatnonzero(chosen.dataset == 0)).table.texts) != set(
        chosen.take(np.flatnonzero(chosen.dataset == 1)).table.texts
    )


def test_herding_draws_other_data_sets_from_other_halves(at: Compose) -> None:
    chosen = read_shards(generate.run(at("method=herding")).folder)
    first, second = (set(chosen.take(np.flatnonzero(chosen.dataset == i)).table.texts) for i in (0, 1))
    assert first != second and len(first) == len(second) == 8


def test_the_whole_training_set_is_all_of_it_once(at: Compose, tiny_cache: Path) -> None:
    rows = read_shards(generate.run(at("method=full", "dpc=7")).folder)
    corpus = load_corpus(at().task, at().data, tiny_cache)
    assert rows.table.texts == corpus.train.texts and (rows.dataset == 0).all()
    assert generate.run(at("method=full", "dpc=9")) == generate.run(at("method=full"))


def test_frozen_learner_learns_the_tiny_task(at: Compose) -> None:
    generate.run(at("method=random", "dpc=100"))
    outcome = evaluate.run(at("method=random", "dpc=100", "learner.freeze_encoder=true", "evaluate.steps=200"))
    assert np.mean(outcome.values) > 65


def test_datasets_are_balanced_distinct_and_from_the_candidates(at: Compose, trained: Path) -> None:
    for method in ("lm", "k_centers"):
        generate.run(at(f"method={method}"))
        (folder,) = trained.glob(f"tiny/{method}-dpc4-*")
        rows = read_shards(folder)
        for dataset in range(2):
            mine = rows.take(np.flatnonzero(rows.dataset == dataset))
            assert np.bincount(mine.table.labels).tolist() == [4, 4]
            assert len(set(mine.table.texts)) == 8
            assert len(set(mine.seed)) == 1 and mine.seed[0] >= 0 and len(set(mine.index)) > 1
    candidates = read_shards(next(trained.glob("tiny/candidates-lm-*")))
    chosen = read_shards(next(trained.glob("tiny/lm-dpc4-*")))
    assert set(chosen.table.texts) <= set(candidates.table.texts)
    assert np.isfinite(chosen.nll).all()


@pytest.mark.parametrize("keys", ["method=lm", "method=rank", "method=lm generate.selection=teach n_datasets=3"])
def test_candidates_made_now_and_found_later_give_the_same_bytes(
    at: Compose, tiny: Compose, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str
) -> None:
    config = tiny(*keys.split(), *TEACH)
    at()
    for generator in trained.glob("tiny/*-tiny-*"):
        shutil.copytree(generator, tmp_path / "runs" / "tiny" / generator.name)
    read: list[str] = []

    def counted(folder: Path) -> ShardTable:
        read.append(folder.name.rpartition("-")[0])
        return read_shards(folder)

    monkeypatch.setattr(generate, "read_shards", counted)
    folder = generate.run(config).folder
    assert not read, "what was just written is not read back"
    made = {path.name: path.read_bytes() for path in folder.glob("*.h5")}
    shutil.rmtree(folder)
    generate.run(config)
    assert read == [f"candidates-{config.method}"]
    assert made == {path.name: path.read_bytes() for path in folder.glob("*.h5")} != {}


def test_every_row_tells_which_text_it_is(at: Compose, trained: Path, tiny_cache: Path) -> None:
    corpus = load_corpus(at().task, at().data, tiny_cache)
    for method in ("random", "rank", "full"):
        rows = read_shards(generate.run(at(f"method={method}")).folder)
        assert rows.table.texts == corpus.train.take(rows.index).texts
    candidates = read_shards(next(trained.glob("tiny/candidates-rank-*")))
    assert candidates.table.texts == corpus.train.take(candidates.index).texts and (candidates.seed == -1).all()
    generate.run(at("method=lm"))
    written, chosen = (read_shards(next(trained.glob(f"tiny/{name}-*"))) for name in ("candidates-lm", "lm-dpc4"))
    numbered = dict(zip(zip(written.table.labels, written.index, strict=True), written.table.texts, strict=True))
    assert len(numbered) == len(written) and (written.seed == -1).all() and written.index.max() < 100
    numbers = zip(chosen.table.labels, chosen.index, strict=True)
    assert chosen.table.texts == [numbered[number] for number in numbers]


def test_candidates_of_schema_1_are_chosen_from_as_before(tiny: Compose, tiny_cache: Path) -> None:
    config = tiny("method=lm", "dpc=2", "generate.pool_dpc=12")
    data_hash = load_corpus(config.task, config.data, tiny_cache).content_hash
    generator_artifact(config, data_hash).folder.mkdir(parents=True)
    shutil.copytree(SCHEMA_1 / "candidates-lm-696e4edf88fd", candidates_artifact(config, data_hash).folder)
    chosen, before = (read_shards(f) for f in (generate.run(config).folder, SCHEMA_1 / "lm-dpc2-b1e17bfd1b6e"))
    assert chosen.table.texts == before.table.texts
    for name in ("dataset", "seed", "nll", "cluster"):
        assert getattr(chosen, name).tolist() == getattr(before, name).tolist()


def test_same_seed_same_bytes_and_another_seed_others(
    at: Compose, tiny: Compose, trained: Path, tmp_path: Path
) -> None:
    generate.run(at("method=dilm"))
    again = tiny()
    train.pretrain(again)
    train.match(again)
    generate.run(tiny("method=dilm"))
    first = {path.relative_to(trained): sha256_file(path) for path in trained.glob("tiny/*dilm*/*.h5")}
    second = {path.relative_to(again.root): sha256_file(path) for path in Path(again.root).glob("tiny/*dilm*/*.h5")}
    assert first == second
    assert len(first) == 2
    weights = [next(root.glob("tiny/dilm-tiny-*/model.safetensors")) for root in (trained, Path(again.root))]
    assert sha256_file(weights[0]) == sha256_file(weights[1])
    generate.run(tiny("method=random", "seed=0"))
    generate.run(tiny("method=random", "seed=1"))
    shards = {sha256_file(path) for path in Path(again.root).glob("tiny/random-*/*.h5")}
    assert len(shards) == 2


def test_a_rerun_finds_its_artifacts(at: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    generate.run(at("method=lm"))
    capsys.readouterr()
    train_command.run(at())
    generate_command.run(at("method=lm"))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert all(line.startswith("found ") for line in said)


def test_matching_moves_the_generator_and_records_its_loss(at: Compose, trained: Path) -> None:
    lm, dilm = (next(trained.glob(f"tiny/{name}-tiny-*")) for name in ("lm", "dilm"))
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (lm, dilm))
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    records = [json.loads(line) for line in (dilm / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in records if "fresh_wellformed" in record] == [0, 3, 6]


def test_pretraining_lowers_the_held_out_likelihood(at: Compose, trained: Path) -> None:
    (lm,) = trained.glob("tiny/lm-tiny-*")
    records = [json.loads(line) for line in (lm / "metrics.jsonl").read_text().splitlines()]
    first = next(record["loss"] for record in records if "loss" in record)
    last = [record["valid_nll"] for record in records if "valid_nll" in record][-1]
    assert last < 0.5 * first


def test_fresh_pools_give_every_dataset_its_own_candidates(at: Compose, trained: Path) -> None:
    generate.run(at("method=lm", "dpc=3", "generate.pool=fresh", "generate.oversample=20"))
    folder = max(trained.glob("tiny/candidates-lm-*"), key=lambda path: path.stat().st_mtime)
    candidates = read_shards(folder)
    assert set(candidates.dataset) == {0, 1}
    first, second = (set(candidates.take(np.flatnonzero(candidates.dataset == i)).table.texts) for i in (0, 1))
    assert first != second


def test_unit_embeddings_choose_other_texts(at: Compose) -> None:
    plain, unit = (
        read_shards(generate.run(at("method=k_centers", f"generate.unit_embeddings={value}")).folder)
        for value in ("false", "true")
    )
    assert set(plain.table.texts) != set(unit.table.texts)


def test_written_copies_of_training_texts_are_not_chosen_where_asked(at: Compose, tiny_cache: Path) -> None:
    """One text in 200 of the tiny generator's is a copy. For real methods, all of whose are, nothing changes."""
    many = ("method=lm", "dpc=150", "generate.pool_dpc=400")
    plain, without = (at(*many, f"generate.exclude_copies={asked}") for asked in ("false", "true"))
    corpus = load_corpus(plain.task, plain.data, tiny_cache)
    chosen = [read_shards(generate.run(config).folder).table.texts for config in (plain, without)]
    copied = [int((copies(texts, corpus.train.texts) != NONE).sum()) for texts in chosen]
    assert copied[0] > 0 and copied[1] == 0
    real = [generate.run(at("method=random", f"generate.exclude_copies={asked}")).key for asked in ("false", "true")]
    assert real[0] == real[1]


def test_too_few_wellformed_texts_say_how_many(at: Compose, trained: Path) -> None:
    before = set(trained.glob("tiny/lm-dpc60-*"))
    with pytest.raises(DataError, match=r"only \d+ of 50 texts written for label 'negative' .* dpc=60"):
        generate.run(at("method=lm", "dpc=60"))
    assert set(trained.glob("tiny/lm-dpc60-*")) == before


def test_an_altered_shard_stops_the_evaluation(tiny: Compose) -> None:
    artifact = generate.run(tiny("method=random"))
    shard = artifact.folder / read_index(artifact.folder)["shards"][0]["file"]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ShardError, match=shard.name):
        evaluate.run(tiny("method=random"))


def test_a_failed_cell_leaves_a_row_and_its_neighbours_go_on(
    tiny: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    generate.run(tiny("method=random"))
    real = finetune.train_learner

    def sometimes(learner: object, dataset: object, config: Config, names: tuple[str | int, ...]) -> None:
        if names[-2:] == (1, 0):
            raise RuntimeError("out of luck")
        real(learner, dataset, config, names)  # type: ignore[arg-type]

    monkeypatch.setattr(finetune, "train_learner", sometimes)
    with pytest.raises(CellsFailedError, match=r"1 of 4 cells failed; the first: RuntimeError: out of luck"):
        evaluate.run(tiny("method=random"))
    rows = read_rows(tmp_path / "runs")
    assert sorted(row.status for row in rows) == ["done", "done", "done", "failed"]
    monkeypatch.undo()
    assert len(evaluate.run(tiny("method=random")).values) == 1
    assert {row.status for row in read_rows(tmp_path / "runs")} == {"done"}


def test_a_cell_alone_equals_the_cell_in_the_array(tiny: Compose, tmp_path: Path) -> None:
    generate.run(tiny("method=random"))
    evaluate.run(tiny("method=random"))
    together = {row.cell.key: row.value for row in read_rows(tmp_path / "runs")}
    (alone,) = evaluate.run(tiny("method=random", "evaluate.n_datasets=1", "n_seeds=1", "force=true")).values
    assert alone in together.values()
    first = next(row for row in read_rows(tmp_path / "runs") if (row.cell.dataset, row.cell.seed) == (0, 0))
    assert first.value == alone
