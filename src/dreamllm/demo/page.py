"""The demo page: its elements, and what happens when they are used. What it computes is in `actions`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nicegui import binding, run, ui
from PIL import Image

from dreamllm.data.document import Part
from dreamllm.demo import actions
from dreamllm.demo.actions import Examples, LiveText, Settings
from dreamllm.demo.elements import Attached, examples, notify, numbers, parts, picture
from dreamllm.demo.style import CSS
from dreamllm.evaluate.demo_page import STOPPED
from dreamllm.model.conversation import Conversation
from dreamllm.model.pipeline import DreamLLMPipeline

TILE, LARGE = 96, 384  # pixels of attention maps


@dataclass
class Demo:
    """A loaded model for all visitors. name: of the model; lock: one computation at a time"""

    pipe: DreamLLMPipeline
    name: str
    examples: Examples
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


def serve(demo: Demo, host: str, port: int) -> None:
    """Serve the page until Ctrl+C. Every visitor, and every reload, has an own conversation and own settings."""
    demo.pipe.set_progress_bar_config(disable=True)
    binding.MAX_PROPAGATION_TIME = 1  # seconds; NiceGUI warns from 0.01, which a busy machine always takes
    ui.run(
        partial(build, demo),
        host=host,
        port=port,
        title="DreamLLM",
        favicon="🎨",
        dark=None,  # as the browser's theme
        reload=False,
        show=False,
        show_welcome_message=False,
        tailwind=False,
        reconnect_timeout=60,  # a page in the background keeps its conversation for so many seconds
    )


def build(demo: Demo) -> None:
    """The page of one visitor."""
    ui.add_css(CSS)
    ui.colors(primary="#6750a4")
    settings = Settings()
    with ui.column().classes("page"):
        with ui.row().classes("head"):
            ui.label("DreamLLM").classes("title")
            ui.label(demo.name).classes("quiet")
        with ui.tabs().props("no-caps align=left dense outside-arrows") as tabs:
            names = [ui.tab(name) for name in ("Draw", "Chat", "Story", "Attention")]
        with ui.tab_panels(tabs, value=names[0]).classes("panels"):
            with ui.tab_panel(names[1]):
                chat = ChatPanel(demo, settings)
            with ui.tab_panel(names[0]):

                def ask_about(image: Image.Image) -> None:
                    chat.attached.add(image)
                    tabs.set_value(names[1])

                DrawPanel(demo, settings, ask_about)
            with ui.tab_panel(names[2]):
                StoryPanel(demo, settings)
            with ui.tab_panel(names[3]):
                AttentionPanel(demo, settings)
        if demo.examples.words:
            with ui.expansion("Words that this model knows").props("dense").classes("words"):
                ui.label(demo.examples.words).classes("listing")


class Panel:
    """What all panels have: model, settings, buttons that compute, and a place for the sign that they do."""

    spinner: Any

    def __init__(self, demo: Demo, settings: Settings) -> None:
        self.demo, self.settings = demo, settings
        self.model, self.processor = demo.pipe.model, demo.pipe.processor
        self.buttons: list[Any] = []

    def go(self, label: str, handler: Callable[[], Any], icon: str) -> Any:
        """A button that computes."""
        button = ui.button(label, on_click=handler, icon=icon).props("no-caps unelevated")
        self.buttons.append(button)
        return button

    async def compute(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The function's value, computed in a thread while the page goes on; None where there is a problem, which is
        shown. Computations of other visitors come first where they asked before."""
        for button in self.buttons:
            button.disable()
        with self.spinner:
            ui.spinner(size="1.5em")
        try:
            async with self.demo.lock:
                return await run.io_bound(function, *arguments, **options)
        except Exception as error:
            if isinstance(error, ValueError) and type(error).__module__.startswith("dreamllm."):
                notify(str(error))
                return None
            notify(f"{type(error).__name__}: see the terminal")
            raise
        finally:
            self.spinner.clear()
            for button in self.buttons:
                button.enable()


# ---- panels --------------------------------------------------------------------------------------------------------


