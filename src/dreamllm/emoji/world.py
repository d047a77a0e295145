"""Writes the emoji world: training shards of Documents, and benchmark files in the formats of the real sets.

    python -m dreamllm make-world --config config/embedded.yaml --out data/emoji

Training documents have training scenes only; benchmark pictures are unseen scenes, every fourth with an object-colour
combination that training never shows. The same configuration gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dreamllm.atomic import new_folder
from dreamllm.config.reading import load
from dreamllm.config.world import AltText, Registers, World
from dreamllm.data import shards
from dreamllm.data.document import Document, Part, Picture, Text
from dreamllm.data.images import encode_png
from dreamllm.emoji import contexts, corpus, grammar, human, questions, registers
from dreamllm.emoji.scenes import (
    NAMES,
    Names,
    Scene,
    Split,
    names_of,
    render,
    sample_split,
)
from dreamllm.output_paths import folder_to_write
from dreamllm.seeds import seed_of

KINDS = ["single", "pair", "group"]


def training_scene(rng: random.Random, names: Names = NAMES) -> Scene:
    """A training scene: 45 % are pairs, the most difficult to draw, and 30 % groups, the most difficult to read."""
    return sample_split(rng, "train", rng.choices(KINDS, [25, 45, 30])[0], names=names)


def pair(
    id: str, rng: random.Random, side: int, names: Names = NAMES, shares: Registers = corpus.REGISTERS
) -> Document:
    """A picture with a text of one of the registers. No alt text is a human sentence here: see `Registers.text`."""
    scene = training_scene(rng, names)
    register = registers.pick(shares.pairs, rng)
    forms: dict[AltText, float] = {form: share for form, share in shares.alt_text.items() if form != "human"}
    text = registers.describe(scene, register, rng, forms or {"bag": 1})
    parts = (Picture(render(scene, side, rng)), Text(text))
    return Document(id, "pair", parts, {"scene": scene.to_json(), "register": register})


def story(id: str, rng: random.Random, side: int, names: Names = NAMES) -> Document:
    """Two to four sentences, each followed by a picture of the scene at that point."""
    sentences, scenes = grammar.story(rng, "train", rng.choice([2, 3, 3, 4]), names)
    parts: list[Text | Picture] = []
    for sentence, scene in zip(sentences, scenes, strict=True):
        parts += [Text(sentence), Picture(render(scene, side, rng))]
    return Document(id, "interleaved", tuple(parts), {"scenes": [scene.to_json() for scene in scenes]})


# Two fifths of the questions about pictures have two alternatives or a name, a colour or a number as answer, so that an
# answer tells more than one bit about the picture. Relations are asked for in pairs alone.
QUESTION_WEIGHTS = {
    "which": 20,
    "colour": 8,
    "count": 4,
    "background": 4,
    "relation": 10,
    "presence": 25,
    "presence_coloured": 25,
    "relation_yes_no": 15,
}


def question(id: str, rng: random.Random, side: int, names: Names = NAMES) -> Document:
    """A question about a picture. A fifth of the documents has two to five pictures, each with its own question.

    No picture has two questions, so that no answer can be taken from an earlier turn.
    """
    scenes: list[Any] = []
    talk: list[Part] = []
    for _ in range(rng.choice([2, 3, 4, 5]) if rng.random() < 0.2 else 1):
        scene = training_scene(rng, names)
        able = questions.kinds(scene)
        asked = questions.ask(scene, rng.choices(able, [QUESTION_WEIGHTS[kind] for kind in able])[0], rng, names)
        scenes.append(scene.to_json())
        talk += [
            Picture(render(scene, side, rng), "user"),
            Text(asked.question, "user"),
            Text(asked.answer, "assistant"),
        ]
    return Document(id, "conversation", tuple(talk), {"scenes": scenes})


def instruction(id: str, rng: random.Random, side: int, names: Names = NAMES) -> Document:
    """70 %: a `question`; 10 %: a request to describe a picture; 20 %: a request to draw."""
    kind = rng.random()
    if kind < 0.7:
        return question(id, rng, side, names)
    scene = training_scene(rng, names)
    picture = render(scene, side, rng)
    parts: tuple[Part, ...]
    if kind < 0.8:
        request = Text(rng.choice(corpus.DESCRIBE), "user")
        parts = (Picture(picture, "user"), request, Text(grammar.caption(scene), "assistant"))
    else:
        content = f"{grammar.scene_phrase(scene)} on {scene.background}"
        parts = (
            Text(rng.choice(["draw {}.", "please draw {}.", "show me {}."]).format(content), "user"),
            Text(f"here {'are' if scene.layout == 'group' else 'is'} {content}.", "assistant"),
            Picture(picture, "assistant"),
        )
    return Document(id, "conversation", parts, {"scene": scene.to_json()})


def write_training(world: World, folder: Path) -> None:
    """Write the shard sets of `world.training` below `folder`; those of which it wants none are left out."""
    side, names, shares = world.picture_side, names_of(world.pictograms), world.registers
    makers: dict[str, Callable[[str, random.Random], Document]] = {
        "pairs": lambda id, rng: pair(id, rng, side, names, shares),
        "stories": lambda id, rng: story(id, rng, side, names),
        "instructions": lambda id, rng: instruction(id, rng, side, names),
        "questions": lambda id, rng: question(id, rng, side, names),
        "text": lambda id, rng: corpus.sample(id, rng, names, shares),
        "contexts": lambda id, rng: contexts.document(id, rng, side, names),
    }
    for name, make in makers.items():
        rng = random.Random(seed_of(world.seed, "emoji world", name))
        if count := getattr(world.training, name):
            documents = (make(f"{name}-{i:06d}", rng) for i in range(count))
            shards.write(documents, folder / name, per_shard=2000)


class WorldProblem(ValueError):
    """A world that cannot be made as its section says."""


def benchmark_scenes(world: World, split: Split) -> Iterator[Scene]:
    """Scenes of a split's pictures: kinds alternate and every fourth is held out, so that the first n are balanced.

    A scene occurs twice at most, with different offsets: there are few different scenes of a single object.
    """
    rng = random.Random(seed_of(world.seed, "emoji world benchmarks", split))
    objects = names_of(world.pictograms)
    times: Counter[Scene] = Counter()
    for i in range(world.benchmarks.pictures):
        for _ in range(1000):
            scene = sample_split(rng, split, KINDS[i // 4 % 3], i % 4 == 3, objects)
            if times[scene] < 2:
                break
        else:
            raise WorldProblem(
                f"world.benchmarks.pictures = {world.benchmarks.pictures} is more than the {split} split "
                f"has scenes (none is left for picture {i}); use a smaller number"
            )
        times[scene] += 1
        yield scene


def write_benchmarks(world: World, split: Split, folder: Path) -> None:
    """Write pictures and all benchmark files of one split."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed_of(world.seed, "emoji world questions", split))
    objects, scenes = names_of(world.pictograms), list(benchmark_scenes(world, split))
    names = [f"{i:012d}.png" for i in range(len(scenes))]
    with zipfile.ZipFile(folder / f"images_{split}.zip", "w", zipfile.ZIP_STORED) as archive:
        for name, scene in zip(names, scenes, strict=True):
            archive.writestr(zipfile.ZipInfo(name), encode_png(render(scene, world.picture_side, rng)))
    _write_captions(folder, split, names, scenes, world.picture_side)
    _write_vqa(folder, split, scenes, rng, objects)
    for subset in ("random", "popular", "adversarial"):
        _jsonl(folder / f"pope_{subset}_{split}.jsonl", _pope(names, scenes, subset, rng, objects))
    _write_stories(folder, split, world.benchmarks.stories, rng, objects)
    _write_language(folder, split, world.benchmarks.language, rng, objects)
    _write_illustrations(folder, split, world)
    _write_prompts(folder, split, world, scenes)
    if count := world.benchmarks.in_context:
        contexts.write_benchmark(folder, split, world.seed, count, world.picture_side, objects)


