"""Base URL of an endpoint, and the URLs below it.

A base URL may or may not end in `/v1`, as clients of OpenAI's API and people write it: `http://host:8000` and
`http://host:8000/v1` are the same endpoint. Another version (`/v2`) is kept. User and password in it become the
`Authorization` header where the policy has no API key; they are shown nowhere.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from functools import lru_cache

from yarl import URL

_VERSION = re.compile(r"/v\d+$")


@dataclass(frozen=True, slots=True)
class EndpointUrl:
    """URLs of an endpoint. `shown` is the base without credentials; `basic` the `Authorization` header from the URL."""

    shown: str
    chat: URL = field(compare=False)
    responses: URL = field(compare=False)
    tokenize: URL = field(compare=False)
    detokenize: URL = field(compare=False)
    render: URL = field(compare=False)
    generate: URL = field(compare=False)
    models: URL = field(compare=False)
    health: URL = field(compare=False)
    basic: str | None = field(default=None, repr=False)

    def under(self, path: str) -> URL:
        """Return the URL of another path below the base."""
        return self.chat.with_path(self.chat.path.removesuffix("chat/completions") + path)

    @classmethod
    def parse(cls, text: str) -> EndpointUrl:
        """Parse a base URL that `PolicySpec` has checked."""
        return _parse(text)


@lru_cache(maxsize=4096)
def _parse(text: str) -> EndpointUrl:
    url = URL(text)
    basic = None
    if url.user is not None or url.password is not None:
        pair = f"{url.user or ''}:{url.password or ''}".encode()
        basic = f"Basic {base64.b64encode(pair).decode()}"
        url = url.with_user(None)
    path = url.path.rstrip("/")
    if not _VERSION.search(path):
        path += "/v1"
    base = url.with_path(path)
    root = _VERSION.sub("", path)
    return EndpointUrl(
        shown=str(base),
        chat=base.with_path(f"{path}/chat/completions"),
        responses=base.with_path(f"{path}/responses"),
        tokenize=base.with_path(f"{root}/tokenize"),
        detokenize=base.with_path(f"{root}/detokenize"),
        render=base.with_path(f"{path}/chat/completions/render"),
        generate=base.with_path(f"{root}/inference/v1/generate"),
        models=base.with_path(f"{path}/models"),
        health=base.with_path(f"{root}/health"),
        basic=basic,
    )
