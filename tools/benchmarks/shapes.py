"""Models of real shapes with random weights and tokenizers learnt from the task's rows, built in code: no download."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from dilm.core.hashing import derive_seed

END = "<|endoftext|>"
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def build_shape(name: str, texts: Sequence[str], folder: Path) -> None:
    """Write `gpt2` or `bert`, each of its base size, and a tokenizer that cuts such texts as its own would."""
    config: PretrainedConfig
    if name == "gpt2":
        config, kind = GPT2Config(), GPT2LMHeadModel
        tokenizer = _tokenizer(texts, [END], config.vocab_size)
        given = {"bos_token": END, "eos_token": END, "unk_token": END}
    else:
        config, kind = BertConfig(), BertModel
        tokenizer = _tokenizer(texts, MARKS, config.vocab_size)
        marks = [(mark, tokenizer.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
        given = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), MARKS, strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed("shape", name))
        model: PreTrainedModel = kind(config)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, clean_up_tokenization_spaces=False, **given
    ).save_pretrained(folder)


def _tokenizer(texts: Sequence[str], special_tokens: list[str], size: int) -> Tokenizer:
    """A byte-level one, filled up with tokens that occur nowhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    whole = json.loads(tokenizer.to_str())
    known = len(whole["model"]["vocab"])
    whole["model"]["vocab"] |= {f"<filler {number}>": number for number in range(known, size)}
    return Tokenizer.from_str(json.dumps(whole))
