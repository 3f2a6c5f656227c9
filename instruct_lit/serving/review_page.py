"""The web page of a review: one response at a time, labelled by a key, and the figures of all labels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from instruct_lit.errors import DataError
from instruct_lit.reports.pages import render
from instruct_lit.serving.http import HostGuard, PagePolicy, PasswordGuard
from instruct_lit.serving.review import Review

USER = "review"  # of the password


def make_app(review: Review, password: str | None = None, allowed_hosts: Sequence[str] = (), seed: int = 0) -> Any:
    """The Starlette application of a review.

    Args:
        allowed_hosts: names of the server beside those of this machine; none with a password allows every name.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    def page(template: str, **values: Any) -> Any:
        return HTMLResponse(render(template, Path(__file__).parent, **values))

    async def start(request: Any) -> Any:
        sources = {source for item in review.items for source in item["sources"]}
        return page("review.html.jinja", labels=review.names, n=len(review.items), n_sources=len(sources))

    async def results(request: Any) -> Any:
        return page("review_results.html.jinja", people=review.figures(seed))

    def called(method: Callable[..., dict[str, Any]]) -> Callable[[Any], Any]:
        """A method of the review, called with the fields of a request; it never runs twice at a time."""

        async def endpoint(request: Any) -> Any:
            try:
                # Another site's page can send only other types without a preflight request.
                if request.headers.get("content-type") == "application/json":
                    return JSONResponse(method(**await request.json()))
            except DataError as error:
                return JSONResponse({"error": str(error)}, 400)
            except (ValueError, TypeError, RecursionError):
                pass
            return JSONResponse({"error": "not a request of this page; reload it"}, 400)

        return endpoint

    middleware = [Middleware(PagePolicy)]
    if password is not None:
        middleware.append(Middleware(PasswordGuard, user=USER, password=password))
    if password is None or allowed_hosts:
        middleware.append(Middleware(HostGuard, hosts=allowed_hosts))
    calls = [Route(f"/{name}", called(getattr(review, name)), methods=["POST"]) for name in ("state", "label", "undo")]
    return Starlette(routes=[Route("/", start), Route("/results", results), *calls], middleware=middleware)
