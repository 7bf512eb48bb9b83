"""The generator p_φ: a causal language model that writes labelled texts and says how likely they are.

Shape suffixes: B texts, L tokens, V vocabulary, A attempts.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from dilm.batching import by_length, pad
from dilm.config import GeneratorConfig, TaskConfig
from dilm.data import TextTable
from dilm.device import attention, autocast
from dilm.errors import ConfigError
from dilm.keys import derive_seed
from dilm.text import PAD_TOKEN, SEP_TOKEN, ControlTokens, bos_token, parse_text, write_tokens

CPU_TOKENS = 512  # of a batch on a CPU, padding included: there padding costs more than several calls do
TOKENS_PER_CHUNK = 1024  # whose logits are made at a time: each takes some ten bytes for every word of the vocabulary
ATTEMPTS = 8  # draws a token may need until it lies in the nucleus; 8 fail with probability 0.05^8 at top-p 0.95


@dataclass(frozen=True)
class Written:
    """What the generator wrote for one class: all texts, well-formed or not, in the order of their index."""

    texts: list[tuple[str, ...] | None]  # None: not well-formed
    tokens: list[list[int]]  # after <bos_y>, up to and with <eos>
    nll: np.ndarray  # (n,) nats a token


@dataclass
class Generator:
    """A causal language model with the control tokens of a task."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    control: ControlTokens
    n_fields: int
    max_length: int  # tokens of a text, control tokens included

    def encode(self, table: TextTable) -> list[list[int]]:
        """Each row's token sequence, from `<bos_y>` to `<eos>`."""
        columns = [self._tokenize([text[position] for text in table.texts]) for position in range(self.n_fields)]
        return [
            write_tokens(fields, int(label), self.control, self.max_length)
            for label, *fields in zip(table.labels, *columns, strict=True)
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
    tokenizer, model = _load(folder, device)
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
    """A generator that a stage saved."""
    tokenizer, model = _load(folder, device)
    control = _control_tokens(tokenizer, len(task.labels), config.prefix)
    return Generator(model, tokenizer, control, len(task.fields), task.max_length)


def _load(folder: Path, device: torch.device) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation=attention(device)
    )
    return tokenizer, model.to(device)


def _control_tokens(tokenizer: PreTrainedTokenizerBase, n_labels: int, prefix: bool) -> ControlTokens:
    names = [*(bos_token(label) for label in range(n_labels)), SEP_TOKEN, PAD_TOKEN]
    *bos, sep, pad_id = (int(token) for token in tokenizer.convert_tokens_to_ids(names))
    before = (int(tokenizer.bos_token_id),) if prefix else ()
    return ControlTokens(tuple(bos), sep, int(tokenizer.eos_token_id), pad_id, before)


def text_nll(
    generator: Generator, sequences: Sequence[Sequence[int]], precision: str, average: str = "tokens"
) -> Tensor:
    """Negative log-likelihood of each text, nll_B in nats a token, ready for backward (paper, equation 2).

    `tokens` divides by the text's own tokens. `padded` divides by the batch's longest, as the authors' code does:
    a text's weight then depends on its batch mates, and short texts count for more.
    """
    sums_B = sum_nll(generator, sequences, precision)
    given = generator.control.prompt_length
    lengths_B = torch.tensor([len(sequence) - given for sequence in sequences], device=sums_B.device)
    return sums_B / (lengths_B.max() if average == "padded" else lengths_B)


def sum_nll(generator: Generator, sequences: Sequence[Sequence[int]], precision: str) -> Tensor:
    """NLL in nats of each sequence's tokens after its prompt, summed: sums_B. Texts of like length share a batch."""
    device = generator.device
    budget = CPU_TOKENS if device.type == "cpu" else len(sequences) * max(map(len, sequences))
    sums, order = [], []
    for rows in by_length([len(sequence) for sequence in sequences], budget):
        ids_BL, mask_BL = pad([sequences[row] for row in rows], generator.control.pad, device)
        with autocast(device, precision):
            sums.append(_batch_nll(generator.model, ids_BL, mask_BL, generator.control.prompt_length))
        order.append(torch.as_tensor(rows, device=device))
    return torch.cat(sums)[torch.cat(order).argsort()]


def _batch_nll(model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor, given: int) -> Tensor:
    """Summed NLL of each row's tokens after the first `given`.

    The vocabulary's logits are made at real positions alone, and a few at a time: where gradients are wanted they
    are made again in the backward pass, since keeping them would take more memory than everything else.
    """
    hidden_BLD = model.base_model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
    targets_BL = mask_BL[:, given:].bool()
    hidden_ND, targets_N = hidden_BLD[:, given - 1 : -1][targets_BL], ids_BL[:, given:][targets_BL]
    head = model.get_output_embeddings()
    chunks = zip(hidden_ND.split(TOKENS_PER_CHUNK), targets_N.split(TOKENS_PER_CHUNK), strict=True)
    nll_N = torch.cat([checkpoint(_chunk_nll, head, *chunk, use_reentrant=False) for chunk in chunks])
    return torch.zeros(len(ids_BL), device=nll_N.device).index_add(0, targets_BL.nonzero()[:, 0], nll_N)


def _chunk_nll(head: nn.Module, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden_ND).float(), targets_N, reduction="none")


