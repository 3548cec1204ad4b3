"""Notifications count as heard only while one's own come back."""

from __future__ import annotations

from collections.abc import Callable

from chassis.listener import Listener
from chassis.postgres import Database, open_database
from chassis.settings import Settings
from tests import patience
from tests.relay import open_relay


async def until(true: Callable[[], bool]) -> None:
    async def check() -> bool:
        return true()

    await patience.until(check)


async def test_a_pooler_that_swallows_notifications_is_found_out(settings: Settings, database: Database) -> None:
    heard: list[str] = []
    gaps: list[bool] = []
    async with open_relay(settings.postgres_url.get_secret_value()) as relay:
        own = settings.model_copy(update={"postgres_url": type(settings.postgres_url)(relay.url)})
        listener = Listener(
            own, database, "c", heard.append, lambda: gaps.append(listener.listening), check_seconds=0.05
        )
        relay.deaf = True
        await listener.start()
        assert not listener.listening
        relay.deaf = False
        await until(lambda: listener.listening)
        await database.execute("SELECT pg_notify('c', 'one')")
        await until(lambda: heard == ["one"])
        relay.deaf = True
        await until(lambda: not listener.listening)
        await database.execute("SELECT pg_notify('c', 'lost')")
        relay.deaf = False
        await until(lambda: listener.listening)
        # On a machine so busy that an echo comes too late, there are more of them.
        assert len(gaps) >= 3
        assert gaps == [True, *[False, True] * (len(gaps) // 2)]
        assert heard == ["one"]
        await listener.stop()


async def test_notifications_go_around_the_pooler(settings: Settings, database: Database) -> None:
    heard: list[str] = []
    direct = settings.postgres_url
    async with open_relay(direct.get_secret_value()) as relay:
        relay.deaf = True
        own = settings.model_copy(update={"postgres_url": type(direct)(relay.url), "postgres_direct_url": direct})
        pooled = await open_database(own)
        listener = Listener(own, pooled, "c", heard.append, lambda: None)
        await listener.start()
        assert listener.listening
        await pooled.execute("SELECT pg_notify('c', 'one')")
        await until(lambda: heard == ["one"])
        await listener.stop()
        await pooled.close()


async def test_one_listener_does_not_hear_the_proofs_of_another(settings: Settings, database: Database) -> None:
    heard: list[str] = []
    listeners = [Listener(settings, database, "c", heard.append, lambda: None, check_seconds=0.01) for _ in range(2)]
    for listener in listeners:
        await listener.start()
    await database.execute("SELECT pg_notify('c', 'one')")
    await until(lambda: len(heard) == 2)
    for listener in listeners:
        await listener.stop()
    assert heard == ["one", "one"]
