"""Where the files of an experiment lie, relative to the root of the repository.

    paths = Paths(experiment, "embedded")
    paths.checkpoint("sft")               results/checkpoints/embedded/sft
    paths.metrics("sft", "vqa")           results/metrics/embedded/sft/vqa.json

The Snakemake rules ask here for what they read and make, and so does the code that reads a finished run
(`dreamllm.repro`). Every name may be a wildcard of Snakemake: Paths(experiment, "{run}").checkpoint("sft").
Loads neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from dreamllm.config.experiment import RELEASED, Experiment
from dreamllm.config.sources import SourceSettings
from dreamllm.config.world import WORLD_SETS

TABLES, FIGURES, SUMMARY, REPORT = "results/tables", "results/figures", "results/summary", "results/report"
"""Of the experiment that ran last."""
CRATE, CODECHECK = "ro-crate-metadata.json", "codecheck.yml"


@dataclass(frozen=True)
class Paths:
    """Files of an experiment and of one of its runs. run: its name (`Experiment.runs`), or the wildcard "{run}"."""

    experiment: Experiment
    run: str

    # ---- what all runs of an experiment share: data, benchmark files, foundation models ------------------------------

    def world(self, part: str) -> str:
        """The emoji world. part: train or benchmarks."""
        return f"{self.experiment.world.folder}/{part}"

    def raw(self, source: str) -> str:
        """The downloaded files of a public data set, or the folder with your own."""
        use = self.experiment.sources.get(source)
        return (use and use.path) or f"data/raw/{source}"

    def source(self, name: str, part: str) -> str:
        """What is made from a data set. part: urls, pictures or shards."""
        folder = self.experiment.sources.get(name, SourceSettings()).folder or f"data/sources/{name}"
        return f"{folder}/{part}"

    def shards(self, name: str) -> str:
        """The folder with the shards of a training set, by the name that mixtures use."""
        return self.world("train") if name in WORLD_SETS else self.source(name, "shards")

    def placed(self, source: str | None) -> str:
        """The benchmark files of a public data set or your own, or of the emoji world (None)."""
        return f"data/benchmarks/{source}" if source else self.world("benchmarks")

    def benchmark_files(self, benchmark: str) -> str:
        """The files of a benchmark, by the name that `evaluations` use."""
        return self.placed(self.experiment.benchmark(benchmark).source)

    def foundation(self, part: str) -> str:
        """A foundation model that DreamLLM is built from. part: llm, clip or sd."""
        return f"{self.experiment.foundations.folder}/{part}"

    def instrument(self, part: str) -> str:
        """A foundation model that measures: the emoji world's. part: llm, clip, sd or judge."""
        return f"{self.experiment.instruments.folder}/{part}"

    def released(self, name: str) -> str:
        """The download of a model of paper/released.yaml."""
        return f"data/released/{name}"

    # ---- what each run makes -----------------------------------------------------------------------------------------

    def results(self, kind: str) -> str:
        """The run's folder of one kind of results: checkpoints, predictions, features, metrics, items, ..."""
        return f"results/{kind}/{self.run}"

    def checkpoint(self, stage: str) -> str:
        """A checkpoint. The released model and the emoji world's autoencoder (vae) belong to all runs."""
        run = self.experiment.name if stage in (RELEASED, "vae") else self.run
        return f"results/checkpoints/{run}/{stage}"

    def predictions(self, model: str, benchmark: str, suffix: str) -> str:
        """The predictions of a model on a benchmark. suffix: jsonl, tar (with pictures) or safetensors."""
        return f"{self.results('predictions')}/{model}/{benchmark}.{suffix}"

    def sample(self, model: str, benchmark: str, number: int | str) -> str:
        """The pictures of one of several samples per prompt; number 0 is the prediction itself."""
        if number in (0, "0"):
            return self.predictions(model, benchmark, "tar")
        return self.predictions(model, f"samples/{benchmark}-{number}", "tar")

    def metrics(self, model: str, benchmark: str) -> str:
        """The metrics of a model on a benchmark; `human` has the scores of people's judgements."""
        return f"{self.results('metrics')}/{model}/{benchmark}.json"

    def picture_metrics(self, model: str, benchmark: str) -> str:
        """FID and CLIP score over all samples of a benchmark."""
        return self.metrics(model, f"pictures/{benchmark}")

    def items(self, model: str, benchmark: str) -> str:
        """The scores of a model on each item of a benchmark."""
        return f"{self.results('items')}/{model}/{benchmark}.json"

    def features(self, model: str, benchmark: str, number: int | str) -> str:
        """Features of the generated pictures of one sample."""
        return f"{self.results('features')}/{model}/{benchmark}-{number}.safetensors"

    def real_features(self, benchmark: str) -> str:
        """Feature statistics of a benchmark's real pictures."""
        return f"{self.results('features')}/real_{benchmark}.safetensors"

    def submission(self, model: str, benchmark: str, suffix: str) -> str:
        """The file for the server that has a benchmark's answers. suffix: json or xlsx."""
        return f"{self.results('submissions')}/{model}/{benchmark}.{suffix}"

    def rating_form(self, model: str) -> str:
        """The page on which people judge a model's documents."""
        return f"{self.results('human')}/{model}"

    def ratings(self, model: str) -> str:
        """The folder for the judgements that people sent back."""
        return f"data/human/{self.run}/{model}"

    @property
    def timings(self) -> str:
        """The folder with time and memory of each job (`timings.py`)."""
        return f"timings/{self.run}"

    def timing(self, job: str) -> str:
        """Time and memory of one job."""
        return f"{self.timings}/{job}.tsv"
