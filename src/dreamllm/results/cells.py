"""Which number stands in which cell: data only. `tables.py` fills and writes the tables.

A cell of ours is found by model, benchmark, metric and (optionally) group; what the row leaves open, the column says.
A published cell is found by the names that `paper/tableN.csv` uses.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Column:
    """A column.

    metric: "BENCHMARK/METRIC" of our numbers, "" for a published column that has no counterpart here.
    paper: column in paper/tableN.csv, "" for one that the paper does not have.  scale: factor for display
    """

    header: str
    metric: str = ""
    paper: str = ""
    model: str = ""
    group: str = ""
    scale: float = 100


@dataclass(frozen=True)
class Row:
    """A row of our numbers.

    lacks: why the model has no numbers on a benchmark.  given: cells, by column header, that are settings
    """

    label: str
    model: str = ""
    group: str = ""
    lacks: dict[str, str] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table; `paper` is its number there, 0 for one that the paper does not have."""

    name: str
    title: str
    about: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    paper: int = 0


_DRAWS_ONLY = dict.fromkeys(["captions", "vqa", "pope"], "the model draws pictures and does not read them")
_READS_ONLY = {"draw": "the model reads pictures and does not draw them"}
_BEFORE_SFT = {"vqa": "questions about pictures are learnt in supervised fine-tuning, after this stage"}

_FID = Column("FID", "draw/fid", "MS-COCO", scale=1)
_DRAWN = tuple(
    Column(header, f"draw/{metric}")
    for header, metric in [
        ("object", "object"),
        ("colour", "colour"),
        ("object in its colour", "bind"),
        ("whole scene", "all"),
    ]
)

