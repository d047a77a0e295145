"""The registers of the emoji world's language, its questions, its text-only corpus, and instructions without leaks."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dreamllm.config.reading import ConfigProblem, load
from dreamllm.config.world import Registers
from dreamllm.data.document import Document, Picture, Text
from dreamllm.emoji import alt_text, corpus, grammar, human, questions, registers, scenes, world
from dreamllm.emoji.foundations.text import caption_tokenizer

seeds = st.integers(0, 2**32)
ROOT = Path(__file__).parents[1]


def any_scene(seed: int, kind: str | None = None) -> tuple[random.Random, scenes.Scene]:
    rng = random.Random(seed)
    return rng, scenes.sample_scene(rng, kind, scenes.ALL_NAMES)


# ---- human sentences -------------------------------------------------------------------------------------------------


@given(seeds)
def test_human_sentences_and_narratives_parse_to_their_scene(seed):
    rng, scene = any_scene(seed)
    for text in (human.sentence(scene, rng), human.narrative(scene, rng)):
        assert human.parse(text) == scene, text
        assert grammar.parse_caption(text) is None


@pytest.mark.parametrize("kind", ["single", "group", "pair"])
def test_every_form_of_sentence_is_written_and_read_by_one_form_alone(kind):
    rng = random.Random(0)
    for form in human.SENTENCES[kind]:
        scene = scenes.sample_scene(rng, kind)
        text = form.format_map(human._values(scene, rng))
        assert human.parse(text) == scene
        assert sum(bool(other.fullmatch(text)) for _, other in human._SENTENCES) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red cat on sand.",
        "a pink cat is on sand.",
        "a red cat is on the moon.",
        "a red cat is over a blue cat on sand.",
        "there is a cat on sand. it is red.",
        "there is a cat. it is red. the cat is red.",
        "there is a cat. the dog is red. everything is on sand.",
        "one red cats are on sand, all of them red.",
    ],
)
def test_what_is_no_human_sentence_of_a_scene_parses_to_none(text):
    assert human.parse(text) is None


def test_coreference_and_relations_from_either_side_are_understood():
    pair = scenes.Scene("sand", "row", (("cat", "red"), ("car", "blue")), 2)
    for text in (
        "an azure automobile is on the beach, and on its left is a scarlet kitten.",
        "the car on the beach is blue, and a red kitten is to its left.",
        "a blue car and a cat are on sand, the latter red and to the left of the former.",
        "to the left of a blue car you can see a red cat, on sand.",
        "a cat is to the left of a car. the latter is azure. everything is on sand. the former is red.",
    ):
        assert human.parse(text) == pair, text


def test_synonyms_stand_for_one_word_each_and_are_no_words_of_captions():
    tables = {**human.SYNONYMS, **human.COLOUR_SYNONYMS}
    assert {*human.SYNONYMS} == {*scenes.ALL_NAMES} and {*human.COLOUR_SYNONYMS} == {*scenes.COLOURS}
    assert {*human.PLACES} == {*scenes.BACKGROUNDS}
    assert len({*tables.values()}) == len(tables)
    assert not {*tables.values()} & {*tables, *scenes.BACKGROUNDS, *corpus.TEXT_ONLY_NOUNS}
    assert all(re.fullmatch("[a-z]+", word) for word in tables.values())
    rng = random.Random(0)
    told = {word for _ in range(3000) for word in human.sentence(scenes.sample_scene(rng), rng).split()}
    assert {human.SYNONYMS[name] for name in scenes.NAMES} <= told


def test_stable_diffusions_text_encoder_reads_human_sentences_whole_and_half_of_the_narratives_in_part():
    tokenizer, rng = caption_tokenizer(24, seed=0), random.Random(1)
    drawn = [scenes.sample_split(rng, "test") for _ in range(1000)]
    lengths = [len(tokenizer(human.sentence(scene, rng)).input_ids) for scene in drawn]
    assert max(lengths) <= 24
    long = [len(tokenizer(human.narrative(scene, rng)).input_ids) > 24 for scene in drawn]
    assert 0.3 < sum(long) / len(long) < 0.7


def test_a_question_in_human_words_has_the_same_meaning():
    back = {other: word for table in (human.SYNONYMS, human.COLOUR_SYNONYMS) for word, other in table.items()}
    back |= {grammar.plural(human.SYNONYMS[name]): grammar.plural(name) for name in scenes.ALL_NAMES}
    back |= {
        words: next(other for other, rule in grammar.RELATIONS.items() if rule == human.HUMAN_RELATIONS[words])
        for words in human.HUMAN_RELATIONS
    }
    pattern, changed = re.compile(rf"\b({'|'.join(sorted(back, key=len, reverse=True))})\b"), 0
    for seed in range(500):
        rng, scene = any_scene(seed)
        asked = questions.ask(scene, rng.choice(questions.kinds(scene)), rng, scenes.ALL_NAMES).question
        worded = human.reword(asked, rng)
        changed += worded != asked
        assert grammar.with_articles(pattern.sub(lambda match: back[match[0]], worded)) == asked
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", worded)
    assert changed > 200


# ---- alt texts -------------------------------------------------------------------------------------------------------


def test_an_alt_text_says_what_the_parser_finds_and_much_is_missing_or_wrong():
    rng = random.Random(0)
    counts: Counter[str] = Counter()
    for _ in range(4000):
        scene = scenes.sample_split(rng, "train", "pair")
        told = alt_text.parse(alt_text.bag(scene, rng))
        counts["texts"] += 1
        counts["nothing"] += told is None
        if told is None:
            continue
        assert {name for name, _ in told.objects} <= {name for name, _ in scene.objects}
        assert told.count is None and told.layout in (None, scene.layout)
        if told.layout:
            counts["order"] += [name for name, _ in told.objects] == [name for name, _ in scene.objects]
        counts["whole"] += told == alt_text.Told(scene.objects, scene.layout, None, scene.background)
        counts["background missing"] += told.background is None
        counts["background wrong"] += told.background not in (None, scene.background)
        counts["layout"] += told.layout is not None
        for name, colour in told.objects:
            counts["objects"] += 1
            counts["colour missing"] += colour is None
            counts["colour wrong"] += colour is not None and (name, colour) not in scene.objects
    assert counts["nothing"] < 0.1 * counts["texts"]
    assert 0.01 < counts["whole"] / counts["texts"] < 0.2
    assert 0.45 < counts["background missing"] / counts["texts"] < 0.65
    assert 0.01 < counts["background wrong"] / counts["texts"] < 0.06
    assert counts["order"] > 0.95 * counts["layout"]  # shuffled words can name a relation that is not there
    assert 0.15 < counts["layout"] / counts["texts"] < 0.45
    assert 0.3 < counts["colour missing"] / counts["objects"] < 0.55
    assert 0.03 < counts["colour wrong"] / counts["objects"] < 0.15


def test_an_alt_text_without_noise_tells_the_scene(monkeypatch):
    for share in ("OBJECT_MISSING", "COLOUR_MISSING", "COLOUR_WRONG", "NUMBER_MISSING", "RELATION_MISSING"):
        monkeypatch.setattr(alt_text, share, 0)
    for share in ("BACKGROUND_MISSING", "BACKGROUND_WRONG", "SHUFFLED", "CUT"):
        monkeypatch.setattr(alt_text, share, 0)
    for seed in range(500):
        rng, scene = any_scene(seed)
        layout, count = (None, None) if scene.kind == "single" else (scene.layout, scene.count)
        told = alt_text.parse(alt_text.bag(scene, rng))
        assert told == alt_text.Told(scene.objects, layout, None if scene.kind == "pair" else count, scene.background)


def test_a_text_without_objects_tells_nothing():
    assert alt_text.parse("free vector sand red") is None


# ---- shares ----------------------------------------------------------------------------------------------------------


def test_registers_come_by_their_shares():
    rng = random.Random(0)
    scene = scenes.sample_split(rng, "train", "pair")
    of_pairs = Counter(world.pair("p", rng, 8).meta["register"] for _ in range(900))
    assert 0.28 < of_pairs["alt_text"] / 900 < 0.39 and of_pairs["human"] == 0
    assert not any(human.parse(told(world.pair("p", rng, 4))) for _ in range(900))
    texts = [registers.describe(scene, "alt_text", rng) for _ in range(4000)]
    assert 0.10 < sum(grammar.parse_caption(text) == scene for text in texts) / 4000 < 0.14
    assert 0.035 < sum(human.parse(text) == scene for text in texts) / 4000 < 0.065


def test_a_world_without_human_sentences_has_none():
    shares = Registers.model_validate({"text": {"caption": 1}, "alt_text": {"bag": 1}})
    synonyms = {form for word in human.SYNONYMS.values() for form in (word, grammar.plural(word))}
    rng = random.Random(0)
    for _ in range(600):
        assert not synonyms & {*re.findall("[a-z]+", told(corpus.sample("t", rng, shares=shares)))}
        assert not synonyms & {*re.findall("[a-z]+", told(world.pair("p", rng, 8, shares=shares)))}


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"pairs": {"captions": 1}}, "world.registers.pairs.captions: 'captions' is none of alt_text, caption, human"),
        ({"alt_text": {"bags": 1}}, "world.registers.alt_text.bags: 'bags' is none of bag, caption, human"),
        ({"text": {}}, "world.registers.text: "),
        ({"text": {"human": 0}}, "world.registers.text.human: "),
    ],
)
def test_an_unknown_register_is_refused_in_one_line(tmp_path, section, complaint):
    content = yaml.safe_load((ROOT / "config/embedded.yaml").read_text(encoding="utf-8"))
    content["world"]["registers"] = section
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigProblem, match=re.escape(complaint)) as problem:
        load(tmp_path / "config.yaml")
    assert len(str(problem.value).splitlines()) == 2


# ---- questions -------------------------------------------------------------------------------------------------------


@given(seeds)
def test_every_answer_is_true(seed):
    rng, scene = any_scene(seed)
    positions = [name for name, _ in scene.objects]
    for kind in questions.kinds(scene):
        asked = questions.ask(scene, kind, rng, scenes.ALL_NAMES)
        words = asked.question.rstrip("?").split()
        if kind in ("presence", "presence_coloured"):
            there = any(words[3:] == ([name] if kind == "presence" else [c, name]) for name, c in scene.objects)
            assert asked.answer == ("yes" if there else "no")
        elif kind == "which":
            assert [name in positions for name in (words[3], words[6])].count(True) == 1
            assert asked.answer in positions and asked.answer in words
        elif kind == "relation":
            relation, of = " ".join(words[2:-2]), words[-1]
            layout, in_order = grammar.RELATIONS[relation]
            place = positions.index(of) + (-1 if in_order else 1)
            there = layout == scene.layout and 0 <= place < 2
            assert asked.answer == (positions[place] if there else "nothing")
        elif kind == "relation_yes_no":
            layout, in_order = grammar.RELATIONS[" ".join(words[3:-2])]
            true = layout == scene.layout and [words[2], words[-1]] == positions[:: 1 if in_order else -1]
            assert asked.answer == ("yes" if true else "no")


def test_answers_are_balanced_and_the_words_of_a_question_do_not_tell_them():
    rng = random.Random(0)
    answers: dict[str, Counter[str]] = {}
    for _ in range(6000):
        scene = scenes.sample_split(rng, "train", "pair")
        for kind in ("presence", "presence_coloured", "relation", "relation_yes_no", "which"):
            asked = questions.ask(scene, kind, rng)
            answers.setdefault(kind, Counter())[asked.answer] += 1
            if kind == "relation_yes_no":
                relation = " ".join(asked.question.rstrip("?").split()[3:-2])
                answers.setdefault(relation, Counter())[asked.answer] += 1
            if kind == "which":
                first = asked.question.rstrip("?").split()[3] == asked.answer
                answers.setdefault("order", Counter())["yes" if first else "no"] += 1
            if kind == "presence":
                name = asked.question.rstrip("?").split()[-1]
                answers.setdefault(f"named {name}", Counter())[asked.answer] += 1
    for kind, counts in answers.items():
        if kind not in ("relation", "which"):
            assert 0.38 < counts["yes"] / counts.total() < 0.62, (kind, counts)
    assert 0.35 < answers["relation"]["nothing"] / answers["relation"].total() < 0.45


def test_coloured_presence_is_mostly_denied_with_the_colour_of_the_other_object():
    rng, others, denied = random.Random(0), 0, 0
    for _ in range(2000):
        scene = scenes.sample_split(rng, "train", "pair")
        asked = questions.ask(scene, "presence_coloured", rng)
        colours = {colour for _, colour in scene.objects}
        if asked.answer == "no" and len(colours) == 2:
            denied += 1
            _, _, _, colour, name = asked.question.rstrip("?").split()
            others += colour in colours and name in dict(scene.objects)
    assert others > 0.5 * denied


def test_a_kind_of_question_that_a_scene_does_not_have_is_refused():
    scene = scenes.Scene("sand", "single", (("cat", "red"),), 1)
    with pytest.raises(ValueError, match="no 'relation' question about a scene of layout 'single'"):
        questions.ask(scene, "relation", random.Random(0))


# ---- documents -------------------------------------------------------------------------------------------------------


def told(document: Document) -> str:
    return " / ".join(part.text for part in document.parts if isinstance(part, Text))


def test_no_training_text_of_any_register_or_set_names_a_held_out_combination():
    colour = {form: colour for colour, other in human.COLOUR_SYNONYMS.items() for form in (colour, other)}
    noun = {
        form: name
        for name, other in human.SYNONYMS.items()
        for form in (name, grammar.plural(name), other, grammar.plural(other))
    }
    rng, seen = random.Random(0), 0
    beside = re.compile(rf"\b({'|'.join(colour)}) ({'|'.join(sorted(noun, key=len, reverse=True))})\b")
    apart = re.compile(rf"\b({'|'.join(noun)}) (?:is|are|turns?|that is) ({'|'.join(colour)})\b")
    makers = [world.pair, world.story, world.instruction, world.question]
    for number in range(3000):
        # Texts about pictograms: those about other objects have any colours.
        make = makers[number // 2 % 4]
        text = told(make("d", rng, 4) if number % 2 else corpus._sample_about_pictograms("t", rng, scenes.NAMES))
        named = [(noun[thing], colour[shade]) for shade, thing in beside.findall(text)]
        named += [(noun[thing], colour[shade]) for thing, shade in apart.findall(text)]
        seen += len(named)
        assert not {*named} & scenes.HELD_OUT, text
    assert seen > 3000


@given(seeds)
def test_no_answer_about_a_picture_stands_in_an_earlier_turn(seed):
    rng = random.Random(seed)
    for make in (world.question, world.instruction):
        document = make("q", rng, 12)
        pictures = [place for place, part in enumerate(document.parts) if isinstance(part, Picture)]
        if document.parts[pictures[0]].role == "assistant":
            continue  # a request to draw
        assert len(document.parts) == 3 * len(pictures)  # each picture has one question and one answer
        assert pictures == [*range(0, len(document.parts), 3)]
        if len(pictures) > 1:
            assert 2 <= len(pictures) <= 5
            shown = [scenes.Scene.from_json(scene) for scene in document.meta["scenes"]]
            assert len(shown) == len(pictures)


def test_a_fifth_of_the_questions_shows_several_pictures_and_two_fifths_have_other_answers_than_yes_and_no():
    rng = random.Random(0)
    documents = [world.question("q", rng, 4) for _ in range(1500)]
    several = sum(sum(isinstance(part, Picture) for part in document.parts) > 1 for document in documents)
    assert 0.16 < several / 1500 < 0.24
    answers = [part.text for document in documents for part in document.parts[2::3]]
    assert 0.33 < sum(answer not in ("yes", "no") for answer in answers) / len(answers) < 0.5


def test_descriptions_stand_in_documents_of_their_own():
    rng = random.Random(0)
    for _ in range(400):
        document = world.instruction("i", rng, 4)
        words = [part.text for part in document.parts if isinstance(part, Text)]
        if any(word in corpus.DESCRIBE for word in words):
            assert len(words) == 2 and grammar.parse_caption(words[1])


@pytest.mark.parametrize("form", corpus.FORMS)
def test_every_kind_of_text_is_made_and_about_things_without_a_picture_too(form):
    rng = random.Random(0)
    documents = [corpus.sample("t", rng, forms={form: 1}) for _ in range(60)]
    nouns = {word for noun in corpus.TEXT_ONLY_NOUNS for word in (noun, f"{noun}s")}
    about = [bool(nouns & {*re.findall("[a-z]+", told(document))}) for document in documents]
    assert 10 < sum(about) < 50
    assert not any(re.search(r"\ba [aeiou]|\ban [^aeiou]", told(document)) for document in documents)
    if form == "few_shot":
        assert all(len(document.parts) == 10 for document in documents)


def test_documents_about_other_things_have_no_word_left_of_the_pictograms():
    rng = random.Random(0)
    words = {form for pair in human.SYNONYMS.items() for word in pair for form in (word, grammar.plural(word))}
    for _ in range(500):
        document = corpus.replace_objects(corpus._sample_about_pictograms("t", rng, scenes.NAMES), rng)
        assert not (words - {"fish", "minnow", "minnows"}) & {*re.findall("[a-z]+", told(document))}
