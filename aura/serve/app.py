"""The FastAPI application: routes, errors in one shape, figures, and the page."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from aura import __version__
from aura.errors import AuraError
from aura.serve import chat, realtime, transcription
from aura.serve.failures import ApiError, of_aura_error, of_validation
from aura.serve.guard import Guard
from aura.serve.openapi import schema_of
from aura.serve.service import Service

logger = logging.getLogger(__name__)
router = APIRouter()

PAGE = Path(__file__).parent / "page"
# Nothing from elsewhere: scripts, styles and sockets of this server only. The worklet is a file of its own for that.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; connect-src 'self' ws: wss:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(service: Service) -> FastAPI:
    """The application around a service; when it ends, so does the service's scheduler."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(lambda: service.scheduler.close(seconds=0))

    app = FastAPI(
        title="aura",
        version=__version__,
        description="Speech and text in, text out, in the form of OpenAI's API.",
        docs_url=None,  # both pull their scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.openapi = lambda: schema_of(app)  # type: ignore[method-assign]  # FastAPI's documented way
    for part in (router, chat.router, transcription.router, realtime.router):
        app.include_router(part)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(AuraError, _on_aura_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(Guard, service=service)
    if service.options.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.options.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


@router.get("/", include_in_schema=False)
async def page() -> Response:
    return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)


@router.get("/health")
async def health(request: Request) -> dict[str, str]:
    """The process lives and its model thread runs; 503 means: restart it."""
    service: Service = request.app.state.service
    if not service.scheduler.alive and not service.draining:
        raise ApiError(503, "the model's thread has ended; restart the server", code="dead")
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """Requests are taken; 503 while the server drains."""
    service: Service = request.app.state.service
    if service.draining or not service.scheduler.alive:
        raise ApiError(503, "the server is shutting down", code="draining", headers={"Retry-After": "5"})
    return {"status": "ready"}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Figures in Prometheus' text format."""
    service: Service = request.app.state.service
    return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The adapters that `model` may name."""
    service: Service = request.app.state.service
    return {"object": "list", "data": [_model(served) for served in service.models.values()]}


@router.get("/v1/models/{model}")
async def model(model: str, request: Request) -> dict[str, Any]:
    """One of them."""
    service: Service = request.app.state.service
    return _model(service.model(model))


def _model(served: Any) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "aura"}


def _response(error: ApiError) -> Response:
    return JSONResponse({"error": error.body()}, status_code=error.status, headers=error.headers)


async def _on_api_error(request: Request, error: Any) -> Response:
    request.scope.get("aura_note", {})["error"] = error.code
    return _response(error)


async def _on_aura_error(request: Request, error: Any) -> Response:
    logger.error("%s", error, exc_info=error)
    return await _on_api_error(request, of_aura_error(error))


async def _on_validation(request: Request, error: Any) -> Response:
    return await _on_api_error(request, of_validation(error.errors()))


async def _on_http(request: Request, error: Any) -> Response:
    message = str(error.detail)
    if error.status_code == 404:
        message = "there is nothing at this path; the API lies under /v1, its schema at /openapi.json"
    elif error.status_code == 405:
        message = f"{request.method} is not possible here; see /openapi.json"
    headers = dict(error.headers or {})
    return await _on_api_error(request, ApiError(error.status_code, message, headers=headers))


async def _on_bug(request: Request, error: Any) -> Response:
    return await _on_api_error(
        request, ApiError(500, "the server made a mistake; its log says which", code="internal_error")
    )
