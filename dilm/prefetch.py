"""`python -m dilm.prefetch`: bring models and data into the local cache, so that jobs need no network."""

from dilm.cli import main
from dilm.config.help import Command
from dilm.config.schema import Config, GeneratorConfig, LearnerConfig, LlmConfig

COMMAND = Command(
    "prefetch",
    "Fetch a task's rows and the models it needs into the cache.",
    reads=("generator", "learner", "llm"),
    examples=(
        ("task=sst2", "rows, and the paper's models"),
        ("-m task=sst2,qqp generator=gpt2 learner=bert_base,roberta_base", "of several tasks and learners"),
        ("task=sst2 llm=smollm2 cache=/scratch/me/dilm", "into another cache"),
    ),
    next="python -m dilm.train {keys}",
)


def run(config: Config) -> None:
    """Fetch the task's rows and the models that the configuration names."""
    from dilm.data.corpus import find_place, load_split
    from dilm.hub.pretrained import cache_folder, model_folder

    cache = cache_folder(config.cache)
    for split in ("train", "dev"):
        rows = load_split(config.task, split, cache)
        place = find_place(config.task, split, cache)
        print(f"task {config.task.name}: {len(rows)} {split} rows ({place.kind if place else '?'})")
    views = config.generate.teach.views.values()
    learners = (config.match.learner, config.generate.encoder, *views, config.learner)
    models: list[LearnerConfig | GeneratorConfig | LlmConfig] = [config.generator, *learners, config.llm]
    folders = {model_folder(model.name, model.source, cache): model.name for model in models if model.name}
    for folder, name in folders.items():
        print(f"{name}: {folder}")


if __name__ == "__main__":
    main(COMMAND, run)
