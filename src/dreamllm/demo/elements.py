"""Elements that the panels of the demo page share: images, fields of numbers, examples, attached images, problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from nicegui import ui
from nicegui.element import Element
from nicegui.events import UploadEventArguments
from PIL import Image

from dreamllm.data.document import Part, Text
from dreamllm.data.images import decode
from dreamllm.demo.actions import FIELDS, Settings
from dreamllm.evaluate.demo_page import data_url

MOST_BYTES = 32 * 2**20  # of an uploaded file


def picture(image: Image.Image, alt: str) -> Element:
    """An image, which is part of the page."""
    element = ui.element("img").classes("picture")
    element.props["src"] = data_url(image)
    element.props["alt"] = alt
    return element


def parts(shown: Sequence[Part]) -> None:
    """Text and images in their order."""
    for part in shown:
        if isinstance(part, Text):
            ui.label(part.text)
        else:
            picture(part.image, "image")


def numbers(settings: Settings, *names: str) -> None:
    """Fields of the settings."""
    for name in names:
        about = FIELDS[name]
        element = ui.number(about.label, min=about.least, max=about.most, step=about.step)
        element.bind_value(settings, name).props("dense outlined").classes("number")


def examples(texts: Sequence[str], use: Callable[[str], Any]) -> None:
    """A button for each text, which uses it."""
    with ui.row().classes("examples"):
        for text in texts:
            ui.button(text, on_click=partial(use, text)).props("outline rounded no-caps size=12px")


class Attached:
    """Images for the next prompt: a button that opens the browser's dialog for files, and thumbnails."""

    def __init__(self, offered: Sequence[Image.Image] = ()) -> None:
        self.images: list[Image.Image] = []
        with ui.row().classes("attached"):
            self.upload = ui.upload(
                multiple=True,
                auto_upload=True,
                max_file_size=MOST_BYTES,
                on_upload=self._read,
                on_rejected=lambda: notify(f"At most {MOST_BYTES >> 20} MiB, and an image"),
            )
            self.upload.props('accept="image/*"').classes("hidden")
            add = ui.button("Add image", icon="add_photo_alternate").props("flat dense no-caps")
            add.on("click", js_handler=f"() => getElement({self.upload.id}).$refs.qRef.pickFiles()")
            if offered:
                ui.label("or").classes("quiet")
            for image in offered:
                with ui.button(on_click=partial(self.add, image)).props("flat dense").classes("thumbnail offered"):
                    picture(image, "example").tooltip("Add this image")
        self.row = ui.row().classes("attached")

    async def _read(self, event: UploadEventArguments) -> None:
        self.upload.reset()
        try:
            image = decode(await event.file.read())
        except ValueError as error:
            notify(f"{event.file.name}: {error}")
        else:
            self.add(image)

    def add(self, image: Image.Image) -> None:
        """Show an image and keep it for the next prompt."""
        self.images.append(image)
        with self.row, ui.button().props("flat dense").classes("thumbnail") as thumbnail:
            picture(image, "attached image").tooltip("Remove")
        thumbnail.on_click(partial(self._remove, thumbnail, image))

    def _remove(self, thumbnail: Element, image: Image.Image) -> None:
        self.images = [one for one in self.images if one is not image]
        thumbnail.delete()

    def clear(self) -> None:
        """Remove all images."""
        self.images = []
        self.row.clear()


def notify(message: str) -> None:
    """Show a problem."""
    ui.notify(message, type="negative", multi_line=True, close_button="Close", timeout=10_000)
