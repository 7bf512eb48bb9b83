"""Models and rows built in code, with no download: for tests, and to try a cluster out (`experiment=tiny`).

The models have the shapes of real ones (a GPT-2, a BERT, byte-level tokenizers that lose nothing) and random
weights; the rows are review-like sentences of a small grammar.
"""

import random
from pathlib import Path
from typing import TYPE_CHECKING

from dilm.core.errors import ConfigError, did_you_mean
from dilm.core.hashing import derive_seed

if TYPE_CHECKING:
    from tokenizers import Tokenizer


TINY_MODELS = {"tiny-gpt2": "gpt2", "tiny-bert": "bert"}  # names for `source.built`, and the architecture of each
TINY_VERSION = 1  # part of a built model's identity: raised when its weights or its tokenizer change
SPLITS = ("train", "dev")
DEV_SHARE = 4  # one distinct sentence in so many belongs to dev
VOCABULARY = 512
POSITIONS = 256
HIDDEN = 64
LAYERS = 2
HEADS = 2
BERT_SPREAD = 0.05  # of the initial weights: at the usual 0.02 so small a BERT takes twice the steps to learn


def _words(line: str) -> tuple[str, ...]:
    return tuple(line.split())


NOUNS = _words(
    "film movie plot story script acting cast ending dialogue soundtrack director comedy drama thriller sequel "
    "performance humor pacing romance scenery"
)
PLACES = ("this year", "from start to finish", "in every scene", "on the whole", "at times", "once more", "for me")
ADVERBS = _words("truly simply mostly quite clearly rather deeply")
ADJECTIVES = (
    _words("dull dreadful clumsy boring bland tedious shallow hollow messy painful lifeless pointless"),
    _words("great superb charming gripping fresh moving clever warm brilliant delightful graceful wonderful"),
)
VERBS = (
    _words("drags disappoints irritates fails collapses stumbles bores"),
    _words("shines delights sparkles succeeds soars triumphs thrills"),
)
ADVICE = (
    ("skip it", "a waste of time", "do not bother", "i wanted to leave"),
    ("see it twice", "worth every minute", "do not miss it", "i wanted to stay"),
)
SHAPES = (
    "the {noun} is {adverb} {good} and the {other} {shines}",
    "a {adverb} {good} {noun} that {shines} {place}",
    "{place} the {noun} {shines} and feels {good}",
    "although the {noun} is {bad} the {other} is {good}",
    "the {noun} {fails} but the {other} {adverb} {shines}",
    "a {good} {noun} with a {better} {other} : {advice}",
    "the {noun} and the {other} are {good} : {advice}",
    "one {adverb} {good} {noun} , {advice}",
)


def tiny_rows(split: str, n: int) -> tuple[list[str], list[int]]:
    """The first n rows of a split: distinct sentences of 7 to 12 words and their labels (0 negative, 1 positive).

    The sentences of train and dev are disjoint, more rows of a split begin with fewer, and in about a quarter a word
    of the other mood stands before the one that decides. Raises ConfigError for another split.
    """
    if split not in SPLITS:
        raise ConfigError(f"split {split!r} of the tiny task is unknown.{did_you_mean(split, SPLITS)}")
    rng = random.Random(derive_seed("tiny rows", split))
    rows: dict[str, int] = {}
    while len(rows) < n:
        label = rng.randrange(2)
        sentence = _sentence(rng, label)
        if (derive_seed("tiny split", sentence) % DEV_SHARE == 0) == (split == "dev"):
            rows.setdefault(sentence, label)
    return list(rows), list(rows.values())


def _sentence(rng: random.Random, label: int) -> str:
    noun, other = rng.sample(NOUNS, 2)
    good, better = rng.sample(ADJECTIVES[label], 2)
    return rng.choice(SHAPES).format(
        noun=noun,
        other=other,
        good=good,
        better=better,
        bad=rng.choice(ADJECTIVES[1 - label]),
        shines=rng.choice(VERBS[label]),
        fails=rng.choice(VERBS[1 - label]),
        advice=rng.choice(ADVICE[label]),
        adverb=rng.choice(ADVERBS),
        place=rng.choice(PLACES),
    )


def build_tiny_model(name: str, folder: Path) -> None:
    """Write `gpt2` (a causal LM with tied embeddings) or `bert` (an encoder with a pooler) and its tokenizer.

    The same bytes every time; the global state of random draws stays as it is. Raises ConfigError for another name.
    """
    if name not in TINY_MODELS.values():
        raise ConfigError(f"tiny model {name!r} is unknown.{did_you_mean(name, TINY_MODELS.values())}")
    import torch
    from transformers import (
        BertConfig,
        BertModel,
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedModel,
        PreTrainedTokenizerFast,
    )

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_bert_tokenizer() if name == "bert" else _gpt2_tokenizer(),
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask", *(["token_type_ids"] if name == "bert" else [])],
        **_special_tokens(name),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed("tiny model", name))  # the CPU's alone
        model: PreTrainedModel
        if name == "bert":
            model = BertModel(
                BertConfig(
                    vocab_size=VOCABULARY,
                    hidden_size=HIDDEN,
                    num_hidden_layers=LAYERS,
                    num_attention_heads=HEADS,
                    intermediate_size=2 * HIDDEN,
                    max_position_embeddings=POSITIONS,
                    initializer_range=BERT_SPREAD,
                    pad_token_id=tokenizer.pad_token_id,
                )
            )
        else:
            model = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=VOCABULARY,
                    n_embd=HIDDEN,
                    n_layer=LAYERS,
                    n_head=HEADS,
                    n_positions=POSITIONS,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _special_tokens(name: str) -> dict[str, str]:
    if name == "bert":
        return {
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "mask_token": "[MASK]",
        }
    end = "<|endoftext|>"  # GPT-2 begins and ends with the same token
    return {"bos_token": end, "eos_token": end, "unk_token": end, "pad_token": "<|pad|>"}


def _gpt2_tokenizer() -> "Tokenizer":
    return _byte_level_bpe(["<|endoftext|>", "<|pad|>"])


def _bert_tokenizer() -> "Tokenizer":
    from tokenizers import processors

    tokenizer = _byte_level_bpe(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _byte_level_bpe(special_tokens: list[str]) -> "Tokenizer":
    """A tokenizer of 512 tokens over bytes, learnt from the tiny training rows: it loses nothing of any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny_rows("train", 2000)[0], trainer)
    return tokenizer
