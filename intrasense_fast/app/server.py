"""The server of the page: on this machine alone unless asked otherwise, without calls outside, and
without a file left when it ends."""

import errno
import os
import socket
import tempfile
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from intrasense_fast.app.page import build
from intrasense_fast.app.style import CSS
from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.inference.ensemble import Ensemble

_OLDEST = 6
_LARGEST_UPLOAD = "512mb"
# Whatever gradio's pages name, the browser asks nobody but this server.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; form-action 'self'; base-uri 'self'"
)
# gradio reads these where it is imported, and where it is used.
_SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def check_address(host: str, port: int) -> None:
    """Find out whether a page could be served there.

    Raises:
        UsageError: it could not; the message names the flag.
    """
    if not 1 <= port <= 65535:
        raise UsageError(f"--port must be from 1 to 65535, got {port}")
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            raise UsageError(f"--port {port}: is in use on {host}; give another one") from error
        if number == errno.EACCES:
            raise UsageError(
                f"--port {port}: needs more rights than you have; give one from 1024 on"
            ) from error
        raise UsageError(
            f"--host {host}: is no address of this computer ({first_line(error)}); leave it out "
            "for 127.0.0.1"
        ) from error


def serve(
    ensemble: Ensemble,
    checkpoint: str,
    *,
    host: str,
    port: int,
    threshold: float,
    started: Callable[[str], None],
) -> None:
    """Serve the page until it is interrupted.

    Args:
        ensemble: who answers.
        checkpoint: what it is called.
        host, port: where.
        threshold: where the slider stands first.
        started: told the page's address.

    Raises:
        UsageError: gradio is missing, or the address cannot be used.
        NotFiniteError: the network fails on the example.
        KeyboardInterrupt: Ctrl-C; nothing is left behind.
    """
    check_address(host, port)
    with tempfile.TemporaryDirectory(prefix="intrasense-fast-app-") as folder:
        os.environ.update(_SETTINGS | {"GRADIO_TEMP_DIR": folder, **_without_proxy(host)})
        gr = library()
        page = build(gr, ensemble, checkpoint, threshold)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                inbrowser=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                run_history=False,
                enable_monitoring=False,
                footer_links=[],
                max_file_size=_LARGEST_UPLOAD,
                theme=_theme(gr),
                css=CSS,
                app_kwargs={"middleware": _middleware()},
            )
        # Another program took the port meanwhile, or a proxy stands before this very machine.
        except (OSError, ValueError) as error:
            page.close(verbose=False)
            raise UsageError(
                f"--host {host} --port {port}: cannot be served ({first_line(error)}); give "
                "another port"
            ) from error
        try:
            started(address)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def _without_proxy(host: str) -> dict[str, str]:
    """Variables by which gradio asks its own server directly, whatever proxy is set."""
    named = {name: os.environ.get(name, "") for name in ("NO_PROXY", "no_proxy")}
    own = ["localhost", "127.0.0.1", "::1", host]
    return {name: ",".join([*filter(None, [before]), *own]) for name, before in named.items()}


def library() -> ModuleType:
    """gradio.

    Raises:
        UsageError: it is missing, or older than version 6.
    """
    try:
        import gradio
    except ImportError as error:
        raise UsageError(
            f"the page needs gradio ({first_line(error)}); "
            "install it with: pip install 'intrasense-fast[app]'"
        ) from error
    if int(gradio.__version__.split(".")[0]) < _OLDEST:
        raise UsageError(
            f"the page needs gradio {_OLDEST} or newer, here is {gradio.__version__}; "
            "update it with: pip install -U 'intrasense-fast[app]'"
        )
    return gradio


def _theme(gr: ModuleType) -> Any:
    # Fonts of the system: gradio's own come from a server.
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


class _OwnOriginOnly:
    """ASGI middleware: every answer forbids the browser to load from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ())]
                headers += [
                    (b"content-security-policy", _POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, told)


def _middleware() -> list[Any]:
    from starlette.middleware import Middleware

    return [Middleware(_OwnOriginOnly)]