def _write_captions(folder: Path, split: Split, names: list[str], scenes: list[Scene], side: int) -> None:
    """COCO caption format, five references for each picture."""
    images = [{"id": i, "file_name": name, "height": side, "width": side} for i, name in enumerate(names)]
    annotations = [
        {"id": 5 * i + j, "image_id": i, "caption": words}
        for i, scene in enumerate(scenes)
        for j, words in enumerate(grammar.captions(scene))
    ]
    _json(folder / f"captions_{split}.json", {"info": {}, "images": images, "annotations": annotations})


def _write_vqa(folder: Path, split: Split, scenes: list[Scene], rng: random.Random, objects: Names) -> None:
    """VQAv2 format: for each picture one question of each kind, two of those for pairs alone; ten equal answers."""
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes):
        asked_for = [questions.ask(scene, kind, rng, objects) for kind in questions.kinds(scene)]
        while scene.kind == "pair" and len(asked_for) < 10:  # eight kinds, and the last two, of relations, once more
            more = questions.ask(scene, questions.kinds(scene)[len(asked_for) - 2], rng, objects)
            asked_for += [more] if more not in asked_for else []
        for asked in asked_for:
            kind = asked.type
            key = {"question_id": len(records), "image_id": image_id}
            records.append({**key, "question": asked.question})
            answers = [{"answer_id": n + 1, "answer": asked.answer, "answer_confidence": "yes"} for n in range(10)]
            form = "yes/no" if asked.answer in ("yes", "no") else "number" if kind == "count" else "other"
            about = {"question_type": kind, "answer_type": form, "multiple_choice_answer": asked.answer}
            annotations.append({**key, **about, "answers": answers})
    _json(folder / f"vqa_{split}_questions.json", {"info": {}, "questions": records})
    _json(folder / f"vqa_{split}_annotations.json", {"info": {}, "annotations": annotations})


