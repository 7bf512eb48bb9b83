"""The learner f_θ: an encoder and a linear head.

Shape suffixes: B texts, L tokens, D features, C labels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from dilm.batching import by_length, pad
from dilm.config import LearnerConfig
from dilm.device import attention, autocast, seeded
from dilm.errors import ConfigError
from dilm.keys import derive_seed
from dilm.matching import head_gradients
from dilm.sources import model_folder

TOKENS_PER_BATCH = 8192  # of forward passes without gradients, padding included
CPU_TOKENS = 512  # the same with gradients, on a CPU


class Learner(nn.Module):
    """A text classifier whose last layer is linear, which is what gradient matching looks at.

    With `pooling=model` the head is the architecture's own (AutoModelForSequenceClassification) and its features are
    whatever reaches its last linear layer; with `mean` and `cls` it is one linear layer on the pooled encoder.
    """

    def __init__(self, folder: Path, config: LearnerConfig, n_labels: int, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self.n_labels = n_labels
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loading = {"local_files_only": True, "dtype": torch.float32, "attn_implementation": attention(device)}
        self.classifier: nn.Module | None = None
        if config.pooling == "model":
            classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=n_labels, **loading)
            classifier.config.pad_token_id = self.pad_token
            self.classifier = classifier
            self.encoder: nn.Module = classifier.base_model
            self.head = _last_linear(classifier, n_labels, config.name)
        else:
            encoder = AutoModel.from_pretrained(folder, **loading)
            self.encoder = encoder
            self.head = nn.Linear(encoder.config.hidden_size, n_labels)
        self.dropout = nn.Dropout(float(getattr(self.encoder.config, "hidden_dropout_prob", 0.0)))
        # Cloned: a bare state_dict() follows the weights while they train, and "fresh" would mean "where we are".
        self._initial = {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}

    @property
    def pad_token(self) -> int:
        """Id that fills short rows; the mask, not the id, tells what is padding."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(int(token) for token in ids if token is not None)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def fresh(self, *names: str | int) -> "Learner":
        """Back to the pretrained encoder, with a new head drawn from the seed of `names`."""
        self.load_state_dict(self._initial)
        with seeded(derive_seed("head", *names), self.device), torch.no_grad():
            nn.init.normal_(self.head.weight, std=float(getattr(self.encoder.config, "initializer_range", 0.02)))
            if self.head.bias is not None:
                self.head.bias.zero_()
        return self

    def tokenize(self, texts: Sequence[tuple[str, ...]]) -> list[list[int]]:
        """Token ids of single texts or pairs, cut at `max_length`."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        return self.tokenizer(*columns, truncation=True, max_length=self.config.max_length)["input_ids"]

    def features(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """What the linear head reads: features_BD."""
        if self.classifier is None:
            hidden_BLD = self.encoder(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
            return self.dropout(pool(hidden_BLD, mask_BL, self.config.pooling))
        caught: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            self.classifier(input_ids=ids_BL, attention_mask=mask_BL)
        finally:
            hook.remove()
        if caught[0].dim() == 2:
            return caught[0]
        return pool(caught[0], mask_BL, "last")  # decoders classify at every token, and their last one counts

    def embed(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """The embedding in which texts are clustered and selected: embeddings_BD."""
        hidden_BLD = self.encoder(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        return pool(hidden_BLD, mask_BL, self.config.embedding)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Class scores logits_BC."""
        return self.head(self.features(ids_BL, mask_BL))


def pool(hidden_BLD: Tensor, mask_BL: Tensor, how: str) -> Tensor:
    """One vector a text: of the first token (cls), of the last real token (last), or the mean over real tokens."""
    if how == "cls":
        return hidden_BLD[:, 0]
    if how == "last":
        return hidden_BLD[torch.arange(len(hidden_BLD), device=hidden_BLD.device), mask_BL.sum(1) - 1]
    weights_BL1 = mask_BL[:, :, None].to(hidden_BLD.dtype)
    return (hidden_BLD * weights_BL1).sum(1) / weights_BL1.sum(1)


def _last_linear(model: nn.Module, n_labels: int, name: str) -> nn.Linear:
    linear = [part for part in model.modules() if isinstance(part, nn.Linear) and part.out_features == n_labels]
    if not linear:
        raise ConfigError(
            f"learner {name!r}: no linear layer with {n_labels} outputs. Set learner.pooling=mean or cls."
        )
    return linear[-1]


@torch.inference_mode()
def forward_all(learner: Learner, tokens: Sequence[Sequence[int]], what: str, precision: str) -> Tensor:
    """`features`, `embed` or `forward` of tokenised texts in eval mode: (N, ·), fp32, on the CPU, in their order."""
    was_training = learner.training
    learner.eval()
    parts: list[tuple[np.ndarray, Tensor]] = []
    for rows in by_length([len(ids) for ids in tokens], TOKENS_PER_BATCH):
        ids_BL, mask_BL = pad([tokens[row] for row in rows], learner.pad_token, learner.device)
        with autocast(learner.device, precision):
            parts.append((rows, getattr(learner, what)(ids_BL, mask_BL).float().cpu()))
    learner.train(was_training)
    result = torch.empty(len(tokens), parts[0][1].shape[1])
    for rows, values in parts:
        result[torch.as_tensor(rows)] = values
    return result


def text_loss(learner: Learner, tokens: Sequence[Sequence[int]], labels: np.ndarray, precision: str) -> Tensor:
    """Mean cross-entropy of a batch of tokenised texts, ready for backward."""
    on_cpu = learner.device.type == "cpu"  # there padding costs more than several calls do
    budget = CPU_TOKENS if on_cpu else len(tokens) * max(len(ids) for ids in tokens)
    sums = []
    for rows in by_length([len(ids) for ids in tokens], budget):
        ids_BL, mask_BL = pad([tokens[row] for row in rows], learner.pad_token, learner.device)
        with autocast(learner.device, precision):
            logits_BC = learner(ids_BL, mask_BL)
        targets_B = torch.as_tensor(labels[rows], device=learner.device)
        sums.append(nn.functional.cross_entropy(logits_BC.float(), targets_B, reduction="sum"))
    return torch.stack(sums).sum() / len(tokens)


@torch.no_grad()
def text_gradients(learner: Learner, tokens: Sequence[Sequence[int]], labels_B: np.ndarray, precision: str) -> Tensor:
    """Gradient of each text's loss with respect to the head, gradients_BP in fp32, with no backward pass; eval mode."""
    features_BD = forward_all(learner, tokens, "features", precision).to(learner.device)
    labels = torch.as_tensor(labels_B, device=learner.device)
    return head_gradients(features_BD, learner.head(features_BD), labels, learner.head.bias is not None)


def label_means(gradients_BP: Tensor, labels_B: np.ndarray, n_labels: int) -> Tensor:
    """Mean gradient of each label's texts, means_CP."""
    return torch.stack([gradients_BP[labels_B == label].mean(0) for label in range(n_labels)])


def build_learner(config: LearnerConfig, n_labels: int, cache: Path, device: torch.device) -> Learner:
    """The pretrained learner on its device, fetched by need."""
    return Learner(model_folder(config.name, config.source, cache), config, n_labels, device).to(device)
