"""ServeBackend over handles that behave like Serve's: cancellation, crashes, refusals."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError, RaySystemError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from mpt_serve.deployments import replicas
from mpt_serve.deployments.admission import Admission
from mpt_serve.deployments.readiness import Waiting
from mpt_serve.deployments.replica_updates import ReplicaUpdates, RunningReplica
from mpt_serve.deployments.serve_backend import ServeBackend
from mpt_serve.deployments.version import Version
from mpt_serve.deployments.watchdog import ReplicaReport, Watchdog
from mpt_serve.engine.prompt_embeds import PromptEmbeds
from mpt_serve.engine.request import Delta
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.errors import EngineClosedError, RequestError
from mpt_serve.openai.backend import GenerationRequest, ModelInfo
from mpt_serve.openai.errors import NotReadyError
from mpt_serve.structured_outputs.spec import GrammarSpec

Script = Callable[[Sequence[int], SamplingParams, Sequence[int]], AsyncIterator[Delta]]


class FakeResponse:
    """A streaming response: iterates over its script; remembers whether it was cancelled."""

    def __init__(self, deltas: AsyncIterator[Delta]) -> None:
        self._deltas = deltas
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._deltas

    def cancel(self) -> None:
        self.cancelled = True


async def reply_with(value: object) -> object:
    if isinstance(value, asyncio.Event):
        await value.wait()
    if isinstance(value, BaseException):
        raise value
    return value


class FakeGenerator:
    """A handle whose n-th call runs the n-th script."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.calls: list[tuple[list[int], SamplingParams, str, tuple[int, ...]]] = []
        self.responses: list[FakeResponse] = []
        self.specs: list[object] = []
        self.carriers: list[object] = []
        self.embeds: list[object] = []
        self.generate = SimpleNamespace(remote=self._generate)
        self.broadcasts: list[tuple[object, ...]] = []
        self.answers: list[object] | Exception = [None]

    def options(self, **_: Any) -> "FakeGenerator":
        return self

    def broadcast(self, *call: object) -> SimpleNamespace:
        async def results(timeout_s: float, return_exceptions: bool) -> list[object]:
            self.broadcasts.append(call)
            if isinstance(self.answers, Exception):
                raise self.answers
            return self.answers

        async def each() -> list[SimpleNamespace]:
            replies = await results(timeout_s=0, return_exceptions=True)
            return [SimpleNamespace(get_async=partial(reply_with, reply)) for reply in replies]

        return SimpleNamespace(results_async=results, _fetch_replica_results_async=each)

    def _generate(
        self,
        ids: list[int],
        params: SamplingParams,
        request_id: str,
        generated: tuple[int, ...],
        spec: object,
        address: object,
        carrier: object = None,
        embeds: object = None,
    ) -> FakeResponse:
        self.carriers.append(carrier)
        self.embeds.append(embeds)
        self.specs.append(spec)
        self.calls.append((list(ids), params, request_id, generated))
        self.responses.append(FakeResponse(self._scripts.pop(0)(ids, params, generated)))
        return self.responses[-1]


def token_at(choice: int, position: int) -> int:
    return 1000 * choice + 103 + position


def continuing(until: int | None = None) -> Script:
    """An engine whose outputs are a function of choice and position alone; it dies after `until` deltas.

    Choice c ends after max_tokens - c ids. Choices take turns.
    """

    async def script(ids: Sequence[int], params: SamplingParams, generated: Sequence[int]) -> AsyncIterator[Delta]:
        sent = 0
        for position in range(len(generated), params.max_tokens):
            for choice in range(params.choice_index, params.choice_index + params.n):
                length = params.max_tokens - choice
                if position >= length:
                    continue
                if sent == until:
                    raise RayActorError
                sent += 1
                first = position == len(generated) and choice == params.choice_index
                yield Delta(
                    (token_at(choice, position),),
                    "length" if position == length - 1 else None,
                    None,
                    len(ids),
                    num_cached_tokens=len(generated),
                    index=choice,
                    prompt_logprobs=(None,) * len(ids) if first and params.prompt_logprobs is not None else None,
                )
        if sent == until:
            raise RayActorError

    return script


