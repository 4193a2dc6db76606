"""Clients of different weight share the Generators fairly: counted in steps of a simulated engine."""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable

import pytest

from mpt_serve.deployments.dispatch_queue import DispatchQueue
from mpt_serve.deployments.fair_shares import FairShares

SEQUENCES = 8
STEPS_PER_S = 50


class SimulatedEngine:
    """Runs `SEQUENCES` requests at a time, in the order of their arrival; a step generates a token for each."""

    def __init__(self) -> None:
        self.step = 0
        self._waiting: deque[tuple[int, Callable[[int], None], asyncio.Future[None]]] = deque()
        self._running: list[tuple[int, Callable[[int], None], asyncio.Future[None]]] = []
        self.tokens = 0

    async def generate(self, length: int, on_tokens: Callable[[int], None]) -> None:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((length, on_tokens, done))
        await done

    def take_step(self) -> None:
        self.step += 1
        while self._waiting and len(self._running) < SEQUENCES:
            self._running.append(self._waiting.popleft())
        still = []
        for left, on_tokens, done in self._running:
            self.tokens += 1
            on_tokens(1)
            if left == 1:
                done.set_result(None)
            else:
                still.append((left - 1, on_tokens, done))
        self._running = still


class Simulation:
    """Requests of several clients over one engine. first_tokens: steps from each arrival to its first token."""

    def __init__(self) -> None:
        self.engine = SimulatedEngine()
        self.queue = DispatchQueue(2 * SEQUENCES + 1, clock=lambda: self.engine.step / STEPS_PER_S)
        self.first_tokens: dict[str, list[int]] = {}
        self.served: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def send(self, name: str, length: int, prompt_tokens: int = 10, client: str | None = None) -> None:
        self._tasks.append(
            asyncio.create_task(self._request(name, length, prompt_tokens, name if client is None else client))
        )

    async def _request(self, name: str, length: int, prompt_tokens: int, client: str) -> None:
        arrived, first = self.engine.step, True
        async with self.queue.slot(0, False, client, 1, prompt_tokens) as slot:

            def on_tokens(count: int) -> None:
                nonlocal first
                if first:
                    self.first_tokens.setdefault(name, []).append(self.engine.step - arrived)
                    first = False
                self.served[name] = self.served.get(name, 0) + count
                slot.charge(count)

            await self.engine.generate(length, on_tokens)

    async def step(self) -> None:
        await settle()
        self.engine.take_step()
        await settle()

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def percentile(numbers: Iterable[int], share: float) -> int:
    ordered = sorted(numbers)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def light_first_tokens(clients: Callable[[str], str], with_heavy: bool) -> list[int]:
    """Return a light client's steps to first tokens; a heavy one sends ten times as much, together 1.1 x the capacity.

    clients: whose request one of 'light' or 'heavy' is.
    """
    length = 20
    rate = SEQUENCES / length / 10  # requests per step

    async def main() -> list[int]:
        simulation, random_numbers = Simulation(), random.Random(7)
        for _ in range(6000):
            if random_numbers.random() < rate:
                simulation.send("light", length, client=clients("light"))
            if with_heavy:
                for _ in range(2):
                    if random_numbers.random() < 5 * rate:
                        simulation.send("heavy", length, client=clients("heavy"))
            await simulation.step()
        await simulation.end()
        return simulation.first_tokens["light"]

    return asyncio.run(main())


def test_a_light_client_beside_one_with_ten_times_its_load() -> None:
    alone = percentile(light_first_tokens(lambda name: name, with_heavy=False), 0.95)
    beside = percentile(light_first_tokens(lambda name: name, with_heavy=True), 0.95)
    as_one_client = percentile(light_first_tokens(lambda _: "", with_heavy=True), 0.95)
    assert beside <= 2 * alone
    assert as_one_client > 10 * alone  # what it would be without shares


@pytest.mark.parametrize(("length", "prompt_tokens"), [(20, 10), (80, 10), (20, 300)])
def test_two_clients_that_always_have_more_get_the_same(length: int, prompt_tokens: int) -> None:
    """One has five times the requests, and perhaps longer ones."""

    async def main() -> dict[str, float]:
        simulation = Simulation()
        for _ in range(300):
            for _ in range(10):
                simulation.send("many", length, prompt_tokens)
            for _ in range(2):
                simulation.send("few", 20, 10)
        for _ in range(1000):
            await simulation.step()
        shares = simulation.queue._shares._shares
        counters = {name: float(share.counter) for name, share in shares.items()}
        await simulation.end()
        return counters

    counters = asyncio.run(main())
    assert counters["few"] == pytest.approx(counters["many"], rel=0.1)


