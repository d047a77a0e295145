"""The benchmarks, read from the native formats of the real sets.

    captions  COCO captions: {"images", "annotations"}, several references per picture
    vqa       VQAv2: a file of questions and a file of annotations; {"external": server} when a server has the answers
    pope      POPE: JSON lines {"question_id", "image", "text", "label"}, one file per way of choosing absent objects
    language  PIQA (JSON lines and a file of labels) and BoolQ (JSON lines)
    draw      JSON lines {"id", "prompt", "image_id"}: the picture of that id is the real one for the prompt
              "captions", if there, are all captions of that picture; latency and attention read the same file
    narratives  as draw, the same pictures told of at length
    stories   JSON lines {"id", "opening", "sentences", "scenes"}: an interleaved story to be continued from its opening
    illustrations  JSON lines {"id", "sentences", "image_ids"}: a document with its pictures, null where a sentence has
              none; each picture is to be drawn from the text before it
    in_context  pictures, a sentence, and the picture to be drawn from both (`in_context.py`)
    mmbench   MMBench's table (`mmbench.py`)
    mm_vet    MM-Vet's JSON (`mm_vet.py`)

`scenes_SPLIT.jsonl` tells what each picture shows; sets without it (the real ones) have no results per kind of scene.
Everything is checked before a model runs: an item is whole, or there is a BenchmarkProblem naming file and record.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamllm.evaluate.files import BenchmarkProblem, Pictures, field, keyed, read_json, read_jsonl, read_text
from dreamllm.evaluate.groups import SceneRecord
from dreamllm.evaluate.in_context import InContextItem, context_pictures, read_in_context
from dreamllm.evaluate.mm_vet import MmVetItem, read_mm_vet
from dreamllm.evaluate.mmbench import MmbenchItem, first_questions, read_mmbench

POPE_SUBSETS = ("random", "popular", "adversarial")
FILES = {
    "captions": ["captions_{split}.json"],
    "vqa": ["vqa_{split}_questions.json", "vqa_{split}_annotations.json"],
    "pope": [f"pope_{subset}_{{split}}.jsonl" for subset in POPE_SUBSETS],
    "language": ["piqa_{split}.jsonl", "piqa_{split}-labels.lst", "boolq_{split}.jsonl"],
    "draw": ["draw_{split}.jsonl"],
    "narratives": ["narratives_{split}.jsonl"],
    "stories": ["stories_{split}.jsonl"],
    "illustrations": ["illustrations_{split}.jsonl"],
    "latency": ["draw_{split}.jsonl"],
    "in_context": ["in_context_{split}.jsonl"],
    "attention": ["draw_{split}.jsonl"],
    "mmbench": ["mmbench_{split}.tsv"],
    "mm_vet": ["mm_vet_{split}.json"],
}


@dataclass(frozen=True)
class CaptionItem:
    """A picture to describe, with its reference captions."""

    id: str
    picture: str
    references: tuple[str, ...]
    scene: SceneRecord | None


@dataclass(frozen=True)
class VqaItem:
    """A question about a picture, with the answers of its annotators; none where a server has them."""

    id: str
    picture: str
    question: str
    answers: tuple[str, ...]
    question_type: str
    scene: SceneRecord | None


@dataclass(frozen=True)
class PopeItem:
    """A question for an object's presence; label is yes or no."""

    id: str
    subset: str
    picture: str
    question: str
    label: str


@dataclass(frozen=True)
class ChoiceItem:
    """A language-only question: fields as in its set, the options to compare, the index of the right one."""

    id: str
    task: str
    fields: dict[str, str]
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class DrawItem:
    """A prompt to draw, and the real picture of what it tells."""

    id: str
    prompt: str
    picture: str
    scene: SceneRecord | None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class IllustrationItem:
    """A picture of a document, and the real one.

    position: of the picture among those of the document.  prompt: the sentence that it stands behind.  text: all
    sentences since the picture before it
    """

    id: str
    document: str
    position: int
    prompt: str
    text: str
    picture: str


