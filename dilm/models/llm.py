"""A language model that scores words after many prompts with the same beginning.

Shape suffixes: N questions, B of them in a batch, L tokens, P tokens before the questions, T tokens in all so far,
V vocabulary, C words.
"""

import copy
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dilm.config.schema import LlmConfig
from dilm.core.errors import ConfigError
from dilm.distributed.device import attention
from dilm.hub.pretrained import model_folder
from dilm.models.batching import by_length, pad

CPU_TOKENS = 4096  # of a batch of prompts, each counted whole, since each has a copy of what was kept of the beginning
GPU_TOKENS = 16_384


class ExactHead(nn.Module):
    """A model's output layer in fp32, and at one place of each row where only that is wanted.

    In bf16 label words often have the very same logit.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.places_B: Tensor | None = None

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Logits of the vocabulary, logits_BLV or logits_B1V."""
        if self.places_B is not None:
            rows_B = torch.arange(len(hidden_BLD), device=hidden_BLD.device)
            hidden_BLD = hidden_BLD[rows_B, self.places_B][:, None]
        return F.linear(hidden_BLD.float(), self.weight.float(), None if self.bias is None else self.bias.float())


class Llm:
    """A pretrained causal language model and its tokenizer, fetched by need. Raises ConfigError."""

    def __init__(self, config: LlmConfig, precision: str, cache: Path, device: torch.device) -> None:
        self.device = device
        self.tokenizer, self.model = _load(config, precision, cache, device)
        self.head = ExactHead(self.model.get_output_embeddings())
        self.model.set_output_embeddings(self.head)

    @property
    def bos(self) -> list[int]:
        """What stands first, where the tokenizer has such a token: many models hardly read their first one."""
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [int(bos)]

    @property
    def positions(self) -> int | None:
        """How many tokens it can read, where that is known."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts, with nothing added; special tokens written out in them are ordinary characters."""
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []

    def tokenize_after(self, before: str, text: str) -> list[int]:
        """Ids of a text as it is tokenised after another, or alone where the two can't be told apart."""
        known, both, alone = self.tokenize([before, before + text, text])
        return both[len(known) :] if both[: len(known)] == known else alone

    @torch.inference_mode()
    def word_scores(self, prefix: list[int], questions: Sequence[list[int]], words: Sequence[Sequence[int]]) -> Tensor:
        """Log-likelihood of each word's tokens after prefix and question, scores_NC (nats, fp32, on the CPU).

        The prefix is read once, and with it what all questions begin with.
        """
        shared = _common_length(questions)
        prefix = [*prefix, *questions[0][:shared]]
        rests = [ids[shared:] for ids in questions]
        budget = CPU_TOKENS if self.device.type == "cpu" else GPU_TOKENS
        scores_NC = torch.empty(len(questions), len(words))
        start = self._read(prefix)
        for rows in by_length([len(prefix) + len(ids) for ids in rests], budget):
            scores_NC[torch.as_tensor(rows)] = self._score_batch(start, [rests[row] for row in rows], words).cpu()
        return scores_NC

    def _read(self, prefix: list[int]) -> DynamicCache:
        """The keys and values of what all prompts begin with."""
        cache = DynamicCache(config=self.model.config)
        if prefix:
            ids_1P = torch.tensor([prefix], device=self.device)
            self.model.base_model(input_ids=ids_1P, cache=cache, use_cache=True)
        return cache

    def _score_batch(
        self, start: DynamicCache, questions: Sequence[list[int]], words: Sequence[Sequence[int]]
    ) -> Tensor:
        ids_BL, mask_BL = pad(questions, 0, self.device)
        begun, size = start.get_seq_length(), len(questions)
        cache = _spread(start, size)
        mask_BT = torch.cat([mask_BL.new_ones(size, begun), mask_BL], 1)
        positions_BL = torch.arange(begun, begun + ids_BL.shape[1], device=self.device).expand(size, -1)
        ends_B = mask_BL.sum(1)
        logits_B1V = self._go_on(ids_BL, mask_BT, positions_BL, cache, ends_B - 1)
        firsts = [word[0] for word in words]
        scores_BC = logits_B1V[:, 0].log_softmax(-1)[:, firsts]
        for label, word in enumerate(words):
            if len(word) > 1:
                scores_BC[:, label] += self._rest(word, mask_BT, begun + ends_B, cache)
        return scores_BC

    def _go_on(
        self, ids_BL: Tensor, mask_BT: Tensor, positions_BL: Tensor, cache: DynamicCache, places_B: Tensor | None = None
    ) -> Tensor:
        """Logits after these tokens, logits_BLV, or logits_B1V after one of them in each row; the cache grows."""
        self.head.places_B = places_B
        output = self.model(
            input_ids=ids_BL, attention_mask=mask_BT, position_ids=positions_BL, cache=cache, use_cache=True
        )
        return output.logits

    def _rest(self, word: Sequence[int], mask_BT: Tensor, next_B: Tensor, cache: DynamicCache) -> Tensor:
        """Log-likelihood of a word's tokens after its first, rest_B; the cache ends as it was."""
        size, length = len(mask_BT), len(word) - 1
        given_BL, wanted_BL = (
            torch.tensor([part], device=self.device).expand(size, -1) for part in (word[:-1], word[1:])
        )
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(size, length)], 1)
        positions_BL = next_B[:, None] + torch.arange(length, device=self.device)
        logits_BLV = self._go_on(given_BL, mask_BT, positions_BL, cache)
        cache.crop(-length)
        return logits_BLV.log_softmax(-1).gather(2, wanted_BL[:, :, None]).sum((1, 2))


def _common_length(sequences: Sequence[list[int]]) -> int:
    """How many first tokens all have in common, short of the whole of any."""
    first, last = min(sequences), max(sequences)  # in lexicographic order: what these share, all share
    pairs = enumerate(zip(first, last, strict=False))
    common = next((place for place, (one, other) in pairs if one != other), len(first))
    return min(common, min(map(len, sequences)) - 1)


def _spread(cache: DynamicCache, size: int) -> DynamicCache:
    """The same beginning for `size` rows, without a copy of it until they go on."""
    spread = copy.copy(cache)
    spread.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in spread.layers:
        if layer.is_initialized:
            layer.keys, layer.values = (part.expand(size, -1, -1, -1) for part in (layer.keys, layer.values))
    return spread


def _load(
    config: LlmConfig, precision: str, cache: Path, device: torch.device
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A pretrained language model in eval mode and its tokenizer, fetched by need. Raises ConfigError.

    Its weights are kept in the precision of its forward passes, as where texts are written.
    """
    loading: dict[str, Any] = {"local_files_only": True, "attn_implementation": attention(device)}
    loading["dtype"] = torch.bfloat16 if precision == "bf16" else torch.float32
    if config.four_bit:
        _require_four_bit(device)
        loading["device_map"] = {"": device}
        loading["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    folder = model_folder(config.name, config.source, cache)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, **loading)
    return tokenizer, (model if config.four_bit else model.to(device)).eval()


def _require_four_bit(device: torch.device) -> None:
    if device.type == "cpu":
        raise ConfigError("llm.four_bit is true, but four-bit weights need a GPU; set llm.four_bit=false.")
    if missing := [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"llm.four_bit needs {' and '.join(missing)}, not installed here; run pip install 'dilm[bitsandbytes]' or "
            "set llm.four_bit=false."
        )
