"""Bodies of HTTP answers of servers that the farm does not trust, read over aiohttp within a bound.

Invariant: no more than the bound, and one piece, is in memory. Sessions that read so are made with
`auto_decompress=False` and send `PLAIN`, so that an answer never unpacks to more than was sent.
"""

from __future__ import annotations

import aiohttp

ANSWER_BYTES = 32 * 2**20
PLAIN = {"accept-encoding": "identity"}


class AnswerTooLarge(Exception):
    """A body larger than its bound; nothing of it is kept."""


async def read_within(response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """Return the whole body. Raises AnswerTooLarge, before anything is read where the length is declared."""
    if (response.content_length or 0) > most_bytes:
        raise AnswerTooLarge(f"an answer of {response.content_length} bytes is larger than {most_bytes} bytes")
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > most_bytes:
            raise AnswerTooLarge(f"an answer is larger than {most_bytes} bytes")
        parts.append(part)
    return b"".join(parts)
