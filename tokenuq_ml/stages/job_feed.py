"""What a pipeline of Ray Data reads its work from: an actor that the stage fills as it goes. Does not load torch."""

import asyncio


class JobFeed:
    """The jobs of a stage, in order. Kept until its end, so that a task that is run again pulls the same ones."""

    def __init__(self) -> None:
        self._items: list[bytes] = []
        self._changed = asyncio.Condition()

    async def put(self, items: list[bytes]) -> None:
        """Append jobs."""
        async with self._changed:
            self._items += items
            self._changed.notify_all()

    async def get(self, number: int) -> bytes:
        """Return a job, as soon as it is there."""
        async with self._changed:
            await self._changed.wait_for(lambda: number < len(self._items))
            return self._items[number]
