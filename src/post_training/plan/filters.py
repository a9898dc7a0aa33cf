"""The filters between transform and tokenise, where `data.filters` asks for any."""

from typing import Any

from post_training.config.names import recorded_as
from post_training.core.errors import ConfigError, one_of, require
from post_training.core.locate import data_files
from post_training.plan.sources import Sources
from post_training.plan.stage import Stage

_SWITCHES = "deduplicate decontaminate languages min_characters max_characters min_turns max_turns".split()


class Filters:
    """Adds the filters of one mix, dataset by dataset in their order: the first of equal rows stays."""

    def __init__(self, data: Sources, view: dict[str, Any]) -> None:
        self.data, self.view, self.settings = data, view, view["data"]["filters"]
        self.prefix = f"{view['stage']}.data.filters"
        _check(self.settings, self.prefix)
        self._earlier: dict[str, Stage] = {}
        self._files = self._evaluation_files()

    def filter(self, transformed: Stage, name: str, used: bool) -> Stage:
        """The dataset with its filter behind it, or as it is; one that is not `used` takes no row from later ones."""
        if not any(self.settings[key] not in (None, False, []) for key in _SWITCHES):
            return transformed
        inputs = {"rows": transformed}
        if self.settings["deduplicate"]:
            inputs |= {f"earlier:{other}": stage for other, stage in self._earlier.items()}
        if self.settings["decontaminate"]:
            inputs |= self._evaluation(transformed.config["rows"])
        config = {key: value for key, value in self.settings.items() if key != "decontaminate_against"}
        config["rows"] = transformed.config["rows"]
        paths, key = self.settings["decontaminate_against"], f"{self.prefix}.decontaminate_against"
        found = self.data.files.digests(recorded_as(paths), self._files, key) if paths else []
        config["files"] = [sha for _, sha in found]
        runtime = {"num_proc": self.view["data"]["num_proc"], "files": [str(path) for path in self._files]}
        stage = Stage("filter", transformed.label, config, inputs, runtime=runtime)
        stage = self.data.add(stage)
        if used:
            self._earlier[name] = stage
        return stage

    def _evaluation(self, rows: str) -> dict[str, Stage]:
        """All that a model of this stage is evaluated on."""
        found = {}
        for index, entry in enumerate(self.view["evaluation"]["datasets"]):
            stage = self.data.transform(entry, self.view, f"evaluation.datasets[{index}]", "any")
            found[f"evaluation:{stage.label}"] = stage
        for index, entry in enumerate(self.view["data"]["datasets"]):
            if entry["eval_split"] is not None:
                stage = self.data.held_out(entry, self.view, f"{self.view['stage']}.data.datasets[{index}]", rows)
                found[f"evaluation:{stage.label}"] = stage
        require(
            bool(found or self._files),
            f"{self.prefix}.decontaminate",
            "true, but there is nothing to look for; give evaluation.datasets, an eval_split, or decontaminate_against",
        )
        return found

    def _evaluation_files(self) -> list[Any]:
        found = []
        for index, path in enumerate(self.settings["decontaminate_against"]):
            key = f"{self.prefix}.decontaminate_against[{index}]"
            files = data_files(path, key)
            if files is None:
                raise ConfigError(key, f"{path!r} is not a local file; name a Hub dataset under evaluation.datasets")
            found += files
        return found


def _check(filters: dict[str, Any], prefix: str) -> None:
    if filters["deduplicate"] is not None:
        one_of(filters["deduplicate"], ("exact", "near"), f"{prefix}.deduplicate")
    for key, holds, expected in (
        ("near_threshold", 0 < filters["near_threshold"] <= 1, "a share above 0, up to 1"),
        ("ngram_words", filters["ngram_words"] >= 2, "2 or more words"),
        ("ngram_overlap", 0 <= filters["ngram_overlap"] < 1, "a share from 0 to below 1"),
        ("min_language_confidence", 0 <= filters["min_language_confidence"] <= 1, "a share from 0 to 1"),
    ):
        require(holds, f"{prefix}.{key}", f"found {filters[key]}, expected {expected}")
    require(
        filters["decontaminate"] or not filters["decontaminate_against"],
        f"{prefix}.decontaminate_against",
        "needs decontaminate: true",
    )
    for unit in ("characters", "turns"):
        least, most = filters[f"min_{unit}"], filters[f"max_{unit}"]
        for name, value in ((f"min_{unit}", least), (f"max_{unit}", most)):
            require(value is None or value >= 1, f"{prefix}.{name}", f"found {value}, expected 1 or more, or null")
        problem = f"found {least}, more than max_{unit}, {most}"
        require(least is None or most is None or least <= most, f"{prefix}.min_{unit}", problem)
