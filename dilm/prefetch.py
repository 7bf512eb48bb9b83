"""`python -m dilm.prefetch`: bring models and data into the local cache, so that jobs need no network."""

from dilm.cli import main
from dilm.config.schema import Config, GeneratorConfig, LearnerConfig, LlmConfig


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
    main("Fetch a task's rows and the models it needs into the cache.", run)
