"""Write the report's Markdown documents.

    REPORT.md          in the form of the ML Reproducibility Challenge: scope, methodology, results by claim, resources
    cards/NAME.md      a model card for every checkpoint and a data card for every set, with the Hub's metadata

Every sentence is computed from the run; what cannot be counted is not assessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dreamllm.config.world import EMOJI_LICENCE, WORLD_SETS
from dreamllm.repro.report import cost
from dreamllm.repro.report.report import Report
from dreamllm.sources import manifest

TEMPLATES = Path(__file__).parent / "templates"
TITLES = {
    "pairs": "Emoji world: pictures with alt texts and captions",
    "stories": "Emoji world: interleaved stories",
    "instructions": "Emoji world: conversations about pictures",
    "questions": "Emoji world: questions about pictures",
    "text": "Emoji world: text alone",
}


@dataclass(frozen=True)
class DataSet:
    """A training set of the run. files: digest by name, as the checkpoints recorded it.  used_by: stages"""

    name: str
    title: str
    licence: str
    availability: str
    substitute: str
    origin: str
    unknown: str
    files: Mapping[str, str]
    used_by: tuple[str, ...]


def documents(report: Report) -> dict[str, str]:
    """All documents by their paths in the report's folder."""
    cards = {f"cards/model-{stage}.md": model_card(report, stage) for stage in report.checkpoints}
    cards |= {f"cards/data-{one.name}.md": data_card(report, one) for one in data_sets(report)}
    return {"REPORT.md": reproducibility_report(report)} | cards


def reproducibility_report(report: Report) -> str:
    """REPORT.md."""
    tests = [test for claim in report.claims for test in claim.tests]
    return _template("REPORT.md").render(
        report=report,
        experiment=report.run.experiment,
        cost=cost.total(report.timings),
        costs=cost.by_kind(report.timings),
        assumption=cost.ASSUMPTION,
        worlds=Counter(test.world for test in tests if test.measured),
        outcomes=Counter(test.outcome for test in tests),
        missing=Counter(test.reason for test in tests if test.outcome == "missing").most_common(),
        sets=data_sets(report),
        duration=cost.duration,
        size=cost.size,
        cell=_cell,
    )


def data_sets(report: Report) -> list[DataSet]:
    """The sets that the run's checkpoints were trained on, in the order of their first use."""
    files: dict[str, dict[str, str]] = {}
    users: dict[str, list[str]] = {}
    for stage, about in report.checkpoints.items():
        for name, digests in about.get("data", {}).items():
            files.setdefault(name, {}).update(digests)
            users.setdefault(name, []).append(stage)
    path = report.run.root / manifest.MANIFEST
    public = manifest.of_experiment(report.run.experiment, path) if set(files) - set(WORLD_SETS) else {}
    found = []
    for name, digests in files.items():
        if name in WORLD_SETS:
            about = (TITLES.get(name, name), EMOJI_LICENCE, "made here from the seed", "", "dreamllm make-world", "")
        elif name in public:
            one = public[name]
            about = (one.title, one.licence, one.availability, one.substitute, one.source, one.unknown)
        else:
            about = (name, "", "", "", "", f"no entry in {manifest.MANIFEST}")
        found.append(DataSet(name, *about, digests, tuple(users[name])))
    return found


def model_card(report: Report, stage: str) -> str:
    """The card of a stage's checkpoint, with the metrics of the models whose last stage it is."""
    about = report.checkpoints[stage]
    experiment = report.run.experiment
    licences = {one.licence for one in data_sets(report) if stage in one.used_by}
    data = ModelCardData(
        language="en",
        license=EMOJI_LICENCE.lower() if licences == {EMOJI_LICENCE} else "other",
        library_name="dreamllm",
        tags=["dreamllm", "image-text-to-text", "text-to-image", "interleaved"],
        datasets=list(about.get("data", {})),
        model_name=f"{report.run.name} {stage}",
        eval_results=_results(report, stage) or None,
    )
    models = [e.model for e in experiment.evaluations if (e.stages or [e.model])[-1] == stage]
    return str(
        ModelCard.from_template(
            data,
            template_str=(TEMPLATES / "model-card.md").read_text(encoding="utf-8"),
            run=report.run.name,
            stage=stage,
            about=about,
            parents=experiment.stages[stage].init if stage in experiment.stages else ["sd"],
            children=[name for name, one in experiment.stages.items() if stage in one.init],
            evaluated=models,
            measured=_measured(report, models),
            digest=report.run.digest(f"{report.run.paths.checkpoint(stage)}/trained.safetensors"),
        )
    )


def data_card(report: Report, one: DataSet) -> str:
    """The card of a training set."""
    known = one.licence.lower() if one.licence == EMOJI_LICENCE else "other" if one.licence else "unknown"
    return str(
        DatasetCard.from_template(
            DatasetCardData(language="en", license=known, pretty_name=one.title),
            template_str=(TEMPLATES / "data-card.md").read_text(encoding="utf-8"),
            set=one,
            run=report.run.name,
            folder=report.run.paths.shards(one.name),
            world=report.run.experiment.world.model_dump(mode="json") if one.name in WORLD_SETS else {},
        )
    )


def _results(report: Report, stage: str) -> list[EvalResult]:
    """Metrics, in the Hub's form, of the model that has the stage's name."""
    return [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=benchmark,
            dataset_name=benchmark,
            dataset_split=content["split"],
            metric_type=metric,
            metric_value=round(one["value"], 6),
        )
        for metrics in [report.runs.get(report.run.name, {})]
        for (model, benchmark), content in sorted(metrics.items())
        for metric, one in content["metrics"].items()
        if model == stage and one["value"] is not None
    ]


def _measured(report: Report, models: list[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """(MODEL/BENCHMARK, metric, number) of these models in this run."""
    return [
        (f"{model}/{benchmark}", metric, one)
        for (model, benchmark), content in sorted(report.runs.get(report.run.name, {}).items())
        for metric, one in content["metrics"].items()
        if model in models and one["value"] is not None
    ]


def _template(name: str) -> Any:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def _cell(text: str) -> str:
    """Text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