class DrawPanel(Panel):
    """Images for a prompt, each with its seed."""

    def __init__(self, demo: Demo, settings: Settings, ask_about: Callable[[Image.Image], None]) -> None:
        super().__init__(demo, settings)
        self.ask_about = ask_about
        self.prompt = ui.input("Prompt").props("outlined clearable").classes("wide").on("keydown.enter", self.draw)
        examples(demo.examples.drawings, self.prompt.set_value)
        self.attached = Attached()
        with ui.row().classes("numbers"):
            numbers(settings, "seed", "images", "guidance", "steps")
            negative = ui.input("Negative prompt").props("dense outlined").classes("grow")
            negative.bind_value(settings, "negative_prompt")
        self.done = {"share": 0.0}
        with ui.row().classes("actions"):
            self.go("Draw", self.draw, "brush")
            self.spinner = ui.row()
            bar = ui.linear_progress(show_value=False).bind_value_from(self.done, "share").classes("grow")
            bar.bind_visibility_from(self.done, "share")
        self.results = ui.row().classes("pictures")

    async def draw(self) -> None:
        """Replace the images by those of the prompt."""
        first, steps = self.settings.seed, self.settings.steps or 1

        def after_step(step: int) -> None:
            self.done["share"] = step / steps

        images = await self.compute(
            actions.draw, self.demo.pipe, self.prompt.value, self.attached.images, self.settings, after_step
        )
        self.done["share"] = 0.0
        if images is None:
            return
        self.results.clear()
        with self.results:
            for number, image in enumerate(images):
                with ui.column().classes("figure"):
                    picture(image, self.prompt.value or "image")
                    with ui.row().classes("caption"):
                        ui.label(f"seed {int(first or 0) + number}").classes("quiet")
                        ask = ui.button(icon="chat", on_click=partial(self.ask_about, image))
                        ask.props('flat dense size=sm round aria-label="Ask about it"').tooltip("Ask about it")


class ChatPanel(Panel):
    """A conversation. Each visitor has an own one."""

    def __init__(self, demo: Demo, settings: Settings) -> None:
        super().__init__(demo, settings)
        self.conversation = Conversation(
            self.model, self.processor, settings.writing(), settings.drawing(), settings.whole("seed")
        )
        self.talk = ui.column().classes("talk")
        self.attached = Attached(demo.examples.images)
        self.words = ui.input("Message").props("outlined clearable").classes("wide").on("keydown.enter", self.send)
        examples(demo.examples.questions, self.words.set_value)
        with ui.row().classes("actions"):
            self.go("Send", self.send, "send")
            self.go("Draw", self.draw, "brush").props("outline")
            self.go("New conversation", self.reset, "restart_alt").props("flat")
            self.spinner = ui.row()
        ui.label(
            "Send: the model decides whether to answer with text or images. Draw: it generates one image."
        ).classes("quiet")
        with ui.expansion("Settings").props("dense").classes("wide"), ui.row().classes("numbers"):
            numbers(settings, "seed", "temperature", "max_new_tokens", "max_pictures", "guidance", "steps")

    def reset(self) -> None:
        """Begin a new conversation."""
        self.conversation.parts = ()
        self.talk.clear()
        self.attached.clear()

    async def send(self) -> None:
        """Say the message, and show what the model answers."""

        def answer(words: str, images: list[Image.Image]) -> tuple[Sequence[Part], str]:
            result = self.conversation.answer(words, images)
            return result.parts, "" if result.stopped == "end" else STOPPED[result.stopped]

        await self._turn(answer)

    async def draw(self) -> None:
        """Say the message, and show one image for it."""

        def draw(words: str, images: list[Image.Image]) -> tuple[Sequence[Part], str]:
            self.conversation.draw(words, images)
            return self.conversation.parts[-1:], ""

        await self._turn(draw)

    async def _turn(self, respond: Callable[[str, list[Image.Image]], tuple[Sequence[Part], str]]) -> None:
        images, before = list(self.attached.images), len(self.conversation.parts)

        def turn() -> tuple[Sequence[Part], str, int]:
            words = actions.prompt_of(self.words.value, images)
            talk = self.conversation
            talk.text, talk.drawing = self.settings.writing(), self.settings.drawing()
            if not talk.parts:
                talk.seed = self.settings.whole("seed")
            seed = talk.seed
            return *respond(words, images), seed

        if (made := await self.compute(turn)) is None:
            return
        answer, why, seed = made
        asked = self.conversation.parts[before : len(self.conversation.parts) - len(answer)]
        with self.talk:
            with ui.column().classes("said user"):
                parts(asked)
            with ui.column().classes("said"):
                parts(answer)
                ui.label(f"seed {seed}" + (f"; {why}" if why else "")).classes("quiet")
        self.words.set_value("")
        self.attached.clear()


