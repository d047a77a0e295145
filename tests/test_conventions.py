"""Conventions of transformers for who uses a model: Auto classes, chat templates, processors, pipelines, outputs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, pipeline

import tiny
from dreamllm.data.document import Document, Picture, Text
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.processor import PromptProblem

GREEDY = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for part in tiny.build(template="vicuna_v1.1"):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def message(role: str, *content) -> dict:
    """A message of strings and pictures."""
    return {
        "role": role,
        "content": [
            {"type": "text", "text": one} if isinstance(one, str) else {"type": "image", "image": one}
            for one in content
        ],
    }


def ids(processor, messages, **options) -> list[int]:
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"} | options
    return processor.apply_chat_template(messages, **options)["input_ids"][0].tolist()


# ---- Auto classes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "imports",
    [
        "import dreamllm, transformers",
        "from transformers import AutoConfig; import transformers, dreamllm",
        "import dreamllm, transformers; from diffusers import AutoencoderKL",
    ],
)
def test_import_dreamllm_registers_config_model_and_processor_in_either_order(folder, imports):
    code = f"""if True:
        import sys
        {imports}
        folder = sys.argv[1]
        print(type(transformers.AutoProcessor.from_pretrained(folder)).__name__)
        print(type(transformers.AutoConfig.from_pretrained(folder)).__name__)
        print(type(transformers.AutoModelForImageTextToText.from_pretrained(folder)).__name__)
    """
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["DreamLLMProcessor", "DreamLLMConfig", "DreamLLMForConditionalGeneration"], done


def test_an_exported_folder_runs_no_code_of_its_own(folder):
    assert not any("auto_map" in file.read_text() for file in folder.glob("*.json"))
    assert not list(folder.glob("*.py"))


# ---- chat template --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["plain", "vicuna_v1.1"])
def test_a_rendered_conversation_has_the_tokens_of_training(template):
    _, processor = tiny.build(template=template)
    picture, drawn = tiny.picture(20), tiny.picture(21)
    messages = [
        message("user", picture, "What is the colour of the cat?"),
        message("assistant", "The cat is green."),
        message("user", "Draw two dogs."),
        message("assistant", "Here they are.", drawn),
    ]
    (trained,) = processor.lay_out(tiny.conversation(1), "joint", 256)
    assert ids(processor, messages) == list(trained.input_ids)
    asked = ids(processor, messages[:3], add_generation_prompt=True)
    assert asked == list(trained.input_ids[: len(asked)]) and len(asked) < len(trained)
    begun = ids(processor, [*messages[:3], message("assistant", "Here they")], continue_final_message=True)
    assert begun[: len(asked)] == asked and len(asked) < len(begun) and begun[-1] != processor.vocabulary.eos


def test_a_rendered_string_and_its_pictures_are_what_the_tokenizing_template_makes(parts):
    _, processor = parts
    picture = tiny.picture(1)
    messages = [message("user", "Look: ", picture, picture, " Which one?")]
    rendered = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert rendered.endswith("USER: Look:  <image> <image>  Which one? ASSISTANT:")
    inputs = processor(text=rendered, images=[picture, picture], return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == ids(processor, messages, add_generation_prompt=True)
    document = Document("", "conversation", (Text("Look: ", "user"), *[Picture(picture, "user")] * 2))
    document = Document("", "conversation", (*document.parts, Text(" Which one?", "user")))
    assert inputs["input_ids"][0].tolist() == list(processor.lay_out_prompt(document, "joint").input_ids)
    assert inputs["pixel_values"].shape == (2, 3, 16, 16)


def test_messages_may_be_strings_and_have_a_system_prompt(parts):
    _, processor = parts
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Draw two dogs."}]
    rendered = processor.apply_chat_template(system, add_generation_prompt=True)
    assert rendered == "<s>Be brief. USER: Draw two dogs. ASSISTANT:"
    default = processor.apply_chat_template(system[1:], add_generation_prompt=True)
    assert default.startswith("<s>A chat between a curious user") and "Be brief." not in default
    encode = processor.vocabulary.encode
    assert ids(processor, system, add_generation_prompt=True) == [1, *encode(rendered.removeprefix("<s>"))]


@pytest.mark.parametrize("messages", [[message("assistant", "A ship.")], [{"role": "tool", "content": "x"}]])
def test_conversations_that_the_model_does_not_know_are_refused(parts, messages):
    with pytest.raises(Exception, match="starts with the user"):
        parts[1].apply_chat_template(messages)


# ---- processor ------------------------------------------------------------------------------------------------------


def test_padding_is_that_of_the_tokenizer(parts):
    _, processor = parts
    texts = ["A ship.", "A photo of a dog running on the beach."]
    left = processor(text=texts, padding="longest", return_tensors="pt")
    right = processor(text=texts, padding=True, padding_side="right")
    pad, longest = processor.vocabulary.pad, left["input_ids"].shape[1]
    assert left["input_ids"][0, 0] == pad and right["input_ids"][0, -1] == pad
    assert left["attention_mask"].sum(1).tolist() == right["attention_mask"].sum(1).tolist()
    assert longest == right["attention_mask"].sum(1).max() > left["attention_mask"].sum(1).min()
    assert processor(text=texts, padding="max_length", max_length=40)["input_ids"].shape == (2, 40)
    with pytest.raises(PromptProblem, match=r"a text has \d+ tokens, more than max_length 3"):
        processor(text=texts, truncation=True, max_length=3)


def test_images_are_nested_flat_or_alone(parts, tmp_path):
    _, processor = parts
    pictures = [tiny.picture(number) for number in range(3)]
    texts = ["This is <image> .", "<image> and <image> are a dog"]
    flat = processor(text=texts, images=pictures)
    nested = processor(text=texts, images=[pictures[:1], pictures[1:]])
    assert all(torch.equal(flat[name], nested[name]) for name in ("input_ids", "attention_mask", "pixel_values"))
    alone = processor(images=pictures)
    assert set(alone) == {"pixel_values"} and torch.equal(alone["pixel_values"], flat["pixel_values"])
    pictures[0].save(tmp_path / "0.png")
    assert torch.equal(processor(images=str(tmp_path / "0.png"))["pixel_values"], alone["pixel_values"][:1])
    with pytest.raises(PromptProblem, match=r"the texts have \[1, 2\] <image> placeholders, .* have \[2, 1\]"):
        processor(text=texts, images=[pictures[:2], pictures[2:]])
    with pytest.raises(PromptProblem, match="either all are in lists"):
        processor(text=texts, images=[pictures[0], pictures[1:]])
    with pytest.raises(ValueError, match="neither videos nor audio"):
        processor(text=texts, videos=[pictures])


def test_the_model_finds_the_pictures_of_a_prompt_and_counts_them(parts):
    model, processor = parts
    document = tiny.story(1)
    inputs = processor.prompts([document, tiny.text()])
    batch = processor.collate([[processor.lay_out_prompt(document, "joint")]])
    logits = model(**inputs).logits
    packed = model(**batch.inputs() | {"labels": None, "draw_pixels": None}).logits
    assert torch.allclose(logits[0, -packed.shape[1] :], packed[0], atol=1e-5)
    with pytest.raises(ValueError, match="places for 2 pictures, but 1 were passed"):
        model(**inputs | {"pixel_values": inputs["pixel_values"][:1]})


# ---- pipelines ------------------------------------------------------------------------------------------------------


def chats() -> list[list[dict]]:
    return [
        [message("user", tiny.picture(1), "What is the colour of the cat?")],
        [message("user", tiny.picture(2), tiny.picture(3), "Which one is the dog running on the beach?")],
    ]


def test_image_text_to_text_answers_chats_alike_alone_and_in_batches(folder):
    pipe = pipeline("image-text-to-text", model=str(folder))
    alone = [pipe(text=chat, generate_kwargs=dict(GREEDY), return_full_text=False) for chat in chats()]
    together = pipe(text=chats(), generate_kwargs=dict(GREEDY), return_full_text=False, batch_size=2)
    assert [one[0]["generated_text"] for one in together] == [one[0]["generated_text"] for one in alone]
    model, processor = pipe.model, pipe.processor
    for chat, found in zip(chats(), alone, strict=True):
        inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
        output = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
        wanted = processor.decode(output, skip_special_tokens=True)
        assert found[0]["generated_text"].strip() == wanted.strip() != ""


def test_image_text_to_text_continues_texts_and_begun_answers(parts):
    model, processor = parts
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    texts, pictures = ["This is <image>", "<image> is a dog"], [tiny.picture(1), tiny.picture(2)]
    found = pipe(images=pictures, text=texts, generate_kwargs=dict(GREEDY))
    assert [one["input_text"] for one in found] == texts and all(len(one["generated_text"]) > 8 for one in found)
    begun = [*chats()[0], message("assistant", "The cat")]
    (found,) = pipe(text=begun, generate_kwargs=dict(GREEDY))
    assert found["generated_text"][-1]["content"][-1]["text"].startswith("The cat")
    with pytest.raises(PromptProblem, match="apply_chat_template"):
        pipe(images=pictures[0], text="<image> What is it?", generate_kwargs=dict(GREEDY))


def test_any_to_any_writes_text_and_says_that_it_does_not_draw(folder):
    pipe = pipeline("any-to-any", model=str(folder))
    assert isinstance(pipe.model, DreamLLMForConditionalGeneration)
    assert AutoModelForMultimodalLM._model_mapping[type(pipe.model.config)] is DreamLLMForConditionalGeneration
    (found,) = pipe(text=chats()[0], generate_kwargs=dict(GREEDY), return_full_text=False)
    wanted = pipeline("image-text-to-text", model=pipe.model, processor=pipe.processor)
    (other,) = wanted(text=chats()[0], generate_kwargs=dict(GREEDY), return_full_text=False)
    assert found["generated_text"] == other["generated_text"] != ""
    with pytest.raises(ValueError, match="`generation_mode=image` is not supported"):
        pipe(text=chats()[0], generation_mode="image")


# ---- outputs, attention, compilation --------------------------------------------------------------------------------


def test_hidden_states_attentions_and_tuples_are_returned_on_demand(parts):
    model, processor = parts
    inputs = processor(text="This is <image> .", images=tiny.picture())
    plain = model(**inputs)
    assert plain.hidden_states is None and plain.attentions is None
    output = model(**inputs, output_hidden_states=True)
    assert len(output.hidden_states) == 3 and torch.equal(output.hidden_states[-1], output.last_hidden_state)
    logits, hidden = model(**inputs, return_dict=False)
    assert torch.equal(logits, plain.logits) and torch.equal(hidden, plain.last_hidden_state)
    labels = inputs["input_ids"]
    output = model(**inputs, labels=labels)
    as_tuple = model(**inputs, labels=labels, return_dict=False)
    assert torch.equal(as_tuple[0], output.loss) and torch.equal(output["logits"], plain.logits)
    generated = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_hidden_states=True)
    assert len(generated.hidden_states) == len(generated.sequences[0]) - inputs["input_ids"].shape[1]


def test_attentions_are_returned_by_eager_attention(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(text="A ship.")
    attentions = model(**inputs, output_attentions=True).attentions
    length = inputs["input_ids"].shape[1]
    assert len(attentions) == 2 and attentions[0].shape == (1, 4, length, length)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attn_implementation_reaches_the_parts_of_transformers(parts, folder, attention):
    model, processor = parts
    inputs = processor(text=["This is <image> .", "A ship."], images=tiny.picture())
    loaded = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=attention)
    assert loaded.language_model.config._attn_implementation == attention
    assert loaded.vision_model.config._attn_implementation == attention
    seen = inputs["attention_mask"].bool()
    assert torch.allclose(loaded(**inputs).logits[seen], model(**inputs).logits[seen], atol=1e-5)
    loaded.set_attn_implementation("eager" if attention == "sdpa" else "sdpa")
    assert torch.allclose(loaded(**inputs).logits[seen], model(**inputs).logits[seen], atol=1e-5)


def test_the_compiled_model_computes_the_same(parts):
    """Compiled by dynamo, which finds what cannot be compiled; without a C++ compiler no kernels are made."""
    model, processor = parts
    inputs = processor(text="This is <image> .", images=tiny.picture())
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(**inputs).logits, model(**inputs).logits, atol=1e-6)
        static = model.generate(**inputs, **GREEDY, cache_implementation="static")
        assert torch.equal(static, model.generate(**inputs, **GREEDY))


def test_resized_embeddings_are_saved_and_loaded(folder, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    model.resize_token_embeddings(420, mean_resizing=False)
    assert model.config.text_config.vocab_size == 420
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().num_embeddings == loaded.get_output_embeddings().out_features == 420
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


# ---- the page about them --------------------------------------------------------------------------------------------


def test_the_page_of_conventions_names_tests_that_exist():
    here = Path(__file__).parent
    page = (here.parent / "docs" / "huggingface.md").read_text(encoding="utf-8")
    tests = {
        name
        for file in here.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 25 and not named - tests
