"""The demo page: what it computes is what the other verbs compute, and in a browser it does so on every panel."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

import browser
import tiny
from dreamllm import cli
from dreamllm.config.evaluation import Drawing
from dreamllm.data.document import Document, Picture, Text
from dreamllm.demo import actions
from dreamllm.demo.actions import SettingProblem, Settings
from dreamllm.emoji import grammar
from dreamllm.evaluate import drawing, model_options
from dreamllm.evaluate.tasks import attention
from dreamllm.evaluate.tasks.draw import DrawItem
from dreamllm.model import generate
from dreamllm.model.pipeline import DreamLLMPipeline
from dreamllm.model.sampling import PictureSampling, SamplingProblem
from dreamllm.verbs import demo

MODEL, PROCESSOR = tiny.build()
PIPE = DreamLLMPipeline.from_model(MODEL, PROCESSOR)
PIPE.set_progress_bar_config(disable=True)
QUICK = PictureSampling(steps=2)


def quick(**changes) -> Settings:
    return Settings(**{"steps": 2, "images": 2, "max_new_tokens": 6} | changes)


def own(document: Document, seed: int, sampling: PictureSampling = QUICK) -> np.ndarray:
    return np.asarray(generate.draw(MODEL, PROCESSOR, [document], [seed], sampling)[0])


# ---- what the page computes ----------------------------------------------------------------------------------------


def test_images_are_those_of_dreamllm_draw_with_the_seeds_that_are_shown():
    steps = []
    made = actions.draw(PIPE, " A ship. ", [], quick(seed=3.0), steps.append)
    assert steps == [1, 2] and len(made) == 2
    for seed, image in enumerate(made, 3):
        assert np.array_equal(np.asarray(image), own(Document("", "text", (Text("A ship."),)), seed))


def test_an_image_is_read_before_the_prompt_and_guidance_leads_away_from_the_negative_prompt():
    settings = quick(images=1, guidance=5, negative_prompt="Two dogs.")
    (made,) = actions.draw(PIPE, "A ship.", [tiny.picture(1)], settings)
    read = Document("", "interleaved", (Picture(tiny.picture(1)), Text("A ship.")))
    assert np.array_equal(
        np.asarray(made), own(read, 0, PictureSampling(steps=2, guidance=5, negative_prompt="Two dogs."))
    )


def test_a_story_is_that_of_dreamllm_generate_and_is_shown_while_it_is_written():
    settings, live = quick(seed=5, max_new_tokens=30, temperature=1), actions.LiveText(PROCESSOR)
    made = actions.story(MODEL, PROCESSOR, "A ship.", [], settings, live)
    beginning = Document("", "interleaved", (Text("A ship."),))
    writing = generate.TextSampling(temperature=1, max_new_tokens=30, max_pictures=4)
    (expected,) = generate.interleave(MODEL, PROCESSOR, [beginning], [5], writing, QUICK)
    texts = [part.text for part in made.parts if isinstance(part, Text)]
    assert texts == [part.text for part in expected.parts if isinstance(part, Text)]
    assert "".join("".join(texts).split()) == "".join(live.text.split()) != ""


def test_attention_is_that_of_the_benchmark():
    image, maps = actions.attend(MODEL, PROCESSOR, "A ship.", [], quick(seed=4))
    request = drawing.DrawRequest(DrawItem("ship", "A ship.", "", None), "A ship.", 4, "0.png")
    expected = attention.measure(MODEL, PROCESSOR, [request], Drawing(scheduler=QUICK.scheduler, steps=2, guidance=3.0))
    assert np.array_equal(maps, expected["maps"][0].numpy())
    assert np.array_equal(np.asarray(image), expected["pictures"][0].numpy())
    assert np.allclose(maps.sum(axis=0), 1, atol=1e-5)


def test_heat_maps_are_brightest_where_the_attention_is():
    maps = np.zeros((2, 4, 4), dtype=np.float32)
    maps[0, 0, 0], maps[1, 3, 3] = 1, 0.25
    first, second = (np.asarray(one.convert("L")) for one in actions.heat_maps(Image.new("RGB", (20, 10)), maps, 40))
    assert first.shape == (20, 40), "the image's form"
    assert first[0, 0] == first.max() > second[-1, -1] == second.max() > first[-1, -1]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seed": None}, "Seed is empty: expected a number from 0 to"),
        ({"images": 17}, "Images is 17: expected a number from 1 to 16"),
        ({"steps": 0}, "Steps is 0"),
        ({"guidance": float("nan")}, "Guidance is nan"),
        ({"guidance": 1, "negative_prompt": "x"}, "without guidance"),
    ],
)
def test_settings_that_cannot_be_used_are_named(changes, problem):
    with pytest.raises((SettingProblem, SamplingProblem), match=problem):
        actions.draw(PIPE, "A ship.", [], quick(**changes))


def test_a_prompt_has_words_or_an_image():
    with pytest.raises(SettingProblem, match="Write a prompt first"):
        actions.draw(PIPE, None, [], quick())
    assert actions.prompt_of(None, [tiny.picture(1)]) == ""


def test_examples_of_the_emoji_world_are_in_its_language():
    made = actions.emoji_examples()
    scenes = [grammar.parse_caption(text) for text in made.drawings]
    assert None not in scenes and not any(scene.held_out for scene in scenes)
    for scene, image in zip(scenes, made.images, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(actions.render(scene, 96, random.Random(0))))


# ---- the verb ------------------------------------------------------------------------------------------------------


def flags(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(given)


def test_by_default_only_this_machine_reaches_the_page():
    assert flags().host == "127.0.0.1"


def test_without_nicegui_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^dreamllm demo: NiceGUI.* is not installed: pip install dreamllm\[demo\]$"):
        cli.main(["demo"])


@pytest.mark.parametrize("port", ["taken", "99999"])
def test_an_address_that_cannot_be_used_is_named_before_a_model_is_loaded(port, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: name)
    monkeypatch.setattr(model_options, "load", lambda arguments: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1]) if port == "taken" else port
        with pytest.raises(SystemExit, match=f"cannot listen at 127.0.0.1:{port} .*choose another --port"):
            cli.main(["demo", "--port", port])


def test_examples_of_the_emoji_world_are_for_checkpoints_on_its_foundations_only(tmp_path):
    (tmp_path / "card.json").touch()
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/checkpoint.json").touch()
    here = ["--foundations", str(tmp_path)]
    assert model_options.knows_emoji_world(flags(*here))
    assert model_options.knows_emoji_world(flags(*here, "--model", str(tmp_path / "sft")))
    assert not model_options.knows_emoji_world(flags(*here, "--model", "me/mine"))
    assert not model_options.knows_emoji_world(flags("--foundations", str(tmp_path / "sft")))


# ---- in the browser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """The page of the tiny model, served by the command line."""
    if not (browser.PROGRAM and find_spec("nicegui")):
        pytest.skip("Chromium or NiceGUI is not installed")
    folder = tmp_path_factory.mktemp("demo")
    PIPE.save_pretrained(folder / "pipe")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "dreamllm", "demo", "--model", "pipe", "--port", str(port)]
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "NICEGUI"))}
    with (folder / "log").open("w") as log:
        served = subprocess.Popen(command, cwd=folder, env=plain, stdout=log, stderr=log)
    try:
        for _ in range(1500):
            assert served.poll() is None, (folder / "log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                asyncio.run(asyncio.sleep(0.2))
        yield f"http://127.0.0.1:{port}"
    finally:
        served.terminate()
        served.wait(60)
    assert "Traceback" not in (folder / "log").read_text()


async def until(page: browser.Page, condition: str) -> None:
    """Wait for a condition of JavaScript."""
    for _ in range(1500):
        if await page.evaluate(condition):
            return
        await asyncio.sleep(0.1)
    shown = await page.evaluate("document.body.innerText")
    pytest.fail(f"in vain waited for {condition}; shown: {shown}; messages: {page.messages}")


SEEN = "[...document.querySelectorAll({})].filter(one => one.offsetParent && one.innerText.includes({}))"


async def click(page: browser.Page, label: str, kind: str = ".q-tab-panel button:not([disabled])") -> None:
    found = SEEN.format(repr(kind), repr(label))
    await until(page, f"{found}.length > 0")
    await page.evaluate(f"{found}[0].click()")


async def write(page: browser.Page, label: str, text: str) -> None:
    """Type into the field with this label of the open panel."""
    field = f"document.querySelector('.q-tab-panel [aria-label=\"{label}\"]')"
    await until(page, f"{field} !== null")
    await page.evaluate(f"{field}.focus(), {field}.select()")
    await page.call("Input.dispatchKeyEvent", type="keyDown", key="Delete", code="Delete", windowsVirtualKeyCode=46)
    if text:
        await page.call("Input.insertText", text=text)
    await asyncio.sleep(0.5)  # the page sends it


BUTTONS = {"Chat": "New conversation", "Story": "Continue", "Attention": "Show attention"}  # of one panel alone


async def tab(page: browser.Page, name: str) -> None:
    """Open a panel, and wait until it is the only one."""
    await click(page, name, ".q-tab")
    panels = "[...document.querySelectorAll('.q-tab-panel')].map(one => one.innerText)"
    await until(page, f"{panels}.length == 1 && {panels}[0].includes({BUTTONS[name]!r})")


async def opened(page: browser.Page, address: str, scheme: str = "light") -> None:
    await page.open(address, 380, 800, scheme)
    await until(page, "document.querySelectorAll('.q-tab').length == 4")


async def quicken(page: browser.Page) -> None:
    """Open the panel Story and choose quick settings there, which all panels share."""
    await tab(page, "Story")
    for label, number in (("Most tokens", "5"), ("Most images", "1"), ("Steps", "2")):
        await write(page, label, number)


def test_images_are_drawn_with_their_seeds_at_phone_width_in_both_themes(address):
    async def visit() -> None:
        async with browser.chromium() as page:
            dark = []
            for scheme in ("light", "dark"):
                await opened(page, address, scheme)
                await write(page, "Prompt", "<b>A ship.</b>")
                await write(page, "Seed", "7")
                await write(page, "Steps", "2")
                await click(page, "Draw")
                await until(page, "document.querySelectorAll('.figure img').length == 4")
                shown = await page.evaluate("document.querySelector('.pictures').innerText")
                assert [line for line in shown.splitlines() if "seed" in line] == [f"seed {n}" for n in (7, 8, 9, 10)]
                assert await page.evaluate("document.querySelector('.figure img').naturalWidth") == 16
                assert await page.evaluate("document.documentElement.scrollWidth") == 380
                dark.append(await page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 18, 18)")
            assert dark == [False, True]
            loaded = await page.evaluate("performance.getEntriesByType('resource').map(one => one.name)")
            assert len(loaded) > 5 and all(url.startswith(address) for url in loaded)
            await write(page, "Seed", "")
            await click(page, "Draw")
            await until(page, "document.body.innerText.includes('Seed is empty')")
            assert not page.messages

    asyncio.run(visit())


def test_a_visitor_shows_the_model_an_image_and_talks_and_another_one_sees_nothing_of_it(address, tmp_path):
    tiny.picture(1).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")

    async def attach(page: browser.Page, name: str) -> None:
        root = (await page.call("DOM.getDocument"))["root"]["nodeId"]
        chosen = await page.call("DOM.querySelector", nodeId=root, selector=".q-tab-panel input[type=file]")
        await page.call("DOM.setFileInputFiles", nodeId=chosen["nodeId"], files=[str(tmp_path / name)])

    async def visit() -> None:
        async with browser.chromium() as page:
            await opened(page, address)
            await quicken(page)
            await tab(page, "Chat")
            await attach(page, "b.png")
            await until(page, "document.body.innerText.includes('b.png: cannot be decoded as a picture')")
            await attach(page, "a.png")
            await until(page, "document.querySelectorAll('.thumbnail').length == 1")
            await write(page, "Message", "<i>What</i> is this?")
            await click(page, "Send")
            await until(page, "document.querySelectorAll('.said').length == 2")
            assert await page.evaluate("document.querySelector('.said img').naturalWidth") == 20
            assert "<i>What</i> is this?" in await page.evaluate("document.querySelector('.said').innerText")
            await write(page, "Message", "A ship.")
            await click(page, "Draw")
            await until(page, "document.querySelectorAll('.said').length == 4")
            assert (
                await page.evaluate("[...document.querySelectorAll('.said')].pop().querySelector('img').naturalWidth")
                == 16
            )
            assert "seed 1" in await page.evaluate("[...document.querySelectorAll('.said')].pop().innerText")
            await click(page, "New conversation")
            await until(page, "document.querySelectorAll('.said').length == 0")
            async with browser.chromium() as other:
                await opened(other, address)
                await tab(other, "Chat")
                assert await other.evaluate("document.querySelectorAll('.said').length") == 0
            assert not page.messages

    asyncio.run(visit())


def test_stories_and_attention_are_shown(address):
    async def visit() -> None:
        async with browser.chromium() as page:
            await opened(page, address)
            await quicken(page)
            await write(page, "Beginning", "A ship.")
            await click(page, "Continue")
            await until(page, "document.querySelector('.story .given') !== null")
            assert "seed 0; " in await page.evaluate("document.querySelector('.story').innerText")
            await tab(page, "Attention")
            await write(page, "Prompt", "A ship.")
            await click(page, "Show attention")
            await until(page, "document.querySelectorAll('.tiles img').length == 4")
            last = "document.querySelectorAll('.tile')[3]"
            query = (await page.evaluate(f"{last}.innerText")).strip().partition(":")[0]
            await page.evaluate(f"{last}.click()")
            await until(page, f"document.querySelector('.pictures').innerText.includes('query {query}:')")
            assert not page.messages

    asyncio.run(visit())
