"""In-context learning: demonstrations read once for all questions; against every full prompt read alone."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.plain import configured, padded
from benchmarks.timing import FORWARD, Call, Contest, Done, multiplied, speed_up
from dilm.config.schema import Config
from dilm.core.hashing import derive_seed
from dilm.data.corpus import load_corpus, load_split, stratified_rows
from dilm.data.samplers import candidate_rows
from dilm.data.text_table import TextTable
from dilm.distributed.context import Context
from dilm.evaluation.icl import Reader, demonstration_order
from dilm.hub.pretrained import cache_folder

QUESTIONS, DEMONSTRATIONS = 100, 10
BATCH = 64  # prompts at a time, as the released scripts have it


def contest(keys: Sequence[str], small: bool, folder: Path) -> Contest:
    """100 test texts with 10 demonstrations. The sides' scores, not only their choices, must agree."""
    config = configured(small, keys, "llm=smollm2")
    if small:
        config.task.words = ["a", "the"]  # a token each, which the labels' names aren't in the tiny tokenizer
    cache = cache_folder(config.cache)
    corpus, dev = load_corpus(config.task, config.data, cache), load_split(config.task, "dev", cache)
    shown = 2 if small else DEMONSTRATIONS  # few positions in the tiny model
    rows = candidate_rows(corpus.train, shown, derive_seed("bench data set"))
    dataset = corpus.train.take(rows)
    dataset = dataset.take(demonstration_order(dataset.labels, None, derive_seed("bench order")))
    dev = dev.take(stratified_rows(dev, 20 if small else QUESTIONS, derive_seed("bench questions")))
    sides = {
        "ours": lambda: _ours(config, dataset, dev),
        "baseline": lambda: _baseline(config, dataset, dev),
    }
    note = f"{config.llm.name}, {len(dev)} test texts, {len(dataset)} demonstrations"
    tolerance = 0.001 if config.precision == "fp32" else 0.05  # of what bf16 rounds along two ways
    return Contest("icl", "texts", sides, [speed_up(5)], config.precision, tolerance, note)


def _ours(config: Config, dataset: TextTable, dev: TextTable) -> Call:
    reader = Reader(Context(config))
    questions = reader.questions(dev.texts)  # once for all data sets, as in an evaluation
    flops = _flops(reader, reader.demonstrations(dataset), questions)

    def call() -> Done:
        demonstrations = reader.demonstrations(dataset)
        scores_NC = reader.scores(demonstrations, questions, reader.kept(demonstrations, questions))
        return Done(len(dev), flops, float(scores_NC.mean()))

    return call


def _baseline(config: Config, dataset: TextTable, dev: TextTable) -> Call:
    """Prompts are tokenised whole for every question, and the vocabulary's logits are made at every place."""
    context = Context(config)
    device, reader = context.device, Reader(context)
    llm, model, head = reader.llm, reader.llm.model, reader.llm.head
    words = [word[0] for word in reader.words]  # only a word's first token is scored
    flops = _flops(reader, reader.demonstrations(dataset), reader.questions(dev.texts))

    def word_scores(prompts: list[list[int]]) -> torch.Tensor:
        ids_BL, mask_BL = padded(prompts, 0, device)
        hidden_BLD = model.base_model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
        logits_BLV = F.linear(hidden_BLD, head.weight, head.bias).float()
        return logits_BLV[torch.arange(len(prompts)), mask_BL.sum(1) - 1].log_softmax(-1)[:, words].cpu()

    @torch.no_grad()
    def call() -> Done:
        prompts = []
        for text in dev.texts:
            shown = [token for ids in reader.demonstrations(dataset) for token in ids]
            prompts.append([*llm.bos, *shown, *reader.questions([text])[0]])
        scores = [word_scores(prompts[start : start + BATCH]) for start in range(0, len(prompts), BATCH)]
        return Done(len(dev), flops, float(torch.cat(scores).mean()))

    return call


def _flops(reader: Reader, demonstrations: list[list[int]], questions: list[list[int]]) -> float:
    """Each demonstration is of use once, and each question."""
    return FORWARD * multiplied(reader.llm.model) * sum(map(len, [*demonstrations, *questions]))
