"""The generator p_φ: a causal language model with the control tokens of a task (paper, section 3.1).

A text is `<bos_y>`, its fields with `<sep>` between them, and `<eos>`; `<bos_y>` asks for the label y.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dilm.config.schema import GeneratorConfig, TaskConfig
from dilm.core.errors import ConfigError
from dilm.data.templates import PAD_TOKEN, SEP_TOKEN, ControlTokens, bos_token, write_tokens
from dilm.data.text_table import TextTable
from dilm.distributed.device import attention
from dilm.hub.pretrained import source_id
from dilm.models.batching import Tokens, kept_tokens, tokenized


@dataclass
class Generator:
    """A causal language model with the control tokens of a task."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    control: ControlTokens
    n_fields: int
    max_length: int  # tokens of a text, control tokens included

    def encode(self, table: TextTable) -> Tokens:
        """Each row's token sequence, from `<bos_y>` to `<eos>`, cut to `max_length` tokens."""
        return tokenized(self._encode, table.texts, table.labels)

    def encode_once(self, table: TextTable, config: GeneratorConfig, cache: Path) -> Tokens:
        """As `encode`, kept in the cache by where the tokenizer comes from and what determines the rest."""
        identity = {
            "source": source_id(config.source),
            "control": asdict(self.control),
            "max_length": self.max_length,
            "rows": table.content_hash,
        }
        return kept_tokens(cache, config.name, identity, lambda: self.encode(table))

    def _encode(self, texts: Sequence[tuple[str, ...]], labels: np.ndarray) -> list[list[int]]:
        columns = [self._tokenize([text[position] for text in texts]) for position in range(self.n_fields)]
        return [
            write_tokens(fields, int(label), self.control, self.max_length)
            for label, *fields in zip(labels, *columns, strict=True)
        ]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        # Control tokens written out in a text are ordinary characters there.
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []

    def decode(self, ids: list[int]) -> str:
        """The string of a field's tokens, as it was tokenised."""
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def save(self, folder: Path) -> None:
        """Write weights (safetensors, fp32) and tokenizer: loads with plain transformers."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def with_weights(self, weights: Mapping[str, Tensor]) -> "Generator":
        """A generator with a new model of the same shape and these fp32 weights, in eval mode.

        Raises RuntimeError where the weights' names are not the model's.
        """
        model = AutoModelForCausalLM.from_config(
            self.model.config, dtype=torch.float32, attn_implementation=attention(self.device)
        )
        expected = {name for name, _ in model.named_parameters()}  # what is tied has one name
        if expected != weights.keys():
            raise RuntimeError(f"weights of other names than the model's: {sorted(expected ^ weights.keys())}")
        model.load_state_dict(weights, strict=False)
        model.tie_weights()
        model.generation_config = self.model.generation_config
        return replace(self, model=model.to(self.device).eval())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device


CPU = torch.device("cpu")


def build_generator(folder: Path, config: GeneratorConfig, task: TaskConfig, device: torch.device = CPU) -> Generator:
    """A pretrained model with the task's control tokens added. Raises ConfigError.

    Each `<bos_y>` starts from the embedding of the model's own bos token, so that all classes start from the model's
    idea of a beginning, or with `bos_init=label` from the mean embedding of the label's name. `<sep>` starts from its
    eos token, and `<pad>`, never attended to, from the mean.
    """
    tokenizer, model = _load(folder, config, device)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and task.max_length > positions:
        raise ConfigError(
            f"task.max_length is {task.max_length}, but the generator has only {positions} positions; lower it."
        )
    names = [*(bos_token(label) for label in range(len(task.labels))), SEP_TOKEN, PAD_TOKEN]
    tokenizer.add_special_tokens({"additional_special_tokens": names[:-1], "pad_token": PAD_TOKEN})
    old_size = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    control = _control_tokens(tokenizer, len(task.labels), config.prefix)
    start = {bos: [tokenizer.bos_token_id] for bos in control.bos}
    if config.bos_init == "label":
        words = [f" {label.replace('_', ' ')}" for label in task.labels]
        start = dict(zip(control.bos, tokenizer(words, add_special_tokens=False)["input_ids"], strict=True))
    with torch.no_grad():
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):  # often one and the same
            weight = embedding.weight
            weight[control.pad] = weight[:old_size].mean(0)
            for new, old in {**start, control.sep: [tokenizer.eos_token_id]}.items():
                weight[new] = weight[old].mean(0)
    model.config.pad_token_id = model.generation_config.pad_token_id = control.pad
    return Generator(model, tokenizer, control, len(task.fields), task.max_length)


def load_generator(folder: Path, config: GeneratorConfig, task: TaskConfig, device: torch.device = CPU) -> Generator:
    """A generator as `Generator.save` wrote it."""
    tokenizer, model = _load(folder, config, device)
    control = _control_tokens(tokenizer, len(task.labels), config.prefix)
    return Generator(model, tokenizer, control, len(task.fields), task.max_length)


def _load(
    folder: Path, config: GeneratorConfig, device: torch.device
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation=attention(device)
    )
    if config.dropout is not None:
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = config.dropout
    return tokenizer, model.to(device)


def _control_tokens(tokenizer: PreTrainedTokenizerBase, n_labels: int, prefix: bool) -> ControlTokens:
    names = [*(bos_token(label) for label in range(n_labels)), SEP_TOKEN, PAD_TOKEN]
    *bos, sep, pad_id = (int(token) for token in tokenizer.convert_tokens_to_ids(names))
    before = (int(tokenizer.bos_token_id),) if prefix else ()
    return ControlTokens(tuple(bos), sep, int(tokenizer.eos_token_id), pad_id, before)
