"""How likely texts are under the generator: pre-training's loss, and what weighs texts in matching (paper, section 3).

Shape suffixes: B texts, L tokens, N real tokens of a batch, D features.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from dilm.distributed.device import autocast, to_fp32
from dilm.models.batching import Ids, Tokens, by_length, pad
from dilm.models.generator import Generator

CPU_TOKENS = 512  # of a batch on a CPU, padding included: there padding costs more than several calls do
GPU_TOKENS = 16_384  # the same on a GPU, where no gradients are wanted
TOKENS_PER_CHUNK = 1024  # whose logits are made at a time: each takes some ten bytes for every word of the vocabulary


class Forward(Protocol):
    """What holds a `TextNLL` and calls it: a training engine."""

    lockstep: bool  # whether every rank must call the module equally often

    def __call__(self, *inputs: Any) -> Tensor:
        """The module's forward pass, ready for backward."""
        ...


class TextNLL(nn.Module):
    """Summed NLL of padded texts, as a module that an engine can hold.

    With `compiled` the model's layers run through torch.compile.
    """

    def __init__(self, model: PreTrainedModel, compiled: bool = False) -> None:
        super().__init__()
        self.model = model
        # Kept beside the model, which samples texts uncompiled. Lengths differ from batch to batch.
        self._compiled = torch.compile(model.base_model.forward, dynamic=True) if compiled else None
        self.head = ChunkedHead(model.get_output_embeddings())

    def forward(self, ids_BL: Tensor, mask_BL: Tensor, given: int) -> Tensor:
        """NLL in nats of each row's tokens after the first `given`, summed: sums_B."""
        layers = self._compiled or self.model.base_model
        hidden_BLD = layers(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
        targets_BL = mask_BL[:, given:].bool()
        nll_N = self.head(hidden_BLD[:, given - 1 : -1][targets_BL], ids_BL[:, given:][targets_BL])
        nll_BL = nll_N.new_zeros(targets_BL.shape)
        nll_BL[targets_BL] = nll_N
        return nll_BL.sum(1)


class ChunkedHead(nn.Module):
    """The output layer with its cross-entropy, at real positions alone and a few of them at a time.

    The backward pass computes the logits again, since keeping them would take more memory than everything else. The
    weight is a parameter of this module too, so that ZeRO-3 gathers it once for all chunks.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Cross-entropy of each position, nll_N in fp32."""
        chunks = zip(hidden_ND.split(TOKENS_PER_CHUNK), targets_N.split(TOKENS_PER_CHUNK), strict=True)
        return torch.cat([checkpoint(self._chunk, *chunk, use_reentrant=False) for chunk in chunks])

    def _chunk(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        return F.cross_entropy(to_fp32(F.linear(hidden_ND, self.weight, self.bias)), targets_N, reduction="none")


def text_nll(generator: Generator, sequences: Sequence[Ids], precision: str, average: str = "tokens") -> Tensor:
    """Negative log-likelihood of each text, nll_B in nats a token, ready for backward (paper, equation 2)."""
    sums_B = sum_nll(generator, sequences, precision)
    return sums_B / denominators(generator, sequences, average).to(sums_B.device)


def denominators(generator: Generator, sequences: Sequence[Ids], average: str) -> Tensor:
    """What each text's summed NLL is divided by, (B,).

    `tokens`: the text's own tokens. `padded`: the batch's longest, as in the authors' code: a text's weight then
    depends on its batch mates, and short texts count for more.
    """
    lengths_B = torch.tensor([len(sequence) - generator.control.prompt_length for sequence in sequences])
    return lengths_B.max().expand_as(lengths_B) if average == "padded" else lengths_B


def sum_nll(generator: Generator, sequences: Sequence[Ids], precision: str, engine: Forward | None = None) -> Tensor:
    """NLL in nats of each sequence's tokens after its prompt, summed: sums_B. Texts of like length share a batch.

    With an engine, its forward pass is called: once for all texts where ranks must call it equally often.
    """
    device, given, packed = generator.device, generator.control.prompt_length, Tokens.of(sequences)
    module = TextNLL(generator.model) if engine is None else engine
    whole = device.type != "cpu" or (engine is not None and engine.lockstep)
    budget = CPU_TOKENS
    if whole:
        budget = GPU_TOKENS if engine is None else len(packed) * int(packed.lengths.max())
    sums, order = [], []
    for rows in by_length(packed.lengths, budget):
        ids_BL, mask_BL = pad(packed.take(rows), generator.control.pad, device)
        with autocast(device, precision if engine is None else "fp32"):
            sums.append(module(ids_BL, mask_BL, given))
        order.append(torch.as_tensor(rows, device=device))
    return torch.cat(sums)[torch.cat(order).argsort()]
