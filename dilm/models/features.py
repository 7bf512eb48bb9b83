"""Features and embeddings of a pretrained encoder, computed once and cached by model and texts."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from dilm.artifacts.fingerprint import learner_science
from dilm.config.schema import LearnerConfig
from dilm.core.hashing import cached
from dilm.models.learner import Learner, build_learner, forward_all


class FeatureStore:
    """Vectors of texts under one untrained encoder, in files below `cache`; the model is loaded when one is missing."""

    def __init__(self, config: LearnerConfig, n_labels: int, cache: Path, device: torch.device, precision: str) -> None:
        self.config = config
        self.n_labels = n_labels
        self.cache = cache
        self.device = device
        self.precision = precision
        self._learner: Learner | None = None

    @property
    def learner(self) -> Learner:
        """The encoder, loaded by need. It must stay untrained: its vectors are cached under the pretrained weights."""
        if self._learner is None:
            self._learner = build_learner(self.config, self.n_labels, self.cache, self.device)
        return self._learner

    def get(self, texts: Sequence[tuple[str, ...]], what: str) -> Tensor:
        """Vectors of the texts, (N, D) in fp32 on the CPU; `what` is `features` or `embed`, as `Learner` has them."""
        digest = hashlib.sha256()
        for text in texts:
            digest.update(("\x1e" + "\x1f".join(text)).encode("utf-8", "surrogatepass"))
        identity = {
            "learner": learner_science(self.config),
            "what": what,
            "precision": self.precision,
            "texts": digest.hexdigest(),
        }

        def content() -> bytes:
            return save({what: forward_all(self.learner, self.learner.tokenize(texts), what, self.precision)})

        return load_file(cached(self.cache / "features", f"{self.config.name}-*.safetensors", identity, content))[what]
