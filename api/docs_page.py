"""The page `/docs`: one pinned version of Swagger UI, which may load its own script and call this api only.

The script comes from a CDN. If the network is closed, the page links to the plain document.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

from api.auth import OPEN_PATHS

CDN = "https://cdn.jsdelivr.net"
SWAGGER_UI = f"{CDN}/npm/swagger-ui-dist@5.17.14"  # an exact version, whose files the CDN never changes
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_CLOSED = "<p>Without access to the CDN this page stays empty: read <a "
"href='/openapi.json'>/openapi.json</a>.</p>"


def add_docs_page(app: FastAPI) -> None:
    """Add the page to the app."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=f"{app.title} - API",
        swagger_js_url=f"{SWAGGER_UI}/swagger-ui-bundle.js",
        swagger_css_url=f"{SWAGGER_UI}/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    text = bytes(page.body).decode()
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in _SCRIPT.findall(text)]
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    headers = {
        "content-security-policy": f"default-src 'none'; script-src {SWAGGER_UI}/ {scripts}; "
        f"style-src {SWAGGER_UI}/ 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    shown = text.replace("</body>", f"<noscript>{_CLOSED}</noscript></body>").replace(
        '<div id="swagger-ui">', f'<div id="swagger-ui">{_CLOSED}'
    )

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(shown, headers=headers)


def describe_keys(document: dict[str, Any]) -> None:
    """Describe API keys for /docs and generated clients; a farm without keys declares none."""
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "a key of `api.keys`"},
    }
    for path, calls in document["paths"].items():
        for call in calls.values():
            call["security"] = [] if path in OPEN_PATHS else [{"key": []}]