def backend(generator: FakeGenerator, max_requests: int = 8, capacity: int = 8, tokenizer: Any = None) -> ServeBackend:
    info = ModelInfo(id="m", created=0, max_model_len=64, vocab_len=300)
    handles: Any = (None, tokenizer, generator)
    admission, waiting = Admission(max_requests, 1000), Waiting(1.0, max_requests)
    served = ServeBackend(info, *handles, admission, ReplicaUpdates(()), Version("s", "m"), waiting)
    served.resize(capacity)
    return served


async def turns() -> None:
    """Let everything run that waits for nothing but its turn."""
    for _ in range(50):
        await asyncio.sleep(0)


async def collect(served: ServeBackend, params: SamplingParams, prompt: Sequence[int] = (1, 2, 3)) -> list[Delta]:
    deltas: list[Delta] = []
    await served.generate(GenerationRequest(prompt, params, None, "r"), deltas.append)
    return deltas


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def test_a_request_that_moves_takes_its_embeddings_along() -> None:
    generator = FakeGenerator(continuing(until=2), continuing())
    embeds = PromptEmbeds.of(np.ones((2, 3), np.float32))
    request = GenerationRequest([0, 0], SamplingParams(max_tokens=4), None, "r", embeds=embeds)
    deltas: list[Delta] = []
    asyncio.run(backend(generator).generate(request, deltas.append))
    assert tokens(deltas) == [103, 104, 105, 106]
    assert generator.embeds == [embeds, embeds]


def test_a_finished_stream_is_not_cancelled() -> None:
    generator = FakeGenerator(continuing())
    deltas = asyncio.run(collect(backend(generator), SamplingParams(max_tokens=4)))
    assert tokens(deltas) == [103, 104, 105, 106]
    assert [delta.finish_reason for delta in deltas] == [None, None, None, "length"]
    assert not generator.responses[0].cancelled


def test_a_client_is_charged_for_its_prompt_and_what_is_generated() -> None:
    served = backend(FakeGenerator(continuing()))
    request = GenerationRequest([1, 2, 3], SamplingParams(max_tokens=4), None, "r", client="alice")
    asyncio.run(served.generate(request, [].append))
    share = served.queue._shares._shares["alice"]
    assert (share.counter, share.held, share.waiting) == (3 + 2 * 4, 0, 0)
    assert sum(served.metrics.histograms["queue_time"].counts) == 1


def test_what_nobody_waits_for_takes_no_capacity_from_others() -> None:
    async def forever(ids: Sequence[int], params: SamplingParams, generated: Sequence[int]) -> AsyncIterator[Delta]:
        await asyncio.Event().wait()
        yield Delta((), "length", None, 1)

    async def scenario() -> None:
        generator = FakeGenerator(forever, continuing())
        served = backend(generator, capacity=1)
        params = SamplingParams(max_tokens=0, pooling="mean", background=True)
        patient = [asyncio.create_task(collect(served, params)) for _ in range(2)]
        while not generator.calls:
            await asyncio.sleep(0)
        assert tokens(await collect(served, SamplingParams(max_tokens=1))) == [103]
        assert (len(generator.calls), served.background_queue.num_waiting) == (2, 1)
        assert sum(served.metrics.histograms["queue_time"].counts) == 1
        for task in patient:
            task.cancel()
        await asyncio.gather(*patient, return_exceptions=True)

    asyncio.run(scenario())


