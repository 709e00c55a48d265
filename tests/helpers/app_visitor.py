"""A visitor of the painter's page in a real browser. Needs Playwright, and Chromium or Chrome on the PATH."""

import base64
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from playwright import sync_api

from helpers.app_place import LABELS, SIZE


sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "studies"))
from painter_hand import Hand  # noqa: E402


PATIENCE = 60_000  # milliseconds; machines that test are busy
sync_api.expect.set_options(timeout=PATIENCE)


class Visitor(Hand):
    """Someone who looks at the page, and what the page said and asked for meanwhile."""

    def __init__(
        self, browser, address: str, width: int, height: int, touch: bool = False, mask_size: tuple[int, int] = SIZE
    ):
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, has_touch=touch, is_mobile=touch, accept_downloads=True
        )
        super().__init__(self.context.new_page(), mask_size[1])
        self.mask_size = mask_size
        self.page.set_default_timeout(PATIENCE)
        self.said, self.asked, self.address = [], [], address
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        with self.page.expect_request("**/queue/join*"):  # the page restores what there was
            self.page.goto(address)
        self.page.locator(".painter .palette button").first.wait_for()

    def ids(self) -> np.ndarray:
        """What the canvas shows, as class ids (H, W)."""
        pixels = self.page.evaluate(
            "() => { const c = document.querySelector('.painter .mask');"
            " return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }"
        )
        return LABELS.encode(np.array(pixels, dtype=np.uint8).reshape(*self.mask_size, 4)[..., :3].copy())

    def load(self, button: str, name: str, data: bytes) -> None:
        """Choose a file for an upload button."""
        if not self.page.get_by_role("button", name="Mask …", exact=True).is_visible():
            self.page.get_by_role("button", name="Load a mask or a photo").click()
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name=button, exact=True).click()
        chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": data})

    def generate(self, samples: int) -> None:
        self.page.locator("#message").evaluate(
            "message => message.querySelectorAll('p').forEach(p => p.dataset.old = true)"
        )
        self.page.get_by_role("button", name="Generate").click()
        self.page.locator("#message p:not([data-old])", has_text=f"{samples} generated.").wait_for()

    def sees(self, text: str) -> None:
        sync_api.expect(self.page.locator("#message")).to_contain_text(text, timeout=PATIENCE)

    def refused(self, text: str) -> None:
        """Wait for a refusal, and close it."""
        toast = self.page.locator(".toast-body", has_text=text)
        toast.wait_for()
        toast.locator(".toast-close").click()

    def samples(self) -> list[np.ndarray]:
        urls = [image.get_attribute("src") for image in self.page.locator("#samples .grid-container img").all()]
        return [
            np.asarray(Image.open(io.BytesIO(self.context.request.get(url).body())).convert("RGB")) for url in urls
        ]

    def photo(self) -> np.ndarray:
        """The photo that is drawn while one paints, once it is that of the newest mask."""
        self.page.locator(".painter .live[aria-busy=false]").wait_for()
        url = self.page.locator(".painter .live-photo").get_attribute("src")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))

    def leave(self) -> None:
        """Close the page, which said nothing wrong, and asked nobody else."""
        self.context.close()
        # gradio reports streams that a reload ends
        ended = ("AbortError", "Connection errored out")
        errors = [text for text in self.said if text.startswith("error") and not any(each in text for each in ended)]
        assert not errors, errors
        others = [url for url in self.asked if not url.startswith((self.address, "data:", "blob:"))]
        assert others == []
