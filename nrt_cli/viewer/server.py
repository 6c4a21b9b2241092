"""The viewer's server: on loopback, for reading alone, and for pages of its own address alone.

There is nothing to be done through it but to read, so no request other than GET has an answer.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from importlib import resources
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nrt_cli.errors import NrtError
from nrt_cli.viewer import screens
from nrt_cli.viewer.library import Library

HOST = "127.0.0.1"
SHARED = ("vendor/htm-preact.js", "common.js", "charts.js", "traces.js", "source.js")
"""Scripts that the report's page has too."""
SCRIPTS = (*SHARED, "screens.js", "app.js", "start.js")
STYLES = ("viewer.css",)
IMAGES = ("icon.svg",)
TYPES = {"js": "text/javascript", "css": "text/css", "html": "text/html", "svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""Nothing is loaded from anywhere else, and no script or style that stands in the page counts."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
QUIET = 0.4
"""Seconds between two tellings of changes."""


def asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def page() -> str:
    """The one page, which loads its scripts and styles from beside it."""
    parts = [f'<link rel="stylesheet" href="assets/{name}">' for name in STYLES]
    parts += [f'<script src="assets/{name}" defer></script>' for name in SCRIPTS]
    return asset("index.html").replace("<!-- parts -->", "\n".join(parts))


class Guard:
    """Answers only requests to read that name this very address, from a page of it or from no page.

    A name that leads here from elsewhere (DNS rebinding) has another Host, another site's page another Origin.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.hosts = {f"{host}:{port}" for host in (HOST, "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websocket has an answer

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        told: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            told.setdefault(name, []).append(value.decode("latin-1"))
        hosts, origins = told.get(b"host", []), told.get(b"origin", [])
        reply: ASGIApp = self.app
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            reply = PlainTextResponse("This address is not served here.", 421)
        elif {*origins} - {f"http://{hosts[0]}"} or {*told.get(b"sec-fetch-site", ())} - {"same-origin", "none"}:
            reply = PlainTextResponse("Pages of other sites read nothing here.", 403)
        elif scope["method"] not in ("GET", "HEAD"):
            reply = PlainTextResponse("There is nothing here but to read.", 405, headers={"allow": "GET, HEAD"})
        await reply(scope, receive, sealed)


def application(library: Library, port: int) -> ASGIApp:
    """The viewer as an ASGI app."""

    def query(request: Request) -> str:
        return f"/{request.path_params['screen']}?{request.url.query}"

    async def answer(request: Request) -> Response:
        try:
            with library.answering():
                found, status = await run_in_threadpool(screens.answer, library, query(request)), 200
        except NrtError as error:
            found, status = {"error": str(error)}, 404
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            # A record that a stranger wrote, or a run that goes while it is read.
            found, status = {"error": f"this cannot be read now ({type(error).__name__})"}, 404
        return Response(await run_in_threadpool(_json, found), status, media_type="application/json")

    async def search(request: Request) -> Response:
        def lines() -> Iterator[str]:
            try:
                given = screens.parameters(f"/list?{request.url.query}")
                with library.answering():
                    yield from (_json(line) + "\n" for line in screens.search(library, given))
            except NrtError as error:
                yield _json({"error": str(error)}) + "\n"

        return StreamingResponse(iterate_in_threadpool(lines()), media_type="application/x-ndjson")

    async def events(request: Request) -> Response:
        async def stream() -> AsyncIterator[str]:
            seen = -1
            while not await request.is_disconnected():
                await run_in_threadpool(library.wait, seen, 1.0)
                if library.version != seen or library.left:
                    seen = library.version
                    state = {name: followed.version for name, followed in list(library.runs.items())}
                    yield f"data: {_json({'runs': state, 'left': library.left})}\n\n"
                else:
                    yield ": still here\n\n"
                await asyncio.sleep(5 * QUIET if library.left else QUIET)

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def file(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name != "index.html" and name not in (*SCRIPTS, *STYLES, *IMAGES):
            return PlainTextResponse("There is no such file.", 404)
        with library.answering():
            text = page() if name == "index.html" else asset(name)
        return Response(text, media_type=f"{TYPES[name.rpartition('.')[2]]}; charset=utf-8")

    routes = [
        Route("/", file),
        Route("/assets/{name:path}", file),
        Route("/events", events),
        Route("/api/search", search),
        Route("/api/{screen}", answer),
    ]
    return Guard(Starlette(routes=routes), port)


def _json(found: Any) -> str:
    # ASCII: lone halves of surrogate pairs, which are no text in UTF-8, are escapes.
    return json.dumps(found, separators=(",", ":"), allow_nan=False)


def bound(port: int) -> socket.socket:
    """A socket of loopback: at the port, or where another process has that, at a free one."""
    for wanted in (port, 0):
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((HOST, wanted))
            return found
        except OSError:
            found.close()
            if not wanted:
                raise
    raise AssertionError


def serve(library: Library, port: int, ready: Callable[[str], None]) -> None:
    """Serve until the process is told to stop. `ready` is told the address once there is an answer at it."""
    with bound(port) as listening, library.following():
        at = listening.getsockname()[1]
        config = uvicorn.Config(
            application(library, at),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            lifespan="off",
        )
        server = uvicorn.Server(config)
        announce = partial(ready, f"http://{HOST}:{at}/")
        startup = server.startup

        async def started(sockets: list[socket.socket] | None = None) -> None:
            await startup(sockets)
            announce()

        server.startup = started  # type: ignore[method-assign]
        server.run(sockets=[listening])
