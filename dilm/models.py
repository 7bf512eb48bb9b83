"""The part of the configuration that says which pretrained models are used, and how they are read."""

from dataclasses import dataclass, field

POOLINGS = ("model", "mean", "cls")
EMBEDDINGS = ("cls", "mean", "last")


@dataclass
class SourceConfig:
    """Where a pretrained model comes from: exactly one of hub, package, path and built."""

    hub: str | None = None  # id@revision
    package: list[str] = field(default_factory=list)  # name==version; several where a model is cut in parts
    sha256: list[str] = field(default_factory=list)  # of each package's file, in the same order
    member: str = ""  # the model's folder or file inside the package
    format: str = "transformers"  # transformers, gguf, onnx
    tokenizer: list[str] = field(default_factory=list)  # package, sha256, member of a tokenizer that it borrows
    path: str | None = None  # a folder on disk
    built: str | None = None  # a tiny model built in code: no download


@dataclass
class GeneratorConfig:
    """The causal language model that writes the data set."""

    name: str = "???"  # what artifacts and tables call it
    source: SourceConfig = field(default_factory=SourceConfig)
    prefix: bool = False  # the model's own bos before <bos_y>: many models hardly read what stands first
    dropout: float | None = None  # while training; null: the model's own
    bos_init: str = "bos"  # what <bos_y> starts from: bos, the model's own (paper), or label, the label's name


@dataclass
class LearnerConfig:
    """A classifier: an encoder and a linear head."""

    name: str = "???"  # what tables call it
    source: SourceConfig = field(default_factory=SourceConfig)
    pooling: str = "model"  # what the head reads: model (the architecture's own), mean or cls of the last layer
    embedding: str = "cls"  # what clustering and selection read: cls, mean or last token of the last layer
    max_length: int = 512  # tokens
    freeze_encoder: bool = False  # train the head alone, on features computed once


@dataclass
class LlmConfig:
    """A language model that reads data sets as demonstrations."""

    name: str = ""  # none
    source: SourceConfig = field(default_factory=SourceConfig)
    four_bit: bool = False  # NF4 weights, as the authors had them: on a GPU, with bitsandbytes