def test_a_client_that_was_idle_has_not_saved_up() -> None:
    async def main() -> Simulation:
        simulation = Simulation()
        simulation.send("late", 1)
        for _ in range(2000):
            simulation.send("busy", 20)
        for _ in range(600):
            await simulation.step()
        simulation.served.clear()
        for _ in range(1000):
            simulation.send("late", 20)
        for _ in range(2000):
            await simulation.step()
        await simulation.end()
        return simulation

    served = asyncio.run(main()).served
    assert served["late"] == pytest.approx(served["busy"], rel=0.15)


def test_what_a_light_client_sends_together_starts_together_and_is_expedited() -> None:
    """Each of its prompts counts at once, and yet the next one need not wait until the other client has had as much."""
    shares = FairShares(lambda: 0.0)
    heavy = shares.arrive("heavy", 20)
    shares.start(heavy, 20, 20 * 40)
    heavy.charge_output(100_000)
    for _ in range(2):  # the second time it has been idle for a moment
        started = 0
        while started < 8:
            light = shares.arrive("light", 1)
            if not (shares.may_start(light, 1, 32) and shares.is_behind(light, 1, 32)):
                shares.leave(light, 1, started=False)
                break
            shares.start(light, 1, 200)
            started += 1
        assert 4 <= started < 8  # and then it is the other's turn
        shares.leave(light, started, started=True)
        heavy.charge_output(1000)


def test_one_client_alone_has_the_whole_capacity() -> None:
    async def main() -> int:
        simulation = Simulation()
        for _ in range(200):
            simulation.send("only", 20)
        for _ in range(100):
            await simulation.step()
        await simulation.end()
        return simulation.engine.tokens

    assert asyncio.run(main()) == 100 * SEQUENCES


def test_slots_are_kept_free_only_while_there_are_several_clients() -> None:
    """A minute after the other's last request, the sequence that was kept free for it is used."""

    async def main() -> list[int]:
        simulation, running = Simulation(), []
        simulation.send("gone", 1)
        for _ in range(2000):
            simulation.send("stays", 20)
        for seconds in (2, 61, 2):
            for _ in range(seconds * STEPS_PER_S):
                await simulation.step()
            running.append(simulation.queue._dispatched)
        await simulation.end()
        return running

    assert asyncio.run(main()) == [SEQUENCES - 1, 2 * SEQUENCES + 1, 2 * SEQUENCES + 1]


def test_a_request_with_more_choices_than_run_at_once_has_its_turn() -> None:
    async def main() -> list[str]:
        queue, order = DispatchQueue(5), []

        async def request(name: str, choices: int) -> None:
            async with queue.slot(0, False, name, choices):
                order.append(name)
                await settle()

        await asyncio.gather(request("a", 1), request("b", 100), request("a", 1), request("b", 100))
        return order

    order = asyncio.run(main())
    assert sorted(order) == ["a", "a", "b", "b"]


def test_a_begun_request_waits_for_no_share() -> None:
    async def main() -> bool:
        queue = DispatchQueue(5)
        async with queue.slot(0, False, "a", 2), queue.slot(0, True, "b", 100):
            return True

    assert asyncio.run(main())


def test_requests_of_a_client_with_little_are_expedited_while_others_have_more() -> None:
    """Of 8 sequences each of two clients has a part of 4; half of that is little."""

    async def main() -> list[bool]:
        queue, expedited = DispatchQueue(17), []
        done = asyncio.Event()

        async def request(name: str, charged: int) -> None:
            async with queue.slot(0, False, name) as slot:
                expedited.append(slot.expedited)
                slot.charge(charged)
                await done.wait()

        tasks = []
        for name, charged in [("light", 1), *[("heavy", 10)] * 5, *[("light", 1)] * 2]:
            tasks.append(asyncio.create_task(request(name, charged)))
            await settle()
        done.set()
        await asyncio.gather(*tasks)
        return expedited

    # Alone; having had more than the other; then the other has, but only one more is within half of the part.
    assert asyncio.run(main()) == [False, True, *[False] * 4, True, False]


def test_without_keys_nothing_is_expedited() -> None:
    async def main() -> set[bool]:
        queue, expedited = DispatchQueue(17), set()

        async def request() -> None:
            async with queue.slot(0, False) as slot:
                expedited.add(slot.expedited)
                await settle()

        await asyncio.gather(*(request() for _ in range(20)))
        return expedited

    assert asyncio.run(main()) == {False}
