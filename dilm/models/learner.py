"""The learner f_θ: an encoder and a head whose last layer is linear.

Shape suffixes: B texts, L tokens, D features, C labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from dilm.config.schema import LearnerConfig
from dilm.core.errors import ConfigError
from dilm.core.hashing import derive_seed
from dilm.data.text_table import TextTable
from dilm.distributed.device import attention, autocast, seeded, to_fp32
from dilm.hub.pretrained import model_folder, source_id
from dilm.models.batching import Ids, Tokens, by_length, kept_tokens, pad, tokenized

TOKENS_PER_BATCH = 8192  # of forward passes without gradients, padding included
CPU_TOKENS = 512  # the same with gradients, on a CPU


class Learner(nn.Module):
    """A text classifier: any AutoModelForSequenceClassification, or an encoder and a linear layer on its pooled states.

    With `pooling=model` the head is the architecture's, of one layer (BERT) or more (RoBERTa, XLNet, ELECTRA), and its
    features are whatever reaches its last linear layer; with `mean` and `cls` it is one linear layer. Raises
    ConfigError where an architecture's head has no linear layer with an output for each label.
    """

    def __init__(self, folder: Path, config: LearnerConfig, n_labels: int, device: torch.device, cache: Path) -> None:
        super().__init__()
        self.config = config
        self.cache = cache
        self.n_labels = n_labels
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loading = {"local_files_only": True, "dtype": torch.float32, "attn_implementation": attention(device)}
        self.classifier: nn.Module | None = None
        if config.pooling == "model":
            with seeded(derive_seed("new layers"), torch.device("cpu")):  # such as a pooler that the folder lacks
                classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=n_labels, **loading)
            classifier.config.pad_token_id = self.pad_token
            self.classifier = classifier
            self.encoder: Any = classifier.base_model
            self.head = _last_linear(classifier, n_labels, config.name)
        else:
            encoder = AutoModel.from_pretrained(folder, **loading)
            self.encoder = encoder
            self.head = nn.Linear(encoder.config.hidden_size, n_labels)
        encoded = {id(parameter) for parameter in self.encoder.parameters()}
        modules = list((self.classifier or self.head).modules())
        self.head_layers = [part for part in modules if encoded.isdisjoint(map(id, part.parameters()))]
        self.segments = _segments(self.encoder.config)
        self.pads_left = self.encoder.config.model_type == "xlnet"  # whose summary is of a text's last place
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
        """Reset to the pretrained encoder and a new head, all its layers seeded by `names`; returns self."""
        self.load_state_dict(self._initial)
        spread = float(getattr(self.encoder.config, "initializer_range", 0.02))
        with seeded(derive_seed("head", *names), self.device), torch.no_grad():
            for layer in self.head_layers:
                _draw(layer, spread)
        return self

    def tokenize(self, texts: Sequence[tuple[str, ...]]) -> Tokens:
        """Token ids of single texts or pairs, cut at `max_length`."""
        return tokenized(self._tokenize, texts)

    def tokenize_once(self, table: TextTable) -> Tokens:
        """A table's token ids, kept in the cache by where the tokenizer comes from and what determines the rest."""
        identity = {
            "source": source_id(self.config.source),
            "max_length": self.config.max_length,
            "rows": table.content_hash,
        }
        return kept_tokens(self.cache, self.config.name, identity, lambda: self.tokenize(table.texts))

    def _tokenize(self, texts: Sequence[tuple[str, ...]]) -> list[list[int]]:
        columns = [list(column) for column in zip(*texts, strict=True)]
        return self.tokenizer(*columns, truncation=True, max_length=self.config.max_length)["input_ids"]

    def use_eager_attention(self) -> None:
        """Switch to attention that can be differentiated twice, as the fused kernels can't."""
        self.encoder.set_attn_implementation("eager")

    def pad(self, tokens: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        """A batch ids_BL and its mask_BL, on the side on which the architecture wants its padding."""
        return pad(tokens, self.pad_token, self.device, left=self.pads_left)

    def _inputs(self, ids_BL: Tensor, mask_BL: Tensor) -> dict[str, Tensor]:
        inputs = {"input_ids": ids_BL, "attention_mask": mask_BL}
        if self.segments > 1 and self.tokenizer.sep_token_id is not None:
            cls = self.tokenizer.cls_token_id if self.segments > 2 else None
            inputs["token_type_ids"] = segment_ids(ids_BL, self.tokenizer.sep_token_id, cls)
        return inputs

    def features(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """What the head's last linear layer reads: features_BD."""
        if self.classifier is None:
            hidden_BLD = self.encoder(**self._inputs(ids_BL, mask_BL)).last_hidden_state
            return self.dropout(pool(hidden_BLD, mask_BL, self.config.pooling))
        caught: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            self.classifier(**self._inputs(ids_BL, mask_BL))
        finally:
            hook.remove()
        if caught[0].dim() == 2:
            return caught[0]
        return pool(caught[0], mask_BL, "last")  # decoders classify at every token, and their last one counts

    def embed(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """The embedding in which texts are clustered and selected: embeddings_BD."""
        hidden_BLD = self.encoder(**self._inputs(ids_BL, mask_BL)).last_hidden_state
        return pool(hidden_BLD, mask_BL, self.config.embedding)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Class scores logits_BC."""
        return self.head(self.features(ids_BL, mask_BL))


def pool(hidden_BLD: Tensor, mask_BL: Tensor, how: str) -> Tensor:
    """One vector a text: of its first token (cls), of its last (last), or the mean over its tokens, without padding."""
    if how in ("cls", "last"):
        places_B = mask_BL.argmax(1)
        if how == "last":
            places_B = places_B + mask_BL.sum(1) - 1
        return hidden_BLD[torch.arange(len(hidden_BLD), device=hidden_BLD.device), places_B]
    weights_BL1 = mask_BL[:, :, None].to(hidden_BLD.dtype)
    return (hidden_BLD * weights_BL1).sum(1) / weights_BL1.sum(1)


def _draw(layer: nn.Module, spread: float) -> None:
    """New weights for one layer of a head, drawn as transformers draws them."""
    if isinstance(layer, nn.LayerNorm):
        layer.reset_parameters()
    elif isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=spread)
        if layer.bias is not None:
            layer.bias.zero_()


def _segments(config: PretrainedConfig) -> int:
    """How many kinds of segments an architecture tells apart: 2 as BERT (a text, its partner), 3 as XLNet, or none."""
    return 3 if config.model_type == "xlnet" else int(getattr(config, "type_vocab_size", 0) or 0)


def segment_ids(ids_BL: Tensor, sep: int, cls: int | None = None) -> Tensor:
    """The segment of every token, as the tokenizers of BERT and XLNet number them.

    0 up to the first separator, 1 after it; where `cls` is given, as XLNet's last token, that is 2.
    """
    is_sep_BL = (ids_BL == sep).long()
    segments_BL = (is_sep_BL.cumsum(1) - is_sep_BL).clamp(max=1)
    return segments_BL if cls is None else segments_BL.masked_fill(ids_BL == cls, 2)


def _last_linear(model: nn.Module, n_labels: int, name: str) -> nn.Linear:
    linear = [part for part in model.modules() if isinstance(part, nn.Linear) and part.out_features == n_labels]
    if not linear:
        raise ConfigError(
            f"learner {name!r}: no linear layer with {n_labels} outputs. Set learner.pooling=mean or cls."
        )
    return linear[-1]


@torch.inference_mode()
def forward_all(learner: Learner, tokens: Sequence[Ids], what: str, precision: str) -> Tensor:
    """`features`, `embed` or `forward` of tokenised texts in eval mode: (N, ·), fp32, on the CPU, in their order."""
    packed = Tokens.of(tokens)
    was_training = learner.training
    learner.eval()
    parts: list[tuple[np.ndarray, Tensor]] = []
    for rows in by_length(packed.lengths, TOKENS_PER_BATCH):
        ids_BL, mask_BL = learner.pad(packed.take(rows))
        with autocast(learner.device, precision):
            parts.append((rows, to_fp32(getattr(learner, what)(ids_BL, mask_BL)).cpu()))
    learner.train(was_training)
    result = torch.empty(len(packed), parts[0][1].shape[1], dtype=parts[0][1].dtype)
    for rows, values in parts:
        result[torch.as_tensor(rows)] = values
    return result


def text_loss(learner: Learner, tokens: Sequence[Ids], labels: np.ndarray, precision: str) -> Tensor:
    """Mean cross-entropy in nats of a batch of tokenised texts, a scalar ready for backward."""
    packed = Tokens.of(tokens)
    on_cpu = learner.device.type == "cpu"  # there padding costs more than several calls do
    parts = by_length(packed.lengths, CPU_TOKENS if on_cpu else len(packed) * packed.lengths.max())
    sums = [text_losses(learner, packed.take(rows), labels[rows], precision).sum() for rows in parts]
    return torch.stack(sums).sum() / len(packed)


def text_losses(learner: Learner, tokens: Sequence[Ids], labels: np.ndarray, precision: str) -> Tensor:
    """Cross-entropy in nats of each text of one padded batch, losses_B, ready for backward."""
    ids_BL, mask_BL = learner.pad(tokens)
    with autocast(learner.device, precision):
        logits_BC = learner(ids_BL, mask_BL)
    return nn.functional.cross_entropy(
        to_fp32(logits_BC), torch.as_tensor(labels, device=learner.device), reduction="none"
    )


def build_learner(config: LearnerConfig, n_labels: int, cache: Path, device: torch.device) -> Learner:
    """The pretrained learner on its device, downloaded where the cache lacks it. Raises as `model_folder`."""
    return Learner(model_folder(config.name, config.source, cache), config, n_labels, device, cache).to(device)
