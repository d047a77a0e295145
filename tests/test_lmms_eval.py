"""The adapter for lmms-eval: its own functions, and where lmms-eval is installed a task of that library."""

from __future__ import annotations

import json
import math
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import tiny
from dreamllm.data.document import Document, Picture, Text
from dreamllm.data.layout import LayoutProblem
from dreamllm.lmms_eval import requests
from dreamllm.lmms_eval.requests import Options, RequestProblem
from dreamllm.model.pipeline import DreamLLMPipeline
from dreamllm.model.sampling import SamplingProblem
from dreamllm.verbs import ask

QUESTIONS = ["What is the colour of the cat?", "A ship.", "Is it a dog?", "What is the colour of the river bend?"]


@pytest.fixture(scope="module")
def parts():
    return tiny.build()


def asked(count: int = 4) -> list[Document]:
    """Questions of different lengths about one image each."""
    return [requests.question(f"task {n}", QUESTIONS[n % 4], [tiny.picture(n)]) for n in range(count)]


# ---- requests as documents -----------------------------------------------------------------------------------------


def test_messages_become_a_conversation_with_the_system_message_in_the_users_turn():
    image = tiny.picture()
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief. "}]},
        {"role": "user", "content": [{"type": "image", "url": image}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "Sure?"}]},
    ]
    document = requests.document_of("mme 3", messages)
    assert document.kind == "conversation" and document.id == "mme 3"
    shown = [(part.role, part.text if isinstance(part, Text) else "IMAGE") for part in document.parts]
    assert shown == [
        ("user", "Be brief."), ("user", "IMAGE"), ("user", "What is it?"), ("assistant", "A cat."), ("user", "Sure?")
    ]  # fmt: skip


def test_images_stand_where_the_words_have_placeholders_or_before_them():
    red, blue = tiny.picture(1), tiny.picture(2)
    for words, shape in [("Same?", "IIT"), ("Is <image> like <image> here?", "TITIT"), ("<image><image> Same?", "IIT")]:
        parts = requests.question("one", words, [red, blue]).parts
        assert "".join("I" if isinstance(part, Picture) else "T" for part in parts) == shape
    with pytest.raises(RequestProblem, match=r"one: the text has 1 <image> placeholders, but 2 pictures"):
        requests.question("one", "<image>?", [red, blue])


def test_an_image_may_be_a_file_and_is_upright_rgb(tmp_path):
    image = tiny.picture().convert("RGBA")
    image.save(tmp_path / "a.png")
    (of_file, _) = requests.question("one", "Is it?", [str(tmp_path / "a.png")]).parts
    assert of_file.image.mode == "RGB" and of_file.image.size == (20, 20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "video", "url": "a.mp4"}], "reads text and images, no video"),
        ([{"type": "image", "url": 3}], "expected an image of PIL, found int"),
        ([{"type": "image", "url": "/nowhere.png"}], "cannot read the image"),
        ([{"type": "text", "text": " "}], "a conversation starts with the user"),
    ],
)
def test_what_the_model_cannot_read_is_refused_with_the_tasks_name(content, message):
    with pytest.raises(RequestProblem, match=f"videomme 7: .*{message}"):
        requests.document_of("videomme 7", [{"role": "user", "content": content}])


def test_generation_arguments():
    given = {
        "max_new_tokens": 16,
        "temperature": 0,
        "top_p": 0.3,
        "num_beams": 1,
        "do_sample": False,
        "until": ["", "\n"],
    }
    assert requests.options_of(given, "gqa") == Options(16, until=("\n",))  # top_p changes nothing at temperature 0
    sampled = requests.options_of({"temperature": 0.7, "top_p": 0.9, "top_k": None, "until": "###"}, "gqa")
    assert sampled == Options(1024, 1, 0.7, 0.9, 0, ("###",))
    with pytest.raises(RequestProblem, match="task gqa: DreamLLM takes no generation arguments min_length"):
        requests.options_of({"min_length": 3}, "gqa")


def test_answers_end_before_the_first_stop_text():
    assert requests.cut("A cat.\n\nUSER: more USER", ("USER:", "\n\n")) == "A cat."
    assert requests.cut(" A cat. ", ()) == "A cat."


def test_batches_hold_every_prompt_once_and_long_ones_alone():
    batches = list(requests.batches([5, 90, 7, 6, 95, 8], 3, longest=50))
    assert batches == [[4], [1], [5, 2, 3], [0]]


# ---- answers -------------------------------------------------------------------------------------------------------


def test_batched_answers_are_those_of_ask(parts):
    model, processor = parts
    documents = asked()
    together = requests.answer(model, processor, documents, Options(12), [0] * 4)
    alone = []
    for number, document in enumerate(documents):
        by_ask = ask.question(document.id, QUESTIONS[number], [tiny.picture(number)])
        alone += ask_answer(model, processor, by_ask)
    assert together == alone and any(together)
    stop = next(text for text in together if text)[1]
    assert requests.answer(model, processor, documents, Options(12, until=(stop,)), [0] * 4) == [
        text.split(stop)[0].strip() for text in together
    ]


def ask_answer(model, processor, document) -> list[str]:
    from dreamllm.model import generate

    return generate.write(model, processor, [document], max_new_tokens=12)


def test_sampled_answers_depend_on_their_own_seed_and_hold_no_image(parts):
    model, processor = parts
    options = Options(12, temperature=1.0, top_p=0.95)
    texts = requests.answer(model, processor, asked(), options, [1, 2, 3, 4])
    assert requests.answer(model, processor, asked()[2:], options, [3, 4]) == texts[2:]
    assert requests.answer(model, processor, asked(), options, [5, 6, 7, 8]) != texts
    with pytest.raises(SamplingProblem, match="num_beams is 3 and temperature 1.0: choose one"):
        requests.answer(model, processor, asked(1), Options(12, num_beams=3, temperature=1.0), [0])


