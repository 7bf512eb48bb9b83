"""What the baselines share, and how they and the measured code are set up.

A baseline is this project's own writing of how the authors' released scripts work: batches in the order in which they
come, padded to their longest text, and nothing that was computed once used again.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dilm.config.schema import Config, LearnerConfig, OptimizerConfig, SourceConfig
from dilm.hub.pretrained import model_folder
from dilm.launch.sweep import Composer
from dilm.models.batching import Ids

CLIP = 1.0


def configured(small: bool, keys: Sequence[str], *defaults: str) -> Config:
    """The quick start's configuration with small pretrained models, or the tiny one; without dropout in the generator.

    Dropout would draw other numbers for other batches, and the sides could not be compared.
    """
    base = ["experiment=tiny"] if small else ["experiment=quickstart", *defaults]
    return Composer().config([*base, "generator.dropout=0", *keys])


def still(config: LearnerConfig, cache: Path, folder: Path) -> LearnerConfig:
    """The same pretrained learner without dropout, as a copy in `folder`."""
    shutil.copytree(model_folder(config.name, config.source, cache), folder)
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(settings))
    return replace(config, source=SourceConfig(path=str(folder)))


def padded(sequences: Sequence[Ids], pad_token: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All sequences in one batch as long as the longest: ids_BL and mask_BL."""
    longest = max(map(len, sequences))
    ids = [[*sequence, *[pad_token] * (longest - len(sequence))] for sequence in sequences]
    mask = [[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class Trainer:
    """AdamW with a warm-up and cosine schedule, and one padded batch a step."""

    def __init__(self, model: nn.Module, config: OptimizerConfig, steps: int) -> None:
        from transformers import get_cosine_schedule_with_warmup

        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.lr, weight_decay=config.weight_decay)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, int(config.warmup * steps), steps)

    def step(self, loss: Tensor) -> float:
        """Back-propagate, and update."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss.item()