def test_requests_for_hidden_states_leave_others_most_of_the_capacity() -> None:
    ends = asyncio.Event()

    async def waiting(ids: Sequence[int], params: SamplingParams, generated: Sequence[int]) -> AsyncIterator[Delta]:
        await ends.wait()
        yield Delta((), "length", None, 1, hidden_states=b"1234")

    async def scenario() -> None:
        generator = FakeGenerator(waiting, waiting, continuing(), waiting, waiting)
        served = backend(generator, capacity=8)
        params = SamplingParams(max_tokens=0, pooling="mean")
        embeddings = [asyncio.create_task(collect(served, params)) for _ in range(4)]
        while len(generator.calls) < 2:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (len(generator.calls), served.num_waiting) == (2, 2)
        assert tokens(await collect(served, SamplingParams(max_tokens=2))) == [103, 104]
        ends.set()
        for deltas in await asyncio.gather(*embeddings):
            assert [delta.hidden_states for delta in deltas] == [b"1234"]
        assert served.num_waiting == 0

    asyncio.run(scenario())


async def cancelled_after(served: ServeBackend, params: SamplingParams, count: int) -> None:
    """Generate, cancel after that many deltas, and wait for the end of that."""
    deltas: list[Delta] = []
    task = asyncio.create_task(served.generate(GenerationRequest([1], params, None, "r"), deltas.append))
    while len(deltas) < count:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def waiting_after(count: int) -> Script:
    """An engine that sends that many deltas of its first choice, and then nothing."""

    async def script(ids: Sequence[int], params: SamplingParams, *_: object) -> AsyncIterator[Delta]:
        for _ in range(count):
            yield Delta((1,), None, None, 3, index=params.choice_index)
        await asyncio.Event().wait()

    return script


def test_cancelling_a_request_cancels_its_stream_before_it_returns() -> None:
    generator = FakeGenerator(waiting_after(1))
    asyncio.run(cancelled_after(backend(generator), SamplingParams(max_tokens=9), 1))
    assert generator.responses[0].cancelled


def test_an_exception_of_the_reader_ends_the_request() -> None:
    generator = FakeGenerator(continuing())

    def fail(delta: Delta) -> None:
        raise KeyError("reader")

    request = GenerationRequest([1], SamplingParams(max_tokens=9), None, "r")
    with pytest.raises(KeyError, match="reader"):
        asyncio.run(backend(generator).generate(request, fail))
    assert generator.responses[0].cancelled


def test_a_grammar_goes_to_every_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = GrammarSpec("regex", "a+")
    generator = FakeGenerator(continuing(until=1), continuing())
    request = GenerationRequest([1], SamplingParams(max_tokens=3), spec, "r")
    asyncio.run(backend(generator).generate(request, lambda delta: None))
    assert generator.specs == [spec, spec]


async def collect_until(served: ServeBackend, params: SamplingParams, last: dict[int, int]) -> list[Delta]:
    """Return the deltas of a request whose choice c is stopped after token last[c]."""
    stopped: set[int] = set()
    deltas: list[Delta] = []

    def on_delta(delta: Delta) -> None:
        deltas.append(delta)
        stopped.update(choice for choice, token in last.items() if token in delta.token_ids)

    await served.generate(GenerationRequest([1], params, None, "r"), on_delta, stopped)
    await turns()  # for the calls in the background
    return deltas


def test_a_stopped_choice_ends_and_the_others_continue() -> None:
    generator = FakeGenerator(continuing())
    last = {1: token_at(1, 2)}
    deltas = asyncio.run(collect_until(backend(generator), SamplingParams(max_tokens=6, n=3), last))
    own = {choice: tokens([delta for delta in deltas if delta.index == choice]) for choice in range(3)}
    assert own == {c: [token_at(c, i) for i in range(3 if c == 1 else 6 - c)] for c in range(3)}
    assert generator.broadcasts == [("end_choice", generator.calls[0][2], 1)]
    assert not generator.responses[0].cancelled


def test_a_request_ends_when_all_its_choices_are_stopped() -> None:
    generator = FakeGenerator(continuing())
    last = {choice: token_at(choice, 2) for choice in range(2)}
    deltas = asyncio.run(collect_until(backend(generator), SamplingParams(max_tokens=9, n=2), last))
    assert len(tokens(deltas)) == 6
    assert generator.responses[0].cancelled


