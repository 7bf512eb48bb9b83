"""Language-model pre-training: task rows -> a generator that writes texts of a class (paper, section 3.1)."""

from pathlib import Path

from dilm.artifacts import Artifact, make
from dilm.config import Config
from dilm.data import Corpus, load_corpus
from dilm.device import out_of_memory, pick_device
from dilm.generator import build_generator
from dilm.language_model import LanguageModelTraining
from dilm.lineage import pretrain_artifact
from dilm.sources import cache_folder, model_folder
from dilm.world import ALONE, World


def run(config: Config, world: World = ALONE) -> Artifact:
    """Make the pre-trained generator, or find it."""
    cache = cache_folder(config.cache)
    corpus = world.first(lambda: load_corpus(config.task, config.data, cache))
    artifact = pretrain_artifact(config, corpus.content_hash)

    def build(folder: Path) -> None:
        with out_of_memory():
            Pretraining(config, corpus, artifact, cache, world).train(folder)

    make(artifact, build, config, ranks=world)
    return artifact


class Pretraining(LanguageModelTraining):
    """Training of a pretrained model on all training texts."""

    def __init__(self, config: Config, corpus: Corpus, artifact: Artifact, cache: Path, world: World) -> None:
        device = pick_device(config.device, config.threads)
        source = world.first(lambda: model_folder(config.generator.name, config.generator.source, cache))
        generator = build_generator(source, config.generator, config.task, device)
        sequences = world.first(lambda: generator.encode_once(corpus.train, config.generator, cache))
        parts = sequences, generator.encode(corpus.valid)
        super().__init__(config, config.pretrain, "pretrain", generator, parts, artifact, world)
