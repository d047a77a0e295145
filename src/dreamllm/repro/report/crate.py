"""Write ro-crate-metadata.json and codecheck.yml; `dreamllm.verbs.crate` describes their content."""

from __future__ import annotations

import argparse
import json
import mimetypes
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from rocrate.model import ComputationalWorkflow, ContextEntity, Dataset, File, SoftwareApplication
from rocrate.rocrate import ROCrate

import dreamllm
from dreamllm.atomic import new_file
from dreamllm.config.reading import load
from dreamllm.digests import content_files, sha256_of_file
from dreamllm.paths import FIGURES, REPORT, TABLES
from dreamllm.repro.audit.lineage import Run
from dreamllm.repro.report import cost
from dreamllm.repro.report.jobs import Job, read_jobs
from dreamllm.repro.report.report import read_checkpoints, timings
from dreamllm.results.table_spec import read_tables

METADATA, CODECHECK = "ro-crate-metadata.json", "codecheck.yml"
TERMS = "https://w3id.org/ro/terms/workflow-run/context"
PROFILES = {
    "process": "Process Run Crate",
    "workflow": "Workflow Run Crate",
    "provenance": "Provenance Run Crate",
}
PROFILE_VERSION = "0.5"
TARGETS = (TABLES, FIGURES, REPORT)
PLANS = ("workflow/Snakefile", "environment.yml", "requirements.lock", "dvc.yaml", "dvc.lock", "LICENSE", "README.md")
EPOCH = "1970-01-01T00:00:00+00:00"


def main(args: argparse.Namespace) -> None:
    """Write both files into the repository's root."""
    run = Run.at(args.root, args.config)
    with new_file(args.root / CODECHECK) as file:
        file.write_text(codecheck(run), encoding="utf-8")
    with new_file(args.root / METADATA) as file:
        file.write_text(dump(build(run)), encoding="utf-8")