def test_a_stopped_choice_is_not_moved_to_the_next_replica() -> None:
    generator = FakeGenerator(continuing(until=8), continuing())
    last = {0: token_at(0, 2)}
    deltas = asyncio.run(collect_until(backend(generator), SamplingParams(max_tokens=9, n=2), last))
    assert tokens([delta for delta in deltas if delta.index == 1]) == [token_at(1, i) for i in range(8)]
    assert [params.choice_index for _, params, _, _ in generator.calls] == [0, 1]


def test_a_choice_can_be_stopped_wherever_it_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpt_serve.deployments.failover._MOVE_PAUSE_S", 0.0)
    generator = FakeGenerator(continuing(until=2), continuing(), continuing())
    last = {0: token_at(0, 4)}
    deltas = asyncio.run(collect_until(backend(generator), SamplingParams(max_tokens=9, n=2), last))
    assert tokens([delta for delta in deltas if delta.index == 1]) == [token_at(1, i) for i in range(8)]
    assert [response.cancelled for response in generator.responses[1:]] == [True, False]


def test_admission_refuses_all_prompts_of_a_request_together() -> None:
    served = backend(FakeGenerator(), max_requests=3)
    with served.reserve() as first:
        first.admit([1, 2], 1)
        assert served.retry_after_s() is None
        for prompts, choices in (([1, 1], 1), ([1], 2)):
            with pytest.raises(NotReadyError), served.reserve() as other:
                other.admit(prompts, choices)
        with served.reserve() as other:
            other.admit([1], 1)
            assert served.retry_after_s() is not None


def test_a_request_is_moved_from_a_closed_engine() -> None:
    async def closed(ids: Sequence[int], *_: object) -> AsyncIterator[Delta]:
        raise RayTaskError("generate", "a long traceback", EngineClosedError("closed")).as_instanceof_cause()
        yield

    async def closing(ids: Sequence[int], *_: object) -> AsyncIterator[Delta]:
        yield Delta((103,), None, None, len(ids))
        yield Delta((), "cancelled", None, len(ids))

    for first in (closed, closing):
        generator = FakeGenerator(first, continuing())
        deltas = asyncio.run(collect(backend(generator), SamplingParams(max_tokens=3)))
        assert tokens(deltas) == [103, 104, 105]


def test_a_request_whose_step_failed_is_not_moved() -> None:
    async def failing(ids: Sequence[int], *_: object) -> AsyncIterator[Delta]:
        yield Delta((), "error", None, len(ids), message="a step failed")

    generator = FakeGenerator(failing, continuing())
    deltas = asyncio.run(collect(backend(generator), SamplingParams(max_tokens=3)))
    assert [delta.finish_reason for delta in deltas] == ["error"]
    assert len(generator.calls) == 1


@pytest.mark.parametrize("died_after", [0, 1, 5])
def test_a_request_survives_its_replica(died_after: int) -> None:
    generator = FakeGenerator(continuing(until=died_after), continuing())
    params = SamplingParams(max_tokens=6, min_tokens=4)
    deltas = asyncio.run(collect(backend(generator), params))
    assert tokens(deltas) == [103, 104, 105, 106, 107, 108]
    assert [delta.num_prompt_tokens for delta in deltas] == [3] * len(deltas)
    (_, first, first_id, _), (again, second, second_id, generated) = generator.calls
    assert (again, list(generated)) == ([1, 2, 3], tokens(deltas)[:died_after])
    assert (second.max_tokens, second.min_tokens) == (6, 4)  # the engine counts what there is already
    assert first.seed == second.seed is not None  # the same random numbers go on
    assert first_id != second_id