def _pope(
    names: list[str], scenes: list[Scene], subset: str, rng: random.Random, objects: Names
) -> list[dict[str, Any]]:
    """POPE format: for each picture one object that is there and one that is not, sampled as the subset says."""
    records: list[dict[str, Any]] = []
    for name, scene in zip(names, scenes, strict=True):
        present, absent = rng.choice(scene.objects)[0], questions.absent_object(scene, subset, rng, objects)
        for name_of_object, label in ((present, "yes"), (absent, "no")):
            question = f"is there {grammar.noun_phrase(name_of_object)}?"
            records.append({"question_id": len(records) + 1, "image": name, "text": question, "label": label})
    return records


def _write_stories(folder: Path, split: Split, count: int, rng: random.Random, objects: Names) -> None:
    records = []
    for i in range(count):
        sentences, scenes = grammar.story(rng, split, 3, objects)
        states = [scene.to_json() for scene in scenes]
        records.append({"id": i, "opening": sentences[0], "sentences": sentences, "scenes": states})
    _jsonl(folder / f"stories_{split}.jsonl", records)


def _write_illustrations(folder: Path, split: Split, world: World) -> None:
    """The stories of `_write_stories` with a real picture for each sentence; picture ids follow those of the scenes."""
    rng = random.Random(seed_of(world.seed, "emoji world illustrations", split))
    records = []
    image_id = world.benchmarks.pictures
    with zipfile.ZipFile(folder / f"images_{split}.zip", "a", zipfile.ZIP_STORED) as archive:
        for line in (folder / f"stories_{split}.jsonl").read_text().splitlines():
            story = json.loads(line)
            image_ids = list(range(image_id, image_id := image_id + len(story["scenes"])))
            records.append({"id": story["id"], "sentences": story["sentences"], "image_ids": image_ids})
            for number, scene in zip(image_ids, map(Scene.from_json, story["scenes"]), strict=True):
                picture = encode_png(render(scene, world.picture_side, rng))
                archive.writestr(zipfile.ZipInfo(f"{number:012d}.png"), picture)
    _jsonl(folder / f"illustrations_{split}.jsonl", records)


def _write_prompts(folder: Path, split: Split, world: World, scenes: list[Scene]) -> None:
    """What the pictures show, in a clean caption, a human sentence and a narrative; and prompts to draw of each."""
    rng = random.Random(seed_of(world.seed, "emoji world prompts", split))
    told = [
        {
            "image_id": i,
            "kind": scene.kind,
            "held_out": scene.held_out,
            "caption": grammar.caption(scene),
            "human": human.sentence(scene, rng),
            "narrative": human.narrative(scene, rng),
            "scene": scene.to_json(),
        }
        for i, scene in enumerate(scenes)
    ]
    _jsonl(folder / f"scenes_{split}.jsonl", told)
    for name, words in (("draw", "caption"), ("draw_human", "human"), ("narratives", "narrative")):
        prompts = [{"id": one["image_id"], "prompt": one[words], "image_id": one["image_id"]} for one in told]
        _jsonl(folder / f"{name}_{split}.jsonl", prompts[: world.benchmarks.draw])


def _write_language(folder: Path, split: Split, count: int, rng: random.Random, objects: Names) -> None:
    """PIQA and BoolQ formats: how does a story end, and is something there at its end?"""
    piqa, labels, boolq = [], [], []
    for _ in range(count):
        sentences, scenes = grammar.story(rng, split, rng.choice([2, 3]), objects)
        right, wrong = (grammar.caption(scene) for scene in (scenes[-1], scenes[-2]))
        labels.append(rng.randrange(2))
        first, second = (right, wrong) if labels[-1] == 0 else (wrong, right)
        piqa.append({"goal": " ".join(sentences), "sol1": first, "sol2": second})
        asked = questions.ask(scenes[-1], rng.choice(["presence", "presence_coloured"]), rng, objects)
        record = {
            "question": asked.question.rstrip("?"),
            "passage": " ".join(sentences),
            "answer": asked.answer == "yes",
        }
        boolq.append(record)
    _jsonl(folder / f"piqa_{split}.jsonl", piqa)
    (folder / f"piqa_{split}-labels.lst").write_text("".join(f"{label}\n" for label in labels))
    _jsonl(folder / f"boolq_{split}.jsonl", boolq)


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm make-world`."""
    parser.add_argument("--config", type=Path, required=True, help="experiment whose `world` section is written")
    parser.add_argument("--out", type=folder_to_write, required=True, help="folder to write train/ and benchmarks/ to")


def main(args: argparse.Namespace) -> None:
    """Write the world into a temporary folder and move it into place."""
    world = load(args.config).world
    with new_folder(args.out) as folder:
        write_training(world, folder / "train")
        for split in ("dev", "test"):
            write_benchmarks(world, split, folder / "benchmarks")
    print(f"wrote {world.training} and benchmarks of {world.benchmarks.pictures} pictures a split to {args.out}")