@dataclass(frozen=True)
class StoryItem:
    """The beginning of an interleaved story, and how its source goes on."""

    id: str
    opening: str
    sentences: tuple[str, ...]
    scenes: tuple[dict[str, Any], ...]


Item = CaptionItem | VqaItem | PopeItem | ChoiceItem | DrawItem | IllustrationItem | StoryItem | InContextItem
Item |= MmbenchItem | MmVetItem


def files(benchmark: str, folder: Path, split: str) -> list[Path]:
    """The files of a benchmark, without its pictures. Raises BenchmarkProblem for an unknown benchmark."""
    if benchmark not in FILES:
        raise BenchmarkProblem(folder, "", f"no benchmark {benchmark!r}; there are {', '.join(FILES)}")
    return [folder / name.format(split=split) for name in FILES[benchmark]]


def pictures(folder: Path, split: str) -> Pictures:
    """The split's pictures: images_SPLIT.zip, or the folder images_SPLIT."""
    archive = folder / f"images_{split}.zip"
    return Pictures(archive if archive.exists() else folder / f"images_{split}")


def load(benchmark: str, folder: Path, split: str, limit: int | None = None) -> list[Any]:
    """The items of a benchmark in file order; `limit` keeps the first items of each of its sets.

    Raises BenchmarkProblem for anything missing, malformed, doubled or dangling, and for a set without items.
    """
    paths = files(benchmark, folder, split)
    scenes_path = folder / f"scenes_{split}.jsonl"
    scenes = read_scenes(scenes_path) if scenes_path.exists() else {}
    if benchmark == "language":
        sets = [read_piqa(paths[0], paths[1]), read_boolq(paths[2])]
    elif benchmark == "stories":
        sets = [read_stories(paths[0])]
    elif benchmark == "illustrations":
        sets = [read_illustrations(paths[0], pictures(folder, split))]
    elif benchmark == "in_context":
        sets = [read_in_context(paths[0], context_pictures(folder, split))]
    elif benchmark == "pope":
        shown = pictures(folder, split)
        sets = [read_pope(path, subset, shown) for path, subset in zip(paths, POPE_SUBSETS, strict=True)]
    elif benchmark == "mmbench":
        sets = [first_questions(read_mmbench(paths[0], pictures(folder, split)), limit)]
        limit = None
    elif benchmark == "mm_vet":
        sets = [read_mm_vet(paths[0], pictures(folder, split))]
    else:
        read = {"captions": read_captions, "vqa": read_vqa}.get(benchmark, read_draw)
        sets = [read(*paths, pictures(folder, split), scenes)]  # type: ignore[operator]
    if not all(sets):
        raise BenchmarkProblem(folder, f"{benchmark}, split {split}", "a set has no items")
    if scenes and (bare := next((i for items in sets for i in items if getattr(i, "scene", scenes) is None), None)):
        raise BenchmarkProblem(scenes_path, "", f"says nothing of picture {bare.picture}, which item {bare.id} needs")
    return [item for items in sets for item in items[:limit]]


def read_scenes(path: Path) -> dict[int, SceneRecord]:
    """What the pictures show, by image id."""
    records = []
    for place, record in read_jsonl(path):
        image_id = field(record, "image_id", int, path, place)
        kind, held_out = field(record, "kind", str, path, place), field(record, "held_out", bool, path, place)
        records.append((image_id, SceneRecord(field(record, "scene", dict, path, place), kind, held_out)))
    return keyed(records, path, "image_id")  # type: ignore[return-value]


