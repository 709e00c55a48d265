"""A mouse that paints on the painter's page in a real browser, for `first_photo.py` and the browser's tests.

Needs Playwright, and Chromium or Chrome on the PATH.
"""

import re
import shutil

from playwright.sync_api import Page


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """The first of `BROWSERS` on the PATH."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


class Hand:
    """A mouse on the canvas.

    Args:
        page (`Page`): shows the painter.
        side (`int`): of the mask in pixels; it is square. Points are (x, y) in its pixels.
    """

    def __init__(self, page: Page, side: int):
        self.page, self.side = page, side

    def tool(self, name: str) -> None:
        self.page.get_by_role("toolbar").get_by_role("button", name=name, exact=True).click()

    def choose(self, class_name: str) -> None:
        self.page.locator(".painter .palette button", has_text=re.compile(f"^{class_name}$")).click()

    def slide(self, selector: str, value: int) -> None:
        self.page.locator(f".painter {selector}").evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
        )

    def point(self, x: int, y: int) -> tuple[float, float]:
        """Where the middle of a pixel is seen."""
        canvas = self.page.locator(".painter .mask")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        return box["x"] + (x + 0.5) * box["width"] / self.side, box["y"] + (y + 0.5) * box["height"] / self.side

    def click(self, x: int, y: int) -> None:
        self.page.mouse.click(*self.point(x, y))

    def drag(self, *points: tuple[int, int], steps: int = 4) -> None:
        """Go from point to point with the button down, by so many movements each."""
        self.page.mouse.move(*self.point(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.point(*point), steps=steps)
        self.page.mouse.up()