@pytest.mark.parametrize("died_after", range(10))
def test_every_choice_survives_its_replica(died_after: int) -> None:
    params = SamplingParams(max_tokens=4, n=3, prompt_logprobs=0, seed=5)
    generator = FakeGenerator(continuing(until=died_after), *[continuing()] * 3)
    deltas = asyncio.run(collect(backend(generator), params))
    for choice in range(3):
        own = [delta for delta in deltas if delta.index == choice]
        assert tokens(own) == [token_at(choice, position) for position in range(4 - choice)]
        assert [delta.finish_reason for delta in own if delta.finish_reason] == ["length"]
        assert own[-1].finish_reason
    assert [delta.index for delta in deltas if delta.prompt_logprobs is not None] == [0]  # reported once
    assert {delta.num_cached_tokens for delta in deltas} == {0}  # by the replica that read the prompt
    for ids, own_params, _, generated in generator.calls[1:]:
        assert ids == [1, 2, 3]
        assert (own_params.n, own_params.seed) == (1, 5)
        assert list(generated) == [token_at(own_params.choice_index, i) for i in range(len(generated))]
        assert len(generated) < 4 - own_params.choice_index  # finished choices are not generated again


def test_a_choice_is_moved_independently_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpt_serve.deployments.failover._MOVE_PAUSE_S", 0.0)
    generator = FakeGenerator(continuing(until=3), continuing(), continuing(until=1), continuing())
    deltas = asyncio.run(collect(backend(generator), SamplingParams(max_tokens=6, n=2)))
    for choice in range(2):
        own = [delta for delta in deltas if delta.index == choice]
        assert tokens(own) == [token_at(choice, position) for position in range(6 - choice)]
    assert len(generator.calls) == 4


def test_cancelling_a_moved_request_cancels_all_its_choices() -> None:
    generator = FakeGenerator(continuing(until=0), waiting_after(1), waiting_after(1))
    asyncio.run(cancelled_after(backend(generator), SamplingParams(n=2), 2))
    assert [response.cancelled for response in generator.responses[1:]] == [True, True]


def test_a_prompt_that_was_only_read_is_read_again() -> None:
    async def reading(ids: Sequence[int], params: SamplingParams, *_: object) -> AsyncIterator[Delta]:
        assert params.prompt_logprobs == 2
        yield Delta((), "length", None, len(ids), prompt_logprobs=(None,) * len(ids))

    generator = FakeGenerator(continuing(until=0), reading)
    [delta] = asyncio.run(collect(backend(generator), SamplingParams(max_tokens=0, prompt_logprobs=2)))
    assert (delta.finish_reason, delta.prompt_logprobs) == ("length", (None,) * 3)


def test_a_replica_that_dies_after_the_last_token_ends_the_request() -> None:
    async def script(ids: Sequence[int], *_: object) -> AsyncIterator[Delta]:
        yield Delta((7, 8), None, None, len(ids))
        raise RayActorError

    deltas = asyncio.run(collect(backend(FakeGenerator(script)), SamplingParams(max_tokens=2)))
    assert tokens(deltas) == [7, 8]
    assert deltas[-1].finish_reason == "length"


def test_a_request_is_not_moved_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpt_serve.deployments.failover._MOVE_PAUSE_S", 0.0)
    generator = FakeGenerator(*[continuing(until=0)] * 10)
    with pytest.raises(NotReadyError, match="4 replicas were lost"):
        asyncio.run(collect(backend(generator), SamplingParams(max_tokens=2)))
    assert len(generator.calls) == 4


def test_waiting_requests_are_dispatched_by_priority() -> None:
    async def slow(ids: Sequence[int], *_: object) -> AsyncIterator[Delta]:
        await asyncio.sleep(0.01)
        yield Delta((7,), "length", None, len(ids))

    generator = FakeGenerator(*[slow] * 4)
    served = backend(generator, capacity=1)

    async def scenario() -> None:
        requests = [collect(served, SamplingParams(priority=p), [10 + p]) for p in (0, 3, -3, 0)]
        await asyncio.gather(*requests)

    asyncio.run(scenario())
    assert [ids for ids, *_ in generator.calls] == [[10], [7], [10], [13]]


