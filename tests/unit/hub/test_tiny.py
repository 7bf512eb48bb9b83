"""Rows and models built in code."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dilm.core.errors import ConfigError
from dilm.hub.tiny import build_tiny_model, tiny_rows

NAMES = ("gpt2", "bert")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    built = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    for name, folder in built.items():
        build_tiny_model(name, folder)
    return built


@pytest.fixture(scope="session")
def tokenizers(folders: dict[str, Path]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(folder, local_files_only=True) for name, folder in folders.items()}


def test_rows_are_distinct_disjoint_and_nested() -> None:
    train, labels = tiny_rows("train", 5000)
    dev, dev_labels = tiny_rows("dev", 1500)
    assert len(set(train)) == 5000 == len(labels)
    assert len(set(dev)) == 1500 == len(dev_labels)
    assert not set(train) & set(dev)
    assert tiny_rows("train", 70) == (train[:70], labels[:70])
    assert {len(row.split()) for row in train + dev} == set(range(7, 13))
    assert 0.47 < sum(labels) / len(labels) < 0.53
    assert set(labels) == {0, 1}
    assert tiny_rows("dev", 0) == ([], [])


def test_rows_leave_the_global_draws_alone() -> None:
    random.seed(3)
    expected = random.Random(3).random()
    tiny_rows("train", 50)
    assert random.random() == expected


def test_labels_follow_the_words() -> None:
    rows = dict(zip(*tiny_rows("train", 3000), strict=True))
    assert all(label == 1 for text, label in rows.items() if text.endswith("superb"))
    assert all(label == 0 for text, label in rows.items() if text.endswith("waste of time"))
    mixed = [text for text in rows if "superb" in text and rows[text] == 0]
    assert mixed, "a word alone must not decide every row"


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'test'.*dev, train"):
        tiny_rows("test", 3)
    with pytest.raises(ConfigError, match=r"'gtp2'.*Did you mean 'gpt2'"):
        build_tiny_model("gtp2", tmp_path)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80))
def test_tokenizers_lose_nothing(name: str, tokenizers: dict[str, Any], text: str) -> None:
    tokenizer = tokenizers[name]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_special_tokens(tokenizers: dict[str, Any]) -> None:
    gpt2, bert = tokenizers["gpt2"], tokenizers["bert"]
    assert gpt2.bos_token == gpt2.eos_token == gpt2.unk_token == "<|endoftext|>"
    assert gpt2.pad_token_id not in (gpt2.eos_token_id, None)
    assert gpt2("a film")["input_ids"][0] != gpt2.bos_token_id
    pair = bert("a film", "a plot")
    ids = pair["input_ids"]
    assert ids[0] == bert.cls_token_id
    assert ids.count(bert.sep_token_id) == 2 and ids[-1] == bert.sep_token_id
    assert sorted(set(pair["token_type_ids"])) == [0, 1]
    assert bert(["a", "a film that shines"], padding=True)["input_ids"][0][-1] == bert.pad_token_id
    assert len(gpt2) == len(bert) == 512


def test_models_load(folders: dict[str, Path], tokenizers: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    writer, loading = AutoModelForCausalLM.from_pretrained(
        folders["gpt2"], local_files_only=True, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert writer.get_output_embeddings().weight is writer.get_input_embeddings().weight
    assert writer.config.n_layer == 2 and writer.config.n_embd == 64
    batch = tokenizers["gpt2"](["a film that shines"], return_tensors="pt")
    assert writer(**batch).logits.shape == (1, batch["input_ids"].shape[1], 512)

    reader, loading = AutoModelForSequenceClassification.from_pretrained(
        folders["bert"], num_labels=3, local_files_only=True, output_loading_info=True
    )
    assert set(loading["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not loading["unexpected_keys"]
    batch = tokenizers["bert"](["a film that shines", "a plot"], padding=True, return_tensors="pt")
    logits = reader(**batch).logits
    assert logits.shape == (2, 3) and torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_building_again_gives_the_same_bytes(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """In another process, with another hash seed: nothing may hang on the order of a set."""
    call = f"build_tiny_model({name!r}, Path({str(tmp_path)!r}))"
    code = f"from pathlib import Path; from dilm.hub.tiny import build_tiny_model; {call}"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "RAYON_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
    first = {file.name: file.read_bytes() for file in folders[name].iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(first)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first


@pytest.mark.parametrize("name", NAMES)
def test_building_leaves_the_global_draws_alone(name: str, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_tiny_model(name, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_the_tiny_task_can_be_learnt(folders: dict[str, Path], tokenizers: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    texts, labels = tiny_rows("train", 1000)
    dev, dev_labels = tiny_rows("dev", 200)
    draws = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(folders["bert"], num_labels=2).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(100):
            chosen = torch.randint(0, len(texts), (32,), generator=draws).tolist()
            batch = tokenizers["bert"]([texts[i] for i in chosen], padding=True, return_tensors="pt")
            model(**batch, labels=torch.tensor([labels[i] for i in chosen])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        logits = model.eval()(**tokenizers["bert"](dev, padding=True, return_tensors="pt")).logits
    assert (logits.argmax(1) == torch.tensor(dev_labels)).float().mean() > 0.9
