"""Gradient similarity of all candidates before and after matching: `python tools/similarity.py experiment=quickstart`.

Takes the keys of the other commands. The candidates of `lm` and `dilm` were written from the same random numbers;
all count alike, and the learner's states are the monitor's.
"""

from dataclasses import replace

import numpy as np

from dilm.artifacts.shards import ShardTable, read_shards
from dilm.cli import main
from dilm.config.help import Command
from dilm.config.schema import Config

METHODS = ("lm", "dilm")  # before and after
COMMAND = Command(
    "similarity",
    "Compare the gradient similarity of candidates before and after matching.",
    reads=("match", "generate"),
)


def run(config: Config) -> None:
    """Print the similarity of both methods' candidates to the real gradient, and the difference, with intervals."""
    from dilm.artifacts.fingerprint import candidates_artifact
    from dilm.core.hashing import derive_seed
    from dilm.data.corpus import load_corpus
    from dilm.distributed.device import pick_device
    from dilm.hub.pretrained import cache_folder
    from dilm.matching.monitor import SimilarityMonitor
    from dilm.models.learner import build_learner

    cache = cache_folder(config.cache)
    corpus = load_corpus(config.task, config.data, cache)
    device = pick_device(config.device, config.threads)
    learner = build_learner(config.match.learner, len(config.task.labels), cache, device)
    monitor = SimilarityMonitor(config, corpus, learner)
    pools = [
        read_shards(candidates_artifact(replace(config, method=method), corpus.content_hash).require())
        for method in METHODS
    ]
    found = {}
    for method, rows in zip(METHODS, paired(*pools), strict=True):
        # One seed for both: the same texts' indices are resampled.
        found[method] = monitor.bootstrap(rows.table, derive_seed("similarity", *monitor.names))
        print(f"{method}: {text(found[method])} ({len(rows)} texts)")
    print(f"dilm - lm: {text(found['dilm'] - found['lm'])}")


def paired(first: ShardTable, second: ShardTable) -> tuple[ShardTable, ShardTable]:
    """The rows of two pools that have a label and an index in common: texts written from the same random numbers."""
    places = [
        {
            (int(label), int(index)): row
            for row, (label, index) in enumerate(zip(pool.table.labels, pool.index, strict=True))
        }
        for pool in (first, second)
    ]
    common = sorted(places[0].keys() & places[1].keys())
    return first.take([places[0][key] for key in common]), second.take([places[1][key] for key in common])


def text(values: np.ndarray) -> str:
    """The value of all texts, and the 95% interval of the resamples."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return f"{values[0]:.4f} [{low:.4f}, {high:.4f}]"


if __name__ == "__main__":
    main(COMMAND, run)