def test_a_deployment_that_takes_nothing_is_a_503() -> None:
    async def script(*_: object) -> AsyncIterator[Delta]:
        raise BackPressureError(num_queued_requests=5, max_queued_requests=5)
        yield

    with pytest.raises(NotReadyError):
        asyncio.run(collect(backend(FakeGenerator(script)), SamplingParams()))


def test_counters_of_the_replicas_that_reply() -> None:
    generator = FakeGenerator()
    generator.answers = [RayActorError(), {"running": 1}, RayTaskError("stats", "traceback", ValueError())]
    assert asyncio.run(backend(generator).stats()) == [{"running": 1}]
    generator.answers = DeploymentUnavailableError(DeploymentID("Generator", "mpt"))
    assert asyncio.run(backend(generator).stats()) == []


def test_a_frozen_replica_does_not_hide_the_counters_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_REPLY_WAIT_S", 0.01)
    generator = FakeGenerator()

    async def scenario() -> list[dict[str, Any]]:
        generator.answers = [asyncio.Event(), {"running": 1}]
        return await backend(generator).stats()

    assert asyncio.run(scenario()) == [{"running": 1}]


def test_a_request_of_a_frozen_replica_continues_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async def freezes(ids: Sequence[int], params: SamplingParams, generated: Sequence[int]) -> AsyncIterator[Delta]:
        yield Delta((token_at(0, 0),), None, None, len(ids))
        await asyncio.Event().wait()

    async def check_health() -> None:
        await asyncio.Event().wait()

    generator = FakeGenerator(freezes, continuing())
    frozen = SimpleNamespace(check_health=SimpleNamespace(remote=check_health))
    killed: list[Any] = []
    monkeypatch.setattr(replicas, "_LAST_CHECK_S", 0.01)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: {"SERVE_REPLICA::a": frozen}[name])
    monkeypatch.setattr(ray, "kill", killed.append)

    async def scenario() -> list[Delta]:
        served = backend(generator)
        served.watchdog = Watchdog(served._replicas, 0.01)
        served.watch._updates.replicas["Generator"] = [RunningReplica(8, Version("s", "m"), "SERVE_REPLICA::a")]
        request = asyncio.create_task(collect(served, SamplingParams(max_tokens=4)))
        while not generator.responses:
            await asyncio.sleep(0)
        await turns()  # its first delta has come
        generator.answers = [asyncio.Event()]
        await served.watchdog.check()
        await asyncio.gather(*served.watchdog._ending.values())
        return await request

    assert tokens(asyncio.run(scenario())) == [token_at(0, position) for position in range(4)]
    assert generator.responses[0].cancelled
    assert generator.calls[1][3] == (token_at(0, 0),)
    assert killed == [frozen]


def test_what_replicas_report_says_on_which_links_they_are_heard() -> None:
    generator = FakeGenerator()
    generator.answers = [ReplicaReport("a", [], "", "x"), ReplicaReport("b", [], ""), RayActorError()]

    async def scenario() -> None:
        served = backend(generator)
        served.watch._updates.replicas["Generator"] = [RunningReplica(8, Version("s", "m"), name) for name in "abc"]
        served._generator_replicas.receiver.start("127.0.0.1")
        replies = await served._replicas.reports()
        assert [await replies[0], await replies[1]] == generator.answers[:2]
        with pytest.raises(RayActorError):
            await replies[2]
        ((method, address),) = generator.broadcasts
        assert method == "report"
        assert address == await served._generator_replicas.receiver.address(-1)
        served.signs.look()  # the receiver knows no such link
        assert [served.signs.is_silent(name) for name in "abc"] == [True, False, False]
        assert served._replicas.running() == {"a", "b", "c"}
        assert not served._replicas.was_heard("a", 60)
        served._generator_replicas.receiver.close()

    asyncio.run(scenario())


