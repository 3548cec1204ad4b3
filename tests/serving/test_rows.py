"""Rows when Redis is not there."""

from __future__ import annotations

import socket

import pytest
import redis.asyncio

from chassis import errors
from services.serving.rows import Rows


async def test_writing_without_redis_is_unavailable_and_can_be_tried_again() -> None:
    """Not a group of errors: the worker tries again what is Unavailable, and gives up on what is Internal."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        async with redis.asyncio.Redis(port=taken.getsockname()[1]) as client:
            with pytest.raises(errors.Unavailable):
                await Rows(client, "test", 100).write([b"1", b"2"], [b"a", b"b"], 0)