def dump(crate: ROCrate) -> str:
    """The crate's metadata as JSON, entities sorted by id."""
    content = crate.metadata.generate()
    first = (METADATA, "./")
    content["@graph"].sort(key=lambda one: (one["@id"] not in first, one["@id"] != METADATA, one["@id"]))
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def build(run: Run) -> ROCrate:
    """The crate of a run. It describes the repository's files in place; nothing is copied."""
    experiment, root = run.experiment, run.root
    jobs = read_jobs(root, TARGETS)
    crate = ROCrate(version="1.1")
    crate.metadata.extra_contexts.append(TERMS)
    crate.name = f"DreamLLM (arXiv 2309.11499), run {run.name}"
    crate.description = "A run of the DreamLLM reproduction: data, training, predictions, metrics, tables, figures."
    crate.license = crate.add(
        ContextEntity(
            crate,
            "https://spdx.org/licenses/Apache-2.0",
            {"@type": "CreativeWork", "name": "Apache License 2.0 (code)", "identifier": "Apache-2.0"},
        )
    )
    crate.root_dataset["datePublished"] = max((job.end for job in jobs), default=EPOCH)
    for name in ["process", "workflow", *(["provenance"] if jobs else [])]:
        profile = {"@type": "CreativeWork", "name": PROFILES[name], "version": PROFILE_VERSION}
        about = crate.add(ContextEntity(crate, f"https://w3id.org/ro/wfrun/{name}/{PROFILE_VERSION}", profile))
        crate.root_dataset.append_to("conformsTo", about)

    files = {
        path: _file(crate, root, path) for path in PLANS if (root / path).is_file() and path != "workflow/Snakefile"
    }
    files |= {path.as_posix(): _file(crate, root, path.as_posix()) for path in _rules(root)}
    config = files.get(run.config) or _entity(crate, root, run.config)
    workflow = crate.add_workflow(
        root / "workflow/Snakefile",
        "workflow/Snakefile",
        main=True,
        lang="snakemake",
        lang_version=version("snakemake"),
        cls=ComputationalWorkflow,
        properties={"name": "DreamLLM as a reproducible experiment", "version": dreamllm.__version__}
        | _content(root / "workflow/Snakefile")
        | ({"@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]} if jobs else {}),
    )
    engine = _software(crate, "#snakemake", "Snakemake", version("snakemake"))
    _requirements(crate, run, workflow)

    data = [experiment.world.folder, experiment.foundations.folder]
    runs = load(root / run.config).runs()
    parts = ("checkpoints", "predictions", "features", "items", "metrics")
    made = [f"results/{part}/{run}" for run in runs for part in parts]
    folders = {path: _folder(crate, root, path) for path in [*data, *made, *TARGETS] if (root / path).is_dir()}
    action = crate.add_action(
        workflow,
        f"#run-{run.name}",
        object=[config, *(folders[path] for path in data if path in folders)],
        result=[folders[path] for path in [*made, *TARGETS] if path in folders],
        properties={"@type": "CreateAction", "name": f"Run {run.name}"}
        | ({"startTime": min(job.start for job in jobs), "endTime": max(job.end for job in jobs)} if jobs else {}),
    )
    crate.root_dataset.append_to("mentions", action)
    if jobs:
        _steps(crate, run, jobs, workflow, engine, action)
    return crate


def codecheck(run: Run) -> str:
    """The CODECHECK manifest: the tables, claims and figures that exist, each with its caption."""
    captions = {name: table.caption for name, table in read_tables(run.root / "paper/tables.yaml").items()}
    captions["claims"] = "Claims of the paper with their computed status"
    citation = yaml.safe_load((run.root / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    tables = sorted((run.root / TABLES).glob("*.csv"))
    figures = sorted((run.root / FIGURES).glob("*.png"))
    manifest = [
        {"file": path.relative_to(run.root).as_posix(), "comment": captions.get(path.stem, path.stem)}
        for path in tables
    ]
    manifest += [
        {"file": path.relative_to(run.root).as_posix(), "comment": f"Figure: {path.stem.replace('_', ' ')}"}
        for path in figures
    ]
    authors = [{"name": f"{one['given-names']} {one['family-names']}"} for one in citation["authors"]]
    content = {
        "version": "https://codecheck.org.uk/spec/config/1.0",
        "paper": {"title": citation["title"], "authors": authors, "reference": citation["url"]},
        "manifest": manifest,
    }
    return "---\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


# ---- parts of the crate --------------------------------------------------------------------------------------------


def _steps(
    crate: ROCrate, run: Run, jobs: list[Job], workflow: Any, engine: SoftwareApplication, whole_run: ContextEntity
) -> None:
    """Describe rules as tools and workflow steps, jobs as actions, and Snakemake as the engine that ordered them."""
    measured = {(one.run, one.job): one for one in timings(run, {job.run for job in jobs if job.run})}
    tools: dict[str, SoftwareApplication] = {}
    steps: dict[str, ContextEntity] = {}
    controls = []
    for place, rule in enumerate(dict.fromkeys(job.rule for job in jobs)):
        tools[rule] = crate.add(SoftwareApplication(crate, f"#rule-{rule}", {"name": f"rule {rule}"}))
        about = {"@type": "HowToStep", "name": rule, "position": str(place)}
        steps[rule] = crate.add(ContextEntity(crate, f"workflow/Snakefile#{rule}", about))
        steps[rule]["workExample"] = tools[rule]
    for job in jobs:
        name = job.name if job.name.startswith(job.rule) else f"{job.rule}-{job.name}"
        name = name if job.run == run.name else f"{job.run}-{name}"
        action = crate.add_action(
            tools[job.rule],
            f"#job-{quote(name)}",
            object=[_entity(crate, run.root, path) for path in job.inputs],
            result=[_entity(crate, run.root, path) for path in job.outputs],
            properties={"@type": "CreateAction", "name": name, "description": job.command}
            | {key: value for key, value in (("startTime", job.start), ("endTime", job.end)) if value},
        )
        if (job.run, job.name) in measured:
            action["resourceUsage"] = _usage(crate, action.id, measured[job.run, job.name])
        about = {"@type": "ControlAction", "name": f"orchestrate {name}"}
        control = crate.add(ContextEntity(crate, f"#control-{quote(name)}", about))
        control["instrument"], control["object"] = steps[job.rule], action
        controls.append(control)
    workflow["step"], workflow["hasPart"] = list(steps.values()), list(tools.values())
    organised = {"@type": "OrganizeAction", "name": f"Snakemake's run of {run.name}"}
    organise = crate.add(ContextEntity(crate, f"#snakemake-{run.name}", organised))
    organise["instrument"], organise["object"], organise["result"] = engine, controls, whole_run


def _usage(crate: ROCrate, action: str, timing: cost.Timing) -> list[ContextEntity]:
    """The measured ones of a job's wall clock time, CPU time, peak memory and GPUs. Units: UN/CEFACT codes."""
    values = {
        "wallClockTime": (timing.seconds, "SEC"),
        "cpuTime": (timing.cpu_seconds, "SEC"),
        "peakMemory": (timing.memory_mb, "E63"),
        "gpus": (timing.gpus or None, "C62"),
    }
    return [
        crate.add(
            ContextEntity(
                crate,
                f"{action}-{name}",
                {"@type": "PropertyValue", "name": name, "propertyID": name, "value": f"{value:g}", "unitCode": unit},
            )
        )
        for name, (value, unit) in values.items()
        if value is not None
    ]


def _requirements(crate: ROCrate, run: Run, workflow: Any) -> None:
    """Software versions and hardware that the checkpoints recorded, and the resources of a job."""
    versions: dict[tuple[str, str], None] = {}
    commits: dict[str, None] = {}
    machines: dict[str, None] = {}
    for about in read_checkpoints(run).values():
        versions |= dict.fromkeys(about.get("versions", {}).items())
        commits |= dict.fromkeys([about["commit"]] if about.get("commit") else [])
        machines |= dict.fromkeys([about["machine"]] if about.get("machine") else [])
    machine = run.experiment.machine
    workflow["softwareRequirements"] = [
        _software(crate, f"#software-{quote(name)}-{quote(number)}", name, number) for name, number in versions
    ]
    workflow["processorRequirements"] = (
        f"{machine.threads} CPU threads a job, {machine.gpus} GPUs on each of {machine.nodes} nodes for training"
        + (f"; trained on {'; '.join(machines)}" if machines else "")
    )
    workflow["memoryRequirements"] = f"{machine.memory_mb} MB a job"
    if commits:
        workflow["identifier"] = [f"git commit {commit}" for commit in commits]


def _software(crate: ROCrate, id_: str, name: str, number: str) -> SoftwareApplication:
    return crate.add(SoftwareApplication(crate, id_, {"name": name, "version": number, "softwareVersion": number}))


def _rules(root: Path) -> Iterable[Path]:
    return sorted(path.relative_to(root) for path in (root / "workflow/rules").glob("*.smk"))


def _entity(crate: ROCrate, root: Path, path: str) -> Any:
    """The file or folder of a job; for one that is not in the repository only its name."""
    known = crate.get(quote(path)) or crate.get(f"{quote(path)}/")
    if known is not None:
        return known
    inside = not Path(path).is_absolute()
    if inside and (root / path).is_dir():
        return _folder(crate, root, path)
    if inside and (root / path).is_file():
        return _file(crate, root, path)
    name = path if inside else Path(path).name
    gone = {"@type": "CreativeWork", "name": name, "description": "not in the repository's folder"}
    return crate.add(ContextEntity(crate, f"#gone-{quote(name)}", gone))


def _file(crate: ROCrate, root: Path, path: str) -> File:
    known = crate.get(quote(path))
    return known or crate.add(File(crate, root / path, path, properties=_content(root / path)))


def _folder(crate: ROCrate, root: Path, path: str) -> Dataset:
    """A folder with all its files."""
    known = crate.get(f"{quote(path)}/")
    if known is not None:
        return known
    parts = [_file(crate, root, one.relative_to(root).as_posix()) for one in content_files(root / path)]
    folder = crate.add(Dataset(crate, root / path, path, properties={"name": path}))
    folder["hasPart"] = parts
    return folder


def _content(path: Path) -> dict[str, str]:
    """Name, size, digest and, if the suffix is known, media type of a file."""
    kind = mimetypes.guess_type(path.name)[0]
    about = {"name": path.name, "contentSize": str(path.stat().st_size), "sha256": sha256_of_file(path)}
    return about | ({"encodingFormat": kind} if kind else {})
