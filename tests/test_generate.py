"""Generation: an image does not depend on its batch; free interleaving keeps the layout and stops cleanly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import tiny
from dreamllm.data.document import Document, Picture, Text
from dreamllm.data.layout import lay_out_prompt
from dreamllm.model import decoding
from dreamllm.model.generate import TextSampling, draw, interleave, query_states, write
from dreamllm.model.sampling import PictureSampling, make_scheduler
from dreamllm.seeds import seed_of

QUICK = PictureSampling(steps=2, guidance=3.0)
MODEL, PROCESSOR = tiny.build()


def text(words: str) -> Document:
    return Document(words, "text", (Text(words),))


PROMPTS = [text("A ship."), tiny.story(1), text("A photo of a dog running on the beach."), tiny.conversation(2)]


def same_picture(one, other, levels: int = 1) -> bool:
    """Equal but for the rounding of floating-point sums, which may differ with the size of a batch."""
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= levels


# ---- drawing --------------------------------------------------------------------------------------------------------


def test_conditions_do_not_depend_on_batch_mates():
    together = query_states(MODEL, PROCESSOR, PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        assert torch.allclose(query_states(MODEL, PROCESSOR, [prompt]), together[index], atol=1e-5)


def test_conditions_are_those_of_training():
    document = tiny.pair(3)
    sequences = PROCESSOR.lay_out(document, "creation", 256)
    batch = PROCESSOR.collate([sequences])
    hidden = MODEL(**batch.inputs() | {"labels": None, "draw_pixels": None}).last_hidden_state
    start = sequences[0].draw_slots[0].start
    states = query_states(MODEL, PROCESSOR, [document], mode="creation")
    assert torch.allclose(states, hidden[:, start : start + PROCESSOR.num_dream_queries], atol=1e-5)


@pytest.mark.parametrize(
    "scheduler", ["DPMSolverMultistepScheduler", "DDPMScheduler", "EulerAncestralDiscreteScheduler"]
)
def test_a_picture_depends_on_its_prompt_and_seed_alone(scheduler):
    drawing = PictureSampling(scheduler, steps=3, guidance=3.0)
    together = draw(MODEL, PROCESSOR, PROMPTS, [5, 6, 7, 8], drawing)
    assert [picture.size for picture in together] == [(16, 16)] * 4
    (alone,) = draw(MODEL, PROCESSOR, PROMPTS[2:3], [7], drawing)
    assert same_picture(alone, together[2])
    (other_seed,) = draw(MODEL, PROCESSOR, PROMPTS[2:3], [9], drawing)
    assert not same_picture(alone, other_seed, levels=20)


def test_every_prompt_needs_a_seed():
    with pytest.raises(ValueError, match="2 prompts need as many seeds, not 1"):
        draw(MODEL, PROCESSOR, PROMPTS[:2], [1], QUICK)


@pytest.mark.parametrize(
    "name", ["PNDMScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_any_scheduler_of_diffusers_draws(name):
    (picture,) = draw(MODEL, PROCESSOR, PROMPTS[:1], [0], PictureSampling(name, steps=5, guidance=1.0))
    assert picture.size == (16, 16)


def test_few_steps_start_at_the_last_timestep():
    for steps in (4, 150):
        scheduler = make_scheduler("DDPMScheduler", MODEL.config.scheduler_config)
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps[0] == 999


@pytest.mark.parametrize("name", ["NoSuchScheduler", "UNet2DConditionModel"])
def test_an_unknown_scheduler_is_an_error(name):
    with pytest.raises(ValueError, match=f"'{name}' is not a scheduler class of diffusers"):
        make_scheduler(name, MODEL.config.scheduler_config)


# ---- text -----------------------------------------------------------------------------------------------------------


def test_text_does_not_depend_on_batch_mates_and_holds_no_special_token():
    together = write(MODEL, PROCESSOR, PROMPTS, max_new_tokens=12)
    assert together == [write(MODEL, PROCESSOR, [prompt], max_new_tokens=12)[0] for prompt in PROMPTS]
    assert not any("<" in output and ">" in output for output in together)


def test_a_prompt_without_room_to_write_is_an_error():
    length = PROCESSOR.context - 1
    words = PROCESSOR.tokenizer.decode([PROCESSOR.tokenizer.convert_tokens_to_ids("▁the")] * length)
    with pytest.raises(ValueError, match="leaves no room"):
        write(MODEL, PROCESSOR, [text(words)])


def test_a_model_in_bf16_writes_draws_and_trains():
    model, processor = tiny.build()
    model.to(torch.bfloat16)
    assert len(write(model, processor, PROMPTS, max_new_tokens=3)) == 4
    (result,) = interleave(model, processor, PROMPTS[:1], [0], TextSampling(max_new_tokens=3), QUICK)
    assert draw(model, processor, PROMPTS[:1], [0], QUICK)[0].size == (16, 16)
    batch = processor.collate([processor.lay_out(tiny.story(1), "joint", 256)])
    model.config.condition_dropout = 0.5
    model.train()(**batch.inputs(), generator=torch.Generator().manual_seed(0)).loss.backward()
    assert torch.isfinite(model.dream_queries.grad).all() and result.stopped == "tokens"


# ---- free interleaving ----------------------------------------------------------------------------------------------


def script(monkeypatch, *words: str | int):
    """Make the model want to say this, whatever it reads: words, "picture" or "end"."""
    vocabulary = PROCESSOR.vocabulary
    marks = {"picture": [vocabulary.dream_start], "end": [vocabulary.eos]}
    said = iter([token for word in words for token in marks.get(word) or vocabulary.encode(word)])
    monkeypatch.setattr(decoding, "choose", lambda *_: [next(said)])


def test_a_dream_start_draws_a_picture_which_is_read_back(monkeypatch):
    script(monkeypatch, "The river bends slowly.", "picture", "It ends", "picture", "picture", "end")
    (result,) = interleave(MODEL, PROCESSOR, [text("A ship.")], [0], TextSampling(), QUICK)
    assert result.stopped == "end"
    kinds = [part.text if isinstance(part, Text) else part.image.size for part in result.parts]
    assert kinds == ["The river bends slowly.", (16, 16), "It ends", (16, 16), (16, 16)]
    assert result.document.kind == "interleaved" and result.document.parts[0] == Text("A ship.")


def test_the_cache_holds_what_training_would_lay_out(monkeypatch):
    """After a continuation, the next word is predicted as if prompt and continuation had been read in one go."""
    prompt = tiny.story(4)
    script(monkeypatch, "The river bends slowly.", "picture", "It ends")
    seen = []
    scripted = decoding.choose
    monkeypatch.setattr(
        decoding, "choose", lambda scores, *rest: (seen.append(scores[0].clone()), scripted(scores, *rest))[1]
    )
    writing = TextSampling(max_new_tokens=len(PROCESSOR.vocabulary.encode("The river bends slowly.It ends")) - 1)
    (result,) = interleave(MODEL, PROCESSOR, [prompt], [3], writing, QUICK)
    words = [PROCESSOR.vocabulary.encode(part.text) for part in result.parts if isinstance(part, Text)]
    sequence = lay_out_prompt(result.document, PROCESSOR.vocabulary, "joint", 256)
    assert sequence.input_ids[-len(words[-1]) :] == tuple(words[-1])
    inputs = PROCESSOR.prompts([result.document])
    logits = MODEL(**inputs).logits[0, -1]
    kept = torch.isfinite(seen[-1])
    assert result.stopped == "tokens"
    assert torch.allclose(seen[-1][kept], logits[kept], atol=1e-4)


def test_a_picture_drawn_on_the_way_is_the_one_drawn_after_the_same_words(monkeypatch):
    prompt = tiny.story(4)
    script(monkeypatch, "The river bends slowly.", "picture", "end")
    (result,) = interleave(MODEL, PROCESSOR, [prompt], [3], TextSampling(), QUICK)
    read = dataclasses.replace(prompt, parts=(*prompt.parts, result.parts[0]))
    (picture,) = draw(MODEL, PROCESSOR, [read], [seed_of(3, "picture", 0)], QUICK)
    assert same_picture(result.parts[1].image, picture)


def test_several_prompts_give_what_each_gives_alone():
    model, processor = tiny.build()
    bias = torch.zeros(408)
    bias[processor.vocabulary.dream_start] = 4.0  # a random model seldom draws
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: output + bias)
    writing = TextSampling(temperature=1.0, top_p=0.9, max_new_tokens=12, max_pictures=2)
    together = interleave(model, processor, PROMPTS, [1, 2, 3, 4], writing, QUICK)
    assert sum(isinstance(part, Picture) for result in together for part in result.parts) >= 3
    for index, prompt in enumerate(PROMPTS):
        (alone,) = interleave(model, processor, [prompt], [index + 1], writing, QUICK)
        assert alone.stopped == together[index].stopped
        assert len(alone.parts) == len(together[index].parts)
        for one, other in zip(alone.parts, together[index].parts, strict=True):
            assert one == other if isinstance(one, Text) else same_picture(one.image, other.image)


def test_an_answer_in_a_conversation_is_the_assistants(monkeypatch):
    script(monkeypatch, "Here they are.", "picture", "end")
    prompt = Document("chat", "conversation", (Text("Draw two dogs.", "user"),))
    (result,) = interleave(MODEL, PROCESSOR, [prompt], [0], TextSampling(), QUICK)
    assert [part.role for part in result.document.parts] == ["user", "assistant", "assistant"]


def test_in_mode_creation_pictures_are_not_read_back(monkeypatch):
    script(monkeypatch, "picture", "end")
    read = []
    monkeypatch.setattr(MODEL.vision_model.embeddings, "forward", lambda *_: read.append("a picture"))
    (result,) = interleave(MODEL, PROCESSOR, [text("A ship.")], [0], TextSampling(), QUICK, mode="creation")
    assert len(result.parts) == 1 and not read


def test_it_stops_at_the_wanted_number_of_pictures_and_tokens(monkeypatch):
    script(monkeypatch, "picture", "picture")
    (result,) = interleave(MODEL, PROCESSOR, [text("A ship.")], [0], TextSampling(max_pictures=1), QUICK)
    assert (result.stopped, len(result.parts)) == ("pictures", 1)
    script(monkeypatch, "The river bends slowly.")
    (result,) = interleave(MODEL, PROCESSOR, [text("A ship.")], [0], TextSampling(max_new_tokens=2), QUICK)
    assert (result.stopped, len(result.parts)) == ("tokens", 1)


def test_a_full_context_stops_before_a_block_and_between_tokens(monkeypatch):
    model, processor = tiny.build()
    prompt = text("A ship.")
    block = processor.num_dream_queries + 2 + processor.num_patches + 2
    processor.context = len(processor.lay_out_prompt(prompt, "joint")) + block + 1
    script(monkeypatch, "picture", "the", "the")
    (result,) = interleave(model, processor, [prompt], [0], TextSampling(), QUICK)
    assert result.stopped == "context" and [type(part) for part in result.parts] == [Picture, Text]
    processor.context -= 2
    script(monkeypatch, "picture")
    (result,) = interleave(model, processor, [prompt], [0], TextSampling(), QUICK)
    assert (result.stopped, result.parts) == ("context", ())


def test_it_never_writes_a_token_that_is_no_target(monkeypatch):
    seen = []
    monkeypatch.setattr(
        decoding, "choose", lambda scores, *_: (seen.append(scores[0].clone()), [PROCESSOR.vocabulary.eos])[1]
    )
    interleave(MODEL, PROCESSOR, [text("A ship.")], [0], TextSampling(), QUICK)
    vocabulary = PROCESSOR.vocabulary
    barred = [
        vocabulary.pad,
        vocabulary.im_patch,
        vocabulary.im_start,
        vocabulary.im_end,
        vocabulary.dream_end,
        vocabulary.bos,
    ]
    assert torch.isinf(seen[0][barred]).all()
    assert torch.isfinite(seen[0][[vocabulary.eos, vocabulary.dream_start]]).all()
