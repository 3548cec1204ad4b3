"""Pages for people: Swagger UI, ReDoc and the OpenAPI document. Nothing on them comes from another host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

import orjson

from chassis import errors
from gateway.dialect import Row
from gateway.dialects.feast import openapi
from gateway.dialects.feast.routes import PREFIXES, Route
from gateway.exchange import JSON, Answer, Exchange

# A Python package whose static files are both bundles; nothing of it is imported.
_BUNDLES = "drf-spectacular-sidecar"
_PLACE = "drf_spectacular_sidecar/static/drf_spectacular_sidecar"
_SCRIPT, _STYLE, _HTML = "text/javascript; charset=utf-8", "text/css; charset=utf-8", "text/html; charset=utf-8"
_FILES = {
    "swagger-ui-bundle.js": ("swagger-ui-dist/swagger-ui-bundle.js", _SCRIPT),
    "swagger-ui.css": ("swagger-ui-dist/swagger-ui.css", _STYLE),
    "redoc.js": ("redoc/bundles/redoc.standalone.js", _SCRIPT),
}
# Inline scripts are not allowed on the pages, so what starts them is a file too.
_STARTS = {
    "swagger.js": b'SwaggerUIBundle({url: "openapi.json", dom_id: "#page", validatorUrl: null, deepLinking: true});\n',
    "redoc-start.js": b'Redoc.init("openapi.json", {hideLogo: true}, document.getElementById("page"));\n',
}
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
{style}</head>
<body>
<div id="page"></div>
<script src="pages/{bundle}"></script>
<script src="pages/{start}"></script>
</body>
</html>
"""
_SWAGGER = _PAGE.format(
    title="Triglot: Feast registry",
    style='<link rel="stylesheet" href="pages/swagger-ui.css">\n',
    bundle="swagger-ui-bundle.js",
    start="swagger.js",
)
_REDOC = _PAGE.format(title="Triglot: Feast registry", style="", bundle="redoc.js", start="redoc-start.js")
# Both write styles into the page, Swagger UI draws with data: images, ReDoc searches in a worker made of a blob.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self';"
    " connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
}


def rows(routes: Sequence[Route]) -> Sequence[Row]:
    """The pages, with and without the prefix. They are open to everybody: they show nothing but the contract."""

    @cache
    def described() -> bytes:
        # When somebody asks for it: a process that starts has no time for it.
        return orjson.dumps(openapi.document(routes))

    def row(path: str, operation: str, body: Callable[[], bytes], media_type: str) -> Sequence[Row]:
        def answer(exchange: Exchange, _: object) -> Answer:
            return Answer(body=body(), media_type=media_type, headers=_HEADERS)

        return [
            Row(("GET",), prefix + path, f"pages.{operation}", None, lambda exchange: None, answer)
            for prefix in PREFIXES
        ]

    files = [
        Row(("GET",), f"{prefix}/pages/{{file}}", "pages.file", None, lambda exchange: None, _file)
        for prefix in PREFIXES
    ]
    return [
        *row("/openapi.json", "openapi", described, JSON),
        *row("/", "swagger", _SWAGGER.encode, _HTML),
        *row("/docs", "redoc", _REDOC.encode, _HTML),
        *files,
    ]


def _file(exchange: Exchange, _: object) -> Answer:
    name = exchange.path_params["file"]
    headers = {**_HEADERS, "cache-control": "public, max-age=3600"}
    if name in _STARTS:
        return Answer(body=_STARTS[name], media_type=_SCRIPT, headers=headers)
    if name not in _FILES:
        raise errors.NotFound("Not Found", reason="OPERATION_NOT_FOUND")
    path, media_type = _FILES[name]
    return Answer(body=_content(path), media_type=media_type, headers=headers)


@cache
def _content(path: str) -> bytes:
    """A file of the package. NotFound if it is not installed: everything but these pages works without it."""
    try:
        return Path(str(metadata.distribution(_BUNDLES).locate_file(f"{_PLACE}/{path}"))).read_bytes()
    except (metadata.PackageNotFoundError, OSError):
        raise errors.NotFound(f"the Python package {_BUNDLES} is not installed") from None