def read_captions(path: Path, shown: Pictures, scenes: dict[int, SceneRecord]) -> list[CaptionItem]:
    """COCO captions; items in the order of "images", references in the order of "annotations"."""
    content = read_json(path)
    references: dict[int, list[str]] = {}
    names: dict[int, str] = {}
    for number, image in enumerate(field(content, "images", list, path, "")):
        place = f"images[{number}]"
        image_id = field(image, "id", int, path, place)
        if image_id in names:
            raise BenchmarkProblem(path, f"{place}, id {image_id}", "occurs twice")
        names[image_id] = shown.check(field(image, "file_name", str, path, place), path, place)
        references[image_id] = []
    annotation_ids = []
    for number, annotation in enumerate(field(content, "annotations", list, path, "")):
        place = f"annotations[{number}]"
        annotation_ids.append((str(field(annotation, "id", int, path, place)), annotation))
        image_id = field(annotation, "image_id", int, path, place)
        if image_id not in references:
            raise BenchmarkProblem(path, place, f'is about picture {image_id}, which is not among "images"')
        references[image_id].append(field(annotation, "caption", str, path, place))
    keyed(annotation_ids, path, "annotation")
    for image_id, captions in references.items():
        if not captions:
            raise BenchmarkProblem(path, f"picture {image_id}", "has no caption")
    return [CaptionItem(str(id_), names[id_], tuple(references[id_]), scenes.get(id_)) for id_ in names]


def read_vqa(
    questions_path: Path, annotations_path: Path, shown: Pictures, scenes: dict[int, SceneRecord]
) -> list[VqaItem]:
    """VQAv2 questions with their annotations, in the order of the questions.

    A question may have any number of answers from one on: OK-VQA, VizWiz and TextVQA files differ.
    """
    annotations = []
    answers_file = read_json(annotations_path)
    external = "external" in answers_file
    told = [] if external else field(answers_file, "annotations", list, annotations_path, "")
    for number, annotation in enumerate(told):
        place = f"annotations[{number}]"
        id_ = str(field(annotation, "question_id", (int, str), annotations_path, place))
        answers = field(annotation, "answers", list, annotations_path, f"question {id_}")
        if not answers:
            raise BenchmarkProblem(annotations_path, f"question {id_}", "has an empty list of answers")
        texts = tuple(field(answer, "answer", str, annotations_path, f"question {id_}") for answer in answers)
        annotations.append((id_, (texts, str(annotation.get("question_type", "")))))
    answered = keyed(annotations, annotations_path, "question")
    items = []
    for number, question in enumerate(field(read_json(questions_path), "questions", list, questions_path, "")):
        place = f"questions[{number}]"
        id_ = str(field(question, "question_id", (int, str), questions_path, place))
        if id_ not in answered and not external:
            raise BenchmarkProblem(questions_path, f"question {id_}", f"has no annotation in {annotations_path}")
        image_id = field(question, "image_id", int, questions_path, place)
        name = shown.name_of(image_id, questions_path, place)
        text = field(question, "question", str, questions_path, place)
        items.append((id_, VqaItem(id_, name, text, *answered.get(id_, ((), "")), scenes.get(image_id))))
    asked = keyed(items, questions_path, "question")
    if surplus := next((id_ for id_ in answered if id_ not in asked), None):
        raise BenchmarkProblem(annotations_path, f"question {surplus}", f"is not asked in {questions_path}")
    return list(asked.values())


def read_pope(path: Path, subset: str, shown: Pictures) -> list[PopeItem]:
    """One POPE file. Ids get the subset in front: the three files count from the same number."""
    items = []
    for place, record in read_jsonl(path):
        id_ = f"{subset}-{field(record, 'question_id', (int, str), path, place)}"
        name = shown.check(field(record, "image", str, path, place), path, place)
        question, label = field(record, "text", str, path, place), field(record, "label", str, path, place)
        if label not in ("yes", "no"):
            raise BenchmarkProblem(path, place, f"label {label!r} is neither yes nor no")
        items.append((id_, PopeItem(id_, subset, name, question, label)))
    return list(keyed(items, path, "question").values())