TABLES = (
    Table(
        "table1",
        "Comprehension",
        "Captions: CIDEr (times 100) and share of captions that tell exactly the scene. Questions: VQA accuracy in "
        "per cent, all and by type.",
        (
            Column("caption CIDEr", "captions/cider", "COCO"),
            Column("captions exact", "captions/exact"),
            Column("VQA, all", "vqa/accuracy", "VQAv2"),
            *(
                Column(f"VQA {kind}", "vqa/accuracy", group=f"type/{kind}")
                for kind in ("colour", "count", "presence", "relation", "background")
            ),
            *(Column(n, paper=n) for n in ("I2Paragraph", "OKVQA", "VizWiz", "TextVQA", "MMBench", "MM-Vet")),
        ),
        (
            Row("DreamLLM, after alignment", "alignment", lacks=_BEFORE_SFT),
            Row("DreamLLM, after I-GPT", "igpt", lacks=_BEFORE_SFT),
            Row("DreamLLM, comprehension-only", "comprehension_only"),
            Row("DreamLLM, final", "sft"),
        ),
        paper=1,
    ),
    Table(
        "table2",
        "Text to picture",
        "FID (lower is better; ours on the mini CLIP's features, the paper's on Inception's) and, for ours, the share "
        "of pictures in which a separately trained judge sees the right objects, the right colours, the objects in "
        "their colours, and the whole scene with places, number and background. All rows of ours are drawn with the "
        "same scheduler, steps, guidance and initial noise, one picture per prompt; the paper takes the best of eight "
        "by CLIP score on COCO.",
        (_FID, *_DRAWN, Column("LN-COCO FID", paper="LN-COCO")),
        (
            Row("Stable Diffusion, own text encoder", "sd"),
            Row("Stable Diffusion, fine-tuned on the same pairs", "sd_finetuned"),
            Row("DreamLLM, after alignment", "alignment"),
            Row("DreamLLM, after I-GPT", "igpt"),
            Row("DreamLLM, final", "sft"),
        ),
        paper=2,
    ),
    Table(
        "table3",
        "Synergy of comprehension and creation",
        "The same data, with pictures only drawn, only read, or both.",
        (
            Column("interleaved data", paper="interleaved data"),
            Column("alignment loss", paper="alignment loss"),
            Column("VQA", "vqa/accuracy", "VQAv2"),
            Column("captions exact", "captions/exact"),
            Column("FID", "draw/fid", "MS-COCO FID", scale=1),
            Column("whole scene drawn", "draw/all"),
            Column("MM-Vet", paper="MM-Vet"),
        ),
        (
            Row("Stable Diffusion", "sd", lacks=_DRAWS_ONLY, given={"interleaved data": "no", "alignment loss": "no"}),
            Row(
                "creation-only",
                "creation_only",
                lacks=_DRAWS_ONLY,
                given={"interleaved data": "yes", "alignment loss": "no"},
            ),
            Row(
                "comprehension-only",
                "comprehension_only",
                lacks=_READS_ONLY,
                given={"interleaved data": "yes", "alignment loss": "no"},
            ),
            Row("joint", "sft", given={"interleaved data": "yes", "alignment loss": "no"}),
        ),
        paper=3,
    ),
    Table(
        "table4",
        "Language only",
        "Accuracy of multiple choice by log-likelihood, in per cent. Ours: the set in PIQA's format asks how a story "
        "stands at its end, the one in BoolQ's whether something is so then; chance is 50.",
        (
            Column("PIQA", "language/accuracy", "PIQA", group="piqa"),
            Column("BoolQ", "language/accuracy", "BoolQ", group="boolq"),
            *(Column(name, paper=name) for name in ("SIQA", "HellaSwag", "WinoGrande", "MMLU")),
        ),
        (
            Row("language model alone", "llm"),
            Row("DreamLLM, after I-GPT", "igpt"),
            Row("DreamLLM, creation-only", "creation_only"),
            Row("DreamLLM, comprehension-only", "comprehension_only"),
            Row("DreamLLM, final", "sft"),
        ),
        paper=4,
    ),
    Table(
        "table7",
        "Objects that are not there (POPE)",
        "In per cent. Absent objects are chosen at random, by popularity, or as usual companions of what is there.",
        tuple(
            Column(header, f"pope/{metric}", paper)
            for header, metric, paper in [
                ("accuracy", "accuracy", "accuracy"),
                ("precision", "precision", "precision"),
                ("recall", "recall", "recall"),
                ("F1", "f1", "F1"),
                ("yes", "yes", "yes"),
            ]
        ),
        tuple(
            Row(f"{group} / {label}", model, group)
            for group in ("random", "popular", "adversarial")
            for label, model in [("DreamLLM, comprehension-only", "comprehension_only"), ("DreamLLM, final", "sft")]
        ),
        paper=7,
    ),
    Table(
        "scenes",
        "By kind of scene",
        "Shares in per cent: captions that tell, and drawn pictures that show, exactly the scene; VQA accuracy. "
        "Held out: with an object-colour combination that no training document holds.",
        (
            Column("captions, final", "captions/exact", model="sft"),
            Column("VQA, final", "vqa/accuracy", model="sft"),
            Column("drawn, Stable Diffusion", "draw/all", model="sd"),
            Column("drawn, fine-tuned SD", "draw/all", model="sd_finetuned"),
            Column("drawn, alignment", "draw/all", model="alignment"),
            Column("drawn, I-GPT", "draw/all", model="igpt"),
            Column("drawn, final", "draw/all", model="sft"),
        ),
        (
            Row("all scenes"),
            *(
                Row(f"{kind}, {words}", group=f"{kind}/{seen}")
                for seen, words in [("seen", "combinations seen"), ("held_out", "held out")]
                for kind in ("single", "pair", "group")
            ),
            Row("all seen", group="seen"),
            Row("all held out", group="held_out"),
        ),
    ),
    Table(
        "stories",
        "Free interleaving",
        "Stories continued from their first sentence, in per cent. Placement: stories in which every sentence is "
        "followed by exactly one picture. Ended: by the model itself. Followed: every sentence makes sense where "
        "it stands. Pictures are compared by the judge with how the story stands by the model's own words.",
        (
            Column("placement", "stories/placement"),
            Column("ended", "stories/ended"),
            Column("followed", "stories/followed"),
            *(
                Column(header, f"stories/{metric}")
                for header, metric in [
                    ("object", "object"),
                    ("colour", "colour"),
                    ("object in its colour", "bind"),
                    ("whole scene", "all"),
                ]
            ),
        ),
        (Row("DreamLLM, after I-GPT", "igpt"), Row("DreamLLM, final", "sft")),
    ),
)
