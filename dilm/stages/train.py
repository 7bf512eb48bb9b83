"""Training: language-model pre-training, the pool of trajectories, and gradient matching or imitation."""

from functools import partial
from pathlib import Path

from dilm.artifacts.artifact import Artifact, make
from dilm.artifacts.fingerprint import match_artifact, pool_artifacts, pretrain_artifact
from dilm.config.schema import Config, PretrainConfig
from dilm.data.corpus import Corpus, load_corpus
from dilm.distributed.device import out_of_memory, pick_device
from dilm.distributed.world import ALONE, World
from dilm.hub.pretrained import cache_folder, model_folder
from dilm.matching.trainer import Matching
from dilm.matching.trajectory_pool import Learners
from dilm.models.generator import build_generator, load_generator
from dilm.selection.select import taught_texts
from dilm.training.language_model import LanguageModelTraining


def pretrain(config: Config, world: World = ALONE) -> Artifact:
    """Make the pre-trained generator, or find it."""
    cache = cache_folder(config.cache)
    corpus = world.main_first(lambda: load_corpus(config.task, config.data, cache))
    artifact = pretrain_artifact(config, corpus.content_hash)

    def build(folder: Path) -> None:
        with out_of_memory():
            Pretraining(config, corpus, artifact, cache, world).train(folder)

    make(artifact, build, config, world=world)
    return artifact


class Pretraining(LanguageModelTraining):
    """Training of a pretrained model on all training texts."""

    def __init__(self, config: Config, corpus: Corpus, artifact: Artifact, cache: Path, world: World) -> None:
        device = pick_device(config.device, config.threads)
        source = world.main_first(lambda: model_folder(config.generator.name, config.generator.source, cache))
        generator = build_generator(source, config.generator, config.task, device)
        sequences = world.main_first(lambda: generator.encode_once(corpus.train, config.generator, cache))
        parts = sequences, generator.encode(corpus.valid)
        super().__init__(config, config.pretrain, "pretrain", generator, parts, artifact, world)


def make_trajectories(config: Config, world: World = ALONE) -> None:
    """Make the trajectories of the pool and their teachers, or find them; nothing where a matching has no pool."""
    if config.match.learners != "pool":
        return
    cache = cache_folder(config.cache)
    corpus = world.main_first(lambda: load_corpus(config.task, config.data, cache))
    pool = dict(enumerate(pool_artifacts(config, corpus.content_hash)))
    if config.match.trajectory is not None:
        pool = {config.match.trajectory: pool[config.match.trajectory]}
    there = all(artifact.exists for both in pool.values() for artifact in both)
    if world.broadcast(there and not config.force):
        if world.main:
            size, name = config.match.pool_size, config.match.learner.name
            print(f"found {len(pool)} of the pool's {size} learners ({name}) below {config.root}")
        return
    with out_of_memory():
        maker = Learners(config, corpus, cache, world)
        for number, (trajectory, teacher) in pool.items():
            make(trajectory, partial(maker.train, number), config, world=world)
            make(teacher, partial(maker.measure, trajectory.folder, number), config, world=world)


def match(config: Config, world: World = ALONE) -> Artifact:
    """Make the generator trained by gradient matching, or by imitation, or find it. Needs the pre-trained one."""
    cache = cache_folder(config.cache)
    corpus = world.main_first(lambda: load_corpus(config.task, config.data, cache))
    artifact = match_artifact(config, corpus.content_hash)
    if config.force or not artifact.exists:
        pretrain_artifact(config, corpus.content_hash).require()

    def build(folder: Path) -> None:
        with out_of_memory():
            training = imitation if config.match.objective == "teach" else Matching
            training(config, corpus, artifact, cache, world).train(folder)

    make(artifact, build, config, world=world)
    return artifact


def imitation(
    config: Config, corpus: Corpus, artifact: Artifact, cache: Path, world: World = ALONE
) -> LanguageModelTraining:
    """Language-model training, of the pre-trained generator, on the real texts that teach most."""
    settings, device = config.match, pick_device(config.device, config.threads)
    parent = pretrain_artifact(config, corpus.content_hash).require()
    generator = load_generator(parent, config.generator, config.task, device)
    taught = world.broadcast(taught_texts(config, corpus, cache) if world.main else corpus.train)  # the main rank's
    steps = settings.outer_steps * settings.inner_steps
    training = PretrainConfig(steps, settings.lm_batch, settings.optimizer, 0, settings.log_every)
    parts = generator.encode(taught), generator.encode(corpus.valid)
    return LanguageModelTraining(config, training, "match", generator, parts, artifact, world)