def read_piqa(path: Path, labels_path: Path) -> list[ChoiceItem]:
    """PIQA: goals with two solutions, and a file with 0 or 1 per line."""
    records = read_jsonl(path)
    labels = read_text(labels_path).split()
    if len(labels) != len(records):
        raise BenchmarkProblem(labels_path, "", f"has {len(labels)} labels for the {len(records)} questions of {path}")
    items = []
    for number, ((place, record), label) in enumerate(zip(records, labels, strict=True)):
        if label not in ("0", "1"):
            raise BenchmarkProblem(labels_path, f"label {number + 1}", f"{label!r} is neither 0 nor 1")
        options = field(record, "sol1", str, path, place), field(record, "sol2", str, path, place)
        if not all(option.strip() for option in options):
            raise BenchmarkProblem(path, place, "an empty solution has no likelihood")
        goal = field(record, "goal", str, path, place)
        items.append(ChoiceItem(f"piqa-{number}", "piqa", {"goal": goal}, options, int(label)))
    return items


def read_boolq(path: Path) -> list[ChoiceItem]:
    """BoolQ: a passage, a question, true or false. The options are No and Yes (official code)."""
    items = []
    for number, (place, record) in enumerate(read_jsonl(path)):
        fields = {name: field(record, name, str, path, place) for name in ("passage", "question")}
        answer = field(record, "answer", bool, path, place)
        items.append(ChoiceItem(f"boolq-{number}", "boolq", fields, ("No", "Yes"), int(answer)))
    return items


def read_draw(path: Path, shown: Pictures, scenes: dict[int, SceneRecord]) -> list[DrawItem]:
    """Prompts to draw."""
    items = []
    for place, record in read_jsonl(path):
        id_ = str(field(record, "id", (int, str), path, place))
        image_id = field(record, "image_id", int, path, place)
        name = shown.name_of(image_id, path, place)
        prompt = field(record, "prompt", str, path, place)
        captions = tuple(field(record, "captions", list, path, place)) if "captions" in record else ()
        if not all(isinstance(caption, str) and caption.strip() for caption in (prompt, *captions)):
            raise BenchmarkProblem(path, place, "has an empty prompt or caption")
        items.append((id_, DrawItem(id_, prompt, name, scenes.get(image_id), captions)))
    return list(keyed(items, path, "id").values())


def read_illustrations(path: Path, shown: Pictures) -> list[IllustrationItem]:
    """The pictures of interleaved documents, in reading order; as many image ids, or nulls, as sentences."""
    items = []
    for place, record in read_jsonl(path):
        document = str(field(record, "id", (int, str), path, place))
        sentences, image_ids = (
            field(record, "sentences", list, path, place),
            field(record, "image_ids", list, path, place),
        )
        if len(sentences) != len(image_ids) or not all(isinstance(text, str) and text.strip() for text in sentences):
            raise BenchmarkProblem(path, place, "needs a text and an image id, or null, for each sentence")
        since: list[str] = []
        position = 0
        for sentence, image_id in zip(sentences, image_ids, strict=True):
            since.append(sentence)
            if image_id is None:
                continue
            if not isinstance(image_id, int):
                raise BenchmarkProblem(path, place, f"image id {image_id!r} is neither a number nor null")
            id_ = f"{document}-{position}"
            picture = shown.name_of(image_id, path, place)
            items.append((id_, IllustrationItem(id_, document, position, sentence, " ".join(since), picture)))
            since, position = [], position + 1
    return list(keyed(items, path, "picture").values())


def read_stories(path: Path) -> list[StoryItem]:
    """Stories: as many scenes as sentences, the opening being the first sentence."""
    items = []
    for place, record in read_jsonl(path):
        id_ = str(field(record, "id", (int, str), path, place))
        sentences, scenes = field(record, "sentences", list, path, place), field(record, "scenes", list, path, place)
        opening = field(record, "opening", str, path, place)
        if not sentences or sentences[0] != opening:
            raise BenchmarkProblem(path, place, "the opening is not the first of the sentences")
        if len(scenes) != len(sentences):
            raise BenchmarkProblem(path, place, f"has {len(scenes)} scenes for {len(sentences)} sentences")
        items.append((id_, StoryItem(id_, opening, tuple(sentences), tuple(scenes))))
    return list(keyed(items, path, "id").values())