class StoryPanel(Panel):
    """A beginning, and how the model continues it with text and images."""

    def __init__(self, demo: Demo, settings: Settings) -> None:
        super().__init__(demo, settings)
        self.prompt = ui.textarea("Beginning").props("outlined autogrow clearable").classes("wide")
        examples(demo.examples.stories, self.prompt.set_value)
        self.attached = Attached()
        with ui.row().classes("numbers"):
            numbers(settings, "seed", "temperature", "max_new_tokens", "max_pictures", "guidance", "steps")
        with ui.row().classes("actions"):
            self.go("Continue", self.tell, "auto_stories")
            self.spinner = ui.row()
        self.results = ui.column().classes("story")

    async def tell(self) -> None:
        """Replace the story by the continued beginning."""
        live = LiveText(self.processor)
        self.results.clear()
        with self.results:
            ui.label().bind_text_from(live, "text").classes("quiet")
        made = await self.compute(
            actions.story, self.model, self.processor, self.prompt.value, self.attached.images, self.settings, live
        )
        self.results.clear()
        if made is None:
            return
        with self.results:
            with ui.column().classes("given"):
                parts(made.prompt.parts)
            parts(made.parts)
            ui.label(f"seed {self.settings.seed:.0f}; {STOPPED[made.stopped]}").classes("quiet")


class AttentionPanel(Panel):
    """An image, and where the decoder attended to each dream query while it was generated."""

    def __init__(self, demo: Demo, settings: Settings) -> None:
        super().__init__(demo, settings)
        self.prompt = ui.input("Prompt").props("outlined clearable").classes("wide").on("keydown.enter", self.attend)
        examples(demo.examples.drawings, self.prompt.set_value)
        self.attached = Attached()
        with ui.row().classes("numbers"):
            numbers(settings, "seed", "guidance", "steps")
        with ui.row().classes("actions"):
            self.go("Show attention", self.attend, "grid_on")
            self.spinner = ui.row()
        self.results = ui.column().classes("wide")

    async def attend(self) -> None:
        """Replace image and maps by those of the prompt."""
        made = await self.compute(
            actions.attend, self.model, self.processor, self.prompt.value, self.attached.images, self.settings
        )
        if made is None:
            return
        image, maps = made
        shares = maps.mean(axis=(1, 2))  # (Q,), of the attention of the whole image
        tiles, large = (actions.heat_maps(image, maps, side) for side in (TILE, LARGE))
        self.results.clear()
        with self.results:
            ui.label(
                "Cross-attention of the decoder: how each place of the image divides its attention among the dream "
                "queries, averaged over steps, layers and heads. Bright is much, on one scale for all queries. The "
                "queries are in order of their share of the whole image; click on one to enlarge it."
            ).classes("quiet")
            with ui.row().classes("pictures"):
                with ui.column().classes("figure"):
                    picture(image, self.prompt.value or "image")
                    ui.label(f"seed {self.settings.seed:.0f}").classes("quiet")
                enlarged = ui.column().classes("figure")

            def enlarge(query: int) -> None:
                enlarged.clear()
                with enlarged:
                    picture(large[query], f"attention to query {query}")
                    ui.label(f"query {query}: {shares[query]:.1%}").classes("quiet")

            order = [int(query) for query in (-shares).argsort(kind="stable")]
            enlarge(order[0])
            with ui.row().classes("tiles"):
                for query in order:
                    with ui.button(on_click=partial(enlarge, query)).props("flat dense").classes("tile"):
                        picture(tiles[query], f"attention to query {query}")
                        ui.label(f"{query}: {shares[query]:.1%}").classes("quiet")
