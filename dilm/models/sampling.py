"""Sampling texts from the generator's nucleus (top-p), with random numbers that belong to each text.

Shape suffixes: B texts, L tokens, V vocabulary, A attempts.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from dilm.core.hashing import derive_seed
from dilm.data.templates import parse_text
from dilm.models.generator import Generator

ATTEMPTS = 8  # draws a token may need until it lies in the nucleus; 8 fail with probability 0.05^8 at top-p 0.95


@dataclass(frozen=True)
class Samples:
    """Texts sampled for one class: all of them, well-formed or not, in the order of their index."""

    texts: list[tuple[str, ...] | None]  # None: not well-formed
    tokens: list[list[int]]  # after <bos_y>, up to and with <eos>
    nll: np.ndarray  # (n,) fp32, nats a token


def nucleus_draw(logits_BV: Tensor, uniforms_BA: Tensor, top_p: float) -> Tensor:
    """One token a row, tokens_B, from the nucleus: the most likely tokens that together have probability `top_p`.

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
    """The uniforms (n, length, A), fp32 in [0, 1), of the texts with these indices: by seed and index alone."""
    drawn = [np.random.Generator(np.random.Philox(key=[seed, index])).random((length, ATTEMPTS)) for index in indices]
    return torch.from_numpy(np.stack(drawn).astype(np.float32))


@torch.inference_mode()
def _sample_batch(
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


class Sampler:
    """Samples texts with a frozen copy of a generator's weights, in fp32 or bf16: training goes on beside it."""

    def __init__(self, generator: Generator, precision: str) -> None:
        self.generator = generator
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model = deepcopy(generator.model).eval()
        nn.Module.to(self.model, dtype)

    def sample(
        self, label: int, indices: Sequence[int], names: Sequence[str | int], top_p: float, batch: int
    ) -> Samples:
        """Sample the texts of class `label` with these indices, `batch` at a time.

        A text is determined by the weights, `names` (which seed it), its label and its index; the batch it is sampled
        in changes it through rounding alone.
        """
        generator, control = self.generator, self.generator.control
        seed = derive_seed(*names, label)
        done: list[tuple[list[int], float]] = []
        for start in range(0, len(indices), batch):
            uniforms = text_uniforms(seed, indices[start : start + batch], generator.max_length - control.prompt_length)
            done += _sample_batch(self.model, control.prompt(label), control.eos, uniforms, top_p)
        texts = [parse_text(ids, generator.n_fields, control, generator.decode) for ids, _ in done]
        return Samples(texts, [ids for ids, _ in done], np.array([nll for _, nll in done], dtype=np.float32))
