"""Serves the page: at one address, with the upload limit of the app, no file of the machine but those that it made, no
telemetry, no fonts or scripts of other hosts."""

import gradio as gr

from semseg_diffusers.app.limits import Limits


CSS = """
.gradio-container { max-width: min(1360px, 100%) !important; margin: 0 auto; }
#samples .grid-wrap { height: auto !important; max-height: none !important; }
#samples .caption-label { max-width: 100%; font-size: 11px; }
footer { opacity: 0.6; }
"""


def serve(
    page: gr.Blocks,
    limits: Limits,
    host: str = "127.0.0.1",
    port: int | None = 7860,
    in_browser: bool = False,
    in_background: bool = False,
) -> str:
    """Serve a page of `build_page`.

    Args:
        page (`gr.Blocks`)
        limits (`Limits`)
        host, port: where to; None takes a port that is free.
        in_browser (`bool`): open it in a browser of this machine.
        in_background (`bool`): come back; `page.close()` ends it. Else this call lasts until Ctrl-C.

    Returns:
        `str`: the address.

    Raises:
        OSError: the port is taken.
    """
    # Fonts that every system has: gradio's own themes name fonts to load.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        inbrowser=in_browser,
        prevent_thread_lock=in_background,
        quiet=in_background,
        share=False,
        show_error=False,  # what went wrong inside is not for visitors; refusals are shown all the same
        max_file_size=int(limits.max_upload_mb * 1e6),
        allowed_paths=[],
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        footer_links=["api"],
        theme=theme,
        css=CSS,
    )
    return address
