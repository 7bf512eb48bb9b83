"""Small models of other families with random weights, saved as folders, for what must work with any of them."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig, RobertaConfig, XLNetConfig

from dilm.config.schema import LearnerConfig, SourceConfig
from dilm.hub.tiny import build_tiny_model
from dilm.models.learner import Learner

SIZES = {"num_labels": 3, "vocab_size": 512}


def _configs() -> dict[str, PretrainedConfig]:
    bert_like = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, **SIZES}
    return {
        "roberta": RobertaConfig(max_position_embeddings=80, **bert_like),
        "xlnet": XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=32, **SIZES),
    }


FAMILIES = tuple(_configs())


def learner_of(family: str, folder: Path, n_labels: int = 3) -> Learner:
    """A learner of a family: its architecture's own head, of more than one layer."""
    if not (folder / "config.json").is_file():
        build_tiny_model("bert", folder)  # whose tokenizer serves them all
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config = _configs()[family]
        config.pad_token_id = tokenizer.pad_token_id
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    settings = LearnerConfig(family, SourceConfig(path=str(folder)), pooling="model", max_length=40)
    return Learner(folder, settings, n_labels, torch.device("cpu"), folder.parent)