def test_a_prompt_that_fills_the_context_has_no_length(parts):
    _, processor = parts
    long = requests.question("long", "cat " * 300, [tiny.picture()])
    short = requests.lengths_of(processor, [asked(1)[0], long])
    assert short[1] is None and short[0] == len(processor.lay_out_prompt(asked(1)[0], "comprehension"))


def test_losses_are_those_of_the_tokens_one_by_one(parts):
    """Against the model's own next-token distribution, with a batch of rows of different lengths."""
    model, processor = parts
    answers = ["A cat.", "The river bends slowly.", "no", "two dogs"]
    measured = requests.losses(model, processor, asked(), answers)
    for document, words, (loss, greedy) in zip(asked(), answers, measured, strict=True):
        inputs = processor.prompts([document], "comprehension")
        ids = processor.tokenizer(words, add_special_tokens=False).input_ids
        total, best = 0.0, True
        for token in ids:
            with torch.no_grad():
                logits = model(**inputs).logits[0, -1]
            total -= float(logits.log_softmax(-1)[token])
            best &= int(logits.argmax()) == token
            for key, value in (("input_ids", token), ("attention_mask", 1)):
                inputs[key] = torch.cat([inputs[key], torch.tensor([[value]])], dim=1)
        assert math.isclose(loss, total / len(ids), rel_tol=1e-4) and greedy is best
    with pytest.raises(RequestProblem, match="task 0: the answer ' ' has no tokens"):
        requests.losses(model, processor, asked(1), [" "])
    with pytest.raises(LayoutProblem, match="the context holds 256"):
        requests.losses(model, processor, asked(1), ["cat " * 300])


# ---- in lmms-eval itself -------------------------------------------------------------------------------------------

TASKS = {
    "own_words": """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
task: own_words
output_type: generate_until
doc_to_visual: !function own_utils.images
doc_to_text: !function own_utils.words
doc_to_target: "answer"
generation_kwargs: {{max_new_tokens: 12, temperature: 0, do_sample: false, until: ["###"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""",
    "own_choice": """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
task: own_choice
output_type: multiple_choice
doc_to_visual: !function own_utils.images
doc_to_text: !function own_utils.words
doc_to_choice: !function own_utils.options
doc_to_target: "number"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""",
}
UTILS = """
from PIL import Image

def images(row):
    return [Image.open(row["image"]).convert("RGB")]

def words(row):
    return row["question"]

def options(row):
    return ["A cat.", "two dogs", "no"]
"""


@pytest.fixture
def evaluation(tmp_path, monkeypatch, parts):
    """lmms-eval's `simple_evaluate` on eight local images, and an exported tiny model."""
    if find_spec("lmms_eval") is None:
        pytest.skip("lmms-eval is not installed here: make lmms-eval")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    # In bf16, rounding differs with the size of a batch, and a word may.
    monkeypatch.setattr("dreamllm.model.precision.resolve", lambda precision: "fp32")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("LMMS_EVAL_HOME", str(tmp_path / "lmms"))
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    from dreamllm.lmms_eval import manifest

    DreamLLMPipeline.from_model(*parts).save_pretrained(tmp_path / "model")
    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)  # as by the entry point of an installed package
    rows = []
    for number in range(8):
        tiny.picture(number).save(tmp_path / f"{number}.png")
        row = {"image": str(tmp_path / f"{number}.png"), "question": QUESTIONS[number % 4]}
        rows.append(row | {"answer": "A cat.", "number": number % 3})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/own_utils.py").write_text(UTILS)
    for name, text in TASKS.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text.format(rows=tmp_path / "rows.jsonl"))

    def run(task: str, **options):
        return simple_evaluate(
            model="dreamllm",
            model_args=f"pretrained={tmp_path / 'model'}",
            tasks=[task],
            task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
            batch_size=3,
            log_samples=True,
            bootstrap_iters=0,
            **options,
        )

    return run


def answers_of(results, task: str) -> list[str]:
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"] for sample in samples]


@pytest.mark.parametrize("force_simple", [False, True])
def test_lmms_eval_gets_the_answers_of_ask(evaluation, tmp_path, capsys, force_simple):
    from dreamllm import cli

    answers = answers_of(evaluation("own_words", force_simple=force_simple), "own_words")
    capsys.readouterr()
    for number in range(8):
        image, words = str(tmp_path / f"{number}.png"), QUESTIONS[number % 4]
        arguments = ["ask", "--model", str(tmp_path / "model"), "--image", image, "--max-new-tokens", "12", words]
        cli.main(arguments)
        assert answers[number] == [capsys.readouterr().out.strip()]


def test_lmms_eval_chooses_the_option_of_the_least_loss(evaluation, parts):
    results = evaluation("own_choice", force_simple=True)
    options = ["A cat.", "two dogs", "no"]
    right = []
    for number in range(8):
        document = requests.question("x", QUESTIONS[number % 4], [tiny.picture(number)])
        losses = [loss for loss, _ in requests.losses(*parts, [document] * 3, options)]
        right.append(losses.index(min(losses)) == number % 3)
    assert results["results"]["own_choice"]["acc,none"] == pytest.approx(sum(right) / 8)


def test_the_package_declares_the_adapter_to_lmms_eval():
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"dreamllm": "dreamllm.lmms_eval:manifest"}
    assert os.environ.get("LMMS_EVAL_PLUGINS") is None