class FakeTokenizer:
    """A handle whose n-th call has the n-th outcome."""

    def __init__(self, *outcomes: list[int] | Exception | asyncio.Event) -> None:
        self.outcomes = list(outcomes)
        self.encode = SimpleNamespace(remote=self._encode)
        self.calls = 0

    async def _encode(self, text: str, add_special_tokens: bool, parse_special_tokens: bool) -> list[int]:
        self.calls += 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, asyncio.Event):
            await outcome.wait()
            raise AssertionError
        return outcome


def test_the_engine_learns_which_requests_are_expedited() -> None:
    """Two clients: the one that has had less, and the other."""
    generator = FakeGenerator(*[continuing()] * 3)

    async def scenario() -> None:
        served = backend(generator)
        served.queue.resize(17)
        tasks = []
        for client in ("heavy", "heavy", "light"):
            request = GenerationRequest((1, 2, 3), SamplingParams(max_tokens=8), None, "r", client)
            tasks.append(asyncio.create_task(served.generate(request, lambda delta: None)))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    asyncio.run(scenario())
    assert [params.expedited for _, params, _, _ in generator.calls] == [False, False, True]


def test_a_text_is_encoded_by_another_tokenizer_when_the_first_dies() -> None:
    tokenizer = FakeTokenizer(RayActorError(), [1, 2])
    served = backend(FakeGenerator(), tokenizer=tokenizer)
    assert asyncio.run(served.encode("a b", True)) == [1, 2]
    lost = RaySystemError("the object with the ids is lost")
    for outcomes in ([RayActorError(), RayActorError(), RayActorError()], [lost]):
        tokenizer.outcomes = outcomes
        with pytest.raises(NotReadyError):
            asyncio.run(served.encode("a b", True))


def test_a_text_is_encoded_by_another_tokenizer_when_the_first_freezes(monkeypatch: pytest.MonkeyPatch) -> None:
    never = asyncio.Event()
    ended: list[str] = []

    async def end(self: object, replica: str) -> None:
        ended.append(replica)

    async def no_reply(*_: object) -> list[Any]:
        return [never.wait()]

    monkeypatch.setattr(replicas.WatchedReplicas, "replace_if_stopped", end)
    monkeypatch.setattr(replicas.Replicas, "call", no_reply)
    # The second call reaches a replica that was ended, the third one that works.
    tokenizer = FakeTokenizer(never, RayActorError(), [1, 2])

    async def scenario() -> Sequence[int]:
        served = backend(FakeGenerator(), tokenizer=tokenizer)
        served.tokenizer_watchdog._timeout_s = 0.01
        served.watch._updates.replicas["Tokenizer"] = [RunningReplica(8, Version("s", "m"), "SERVE_REPLICA::t")]
        request = asyncio.create_task(served.encode("a b", True))
        while not tokenizer.calls:
            await asyncio.sleep(0)
        await turns()
        await served.tokenizer_watchdog.check()
        return await request

    assert asyncio.run(scenario()) == [1, 2]
    assert ended == ["SERVE_REPLICA::t"]


def test_the_engines_refusal_keeps_its_type_and_message() -> None:
    async def script(ids: Sequence[int], *_: object) -> AsyncIterator[Delta]:
        raise RayTaskError("generate", "a long traceback", RequestError("the prompt is empty")).as_instanceof_cause()
        yield

    with pytest.raises(RequestError) as error:
        asyncio.run(collect(backend(FakeGenerator(script)), SamplingParams()))
    assert str(error.value) == "the prompt is empty"


def test_equal_request_ids_become_different_in_the_engine() -> None:
    generator = FakeGenerator(continuing(), continuing())
    served = backend(generator)

    async def both() -> None:
        await asyncio.gather(*(collect(served, SamplingParams(max_tokens=2)) for _ in range(2)))

    asyncio.run(both())
    assert len({request_id for _, _, request_id, _ in generator.calls}) == 2