def nucleus_draw(logits_BV: Tensor, uniforms_BA: Tensor, top_p: float) -> Tensor:
    """One token a row from the nucleus: the most likely tokens that together have probability `top_p`.

    A token is drawn from the whole distribution by inverse CDF, and drawn again (the row's next uniform) while it
    lies outside the nucleus: the same distribution as sampling from the nucleus, without sorting the vocabulary.
    """
    rows_BV = logits_BV.float().softmax(-1)
    cumulative_BV = rows_BV.cumsum(-1)
    tokens_B = rows_BV.argmax(-1)
    open_B = torch.arange(len(logits_BV), device=logits_BV.device)  # rows that have no token yet
    for attempt in range(uniforms_BA.shape[1]):
        targets_B1 = uniforms_BA[open_B, attempt, None] * cumulative_BV[:, -1:]
        drawn_B1 = torch.searchsorted(cumulative_BV, targets_B1, right=True).clamp_max(logits_BV.shape[1] - 1)
        likelier_B = (rows_BV * (rows_BV > rows_BV.gather(1, drawn_B1))).sum(-1)
        accepted_B = likelier_B < top_p
        tokens_B[open_B[accepted_B]] = drawn_B1[accepted_B, 0]
        if accepted_B.all():
            break
        open_B, rows_BV, cumulative_BV = open_B[~accepted_B], rows_BV[~accepted_B], cumulative_BV[~accepted_B]
    return tokens_B


def text_uniforms(seed: int, indices: Sequence[int], length: int) -> Tensor:
    """The uniforms (n, length, A) of the texts with these indices: each text's depend on seed and index alone."""
    drawn = [np.random.Generator(np.random.Philox(key=[seed, index])).random((length, ATTEMPTS)) for index in indices]
    return torch.from_numpy(np.stack(drawn).astype(np.float32))


@torch.inference_mode()
def _write_batch(
    model: PreTrainedModel, prompt: list[int], eos: int, uniforms_BLA: Tensor, top_p: float
) -> list[tuple[list[int], float]]:
    """Continue the prompt for every row until `<eos>` or the uniforms end; tokens and mean NLL in nats.

    Rows that have ended leave the batch, so that the last long text doesn't cost the whole batch.
    """
    n, length = uniforms_BLA.shape[:2]
    device = model.device
    uniforms_BLA = uniforms_BLA.to(device)
    alive = torch.arange(n, device=device)
    current_BL = torch.tensor([prompt], device=device).expand(n, -1)  # the prompt, then a token at a time
    tokens_BL = torch.full((n, length), eos, device=device)
    lengths_B = torch.full((n,), length, device=device)
    sums_B = torch.zeros(n, device=device)
    cache = DynamicCache(config=model.config)
    for position in range(length):
        logits_BV = model(input_ids=current_BL, cache=cache, use_cache=True).logits[:, -1].float()
        drawn_B = nucleus_draw(logits_BV, uniforms_BLA[alive, position], top_p)
        sums_B[alive] += F.cross_entropy(logits_BV, drawn_B, reduction="none")
        tokens_BL[alive, position] = drawn_B
        going_B = drawn_B != eos
        lengths_B[alive[~going_B]] = position + 1
        if not going_B.any():
            break
        if not going_B.all():
            cache.batch_select_indices(going_B.nonzero()[:, 0])
        alive, current_BL = alive[going_B], drawn_B[going_B, None]
    means = (sums_B / lengths_B).tolist()
    return [(row[:size], mean) for row, size, mean in zip(tokens_BL.tolist(), lengths_B.tolist(), means, strict=True)]


class Writer:
    """Writes texts with a frozen copy of a generator's weights, in the precision that sampling uses."""

    def __init__(self, generator: Generator, precision: str) -> None:
        self.generator = generator
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model = deepcopy(generator.model).eval()
        nn.Module.to(self.model, dtype)

    def write(
        self, label: int, indices: Sequence[int], names: Sequence[str | int], top_p: float, batch: int
    ) -> Written:
        """Write the texts of class `label` with these indices.

        A text is determined by the weights, `names` (which seed it), its label and its index; the batch it was
        written in changes it through rounding alone.
        """
        generator, control = self.generator, self.generator.control
        seed = derive_seed(*names, label)
        done: list[tuple[list[int], float]] = []
        for start in range(0, len(indices), batch):
            uniforms = text_uniforms(seed, indices[start : start + batch], generator.max_length - control.prompt_length)
            done += _write_batch(self.model, control.prompt(label), control.eos, uniforms, top_p)
        texts = [parse_text(ids, generator.n_fields, control, generator.decode) for ids, _ in done]
        return Written(texts, [ids for ids, _ in done], np.array([nll for _, nll in done], dtype=np.float32))


@torch.inference_mode()
def held_out_scores(generator: Generator, sequences: Sequence[Sequence[int]], precision: str) -> tuple[float, float]:
    """How well pre-training went, on texts it has not seen, in eval mode.

    Returns the mean NLL in nats over all tokens, and the share of texts that are likelier under their own `<bos_y>`
    than under any other: whether the generator heeds the label at all, which the NLL hardly shows.
    """
    model, control = generator.model, generator.control
    was_training = model.training
    model.eval()
    given = control.prompt_length
    texts = [sequence[given:] for sequence in sequences]
    sums_NC = torch.stack(
        [
            sum_nll(generator, [[*control.prompt(label), *text] for text in texts], precision)
            for label in range(len(control.bos))
        ],
        dim=1,
    )
    model.train(was_training)
    labels_N = torch.tensor([control.bos.index(sequence[given - 1]) for sequence in sequences], device=sums_NC.device)
    own_N = sums_NC.gather(1, labels_N[:, None])
    n_tokens = sum(map(len, texts))
    return float(own_N.sum()) / n_tokens, float((sums_NC.argmin(1) == labels_N).float().mean())
