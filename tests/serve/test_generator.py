"""The Generator's own logic, without Serve and without a device."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpt_serve.configuration.settings import Settings
from mpt_serve.deployments import generator
from mpt_serve.deployments.delta_link import delta_links
from mpt_serve.deployments.delta_receiver import Delivery, DeltaReceiver
from mpt_serve.deployments.engine_watch import NumbersWatch, StallWatch
from mpt_serve.deployments.generator import Generator
from mpt_serve.deployments.watchdog import ReplicaReport
from mpt_serve.engine.request import Delta
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.errors import RequestError
from mpt_serve.structured_outputs.spec import GrammarSpec


class FakeEngine:
    """Records requests; tests call their listeners."""

    def __init__(self) -> None:
        self.listeners: dict[str, Callable[[Delta], None]] = {}
        self.cancelled: list[str] = []
        self.generated: Sequence[int] = ()
        self.grammars: list[object] = []
        self.threads: list[threading.Thread] = []  # that submitted
        self.compiling = threading.Event()  # set when that is over
        self.compiling.set()
        self.state = SimpleNamespace(
            error=None, steps=1, running=0, without_numbers=0, finished={"stop": 0, "length": 0}
        )

    def submit(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        request_id: str,
        generated: Sequence[int] = (),
        grammar: object = None,
        embeds: object = None,
    ) -> str:
        self.check(ids, params)
        self.generated = generated
        self.grammars.append(grammar)
        self.threads.append(threading.current_thread())
        self.listeners[request_id] = on_delta
        return request_id

    def check(
        self, ids: Sequence[int], params: SamplingParams, with_grammar: bool = False, embeds: object = None
    ) -> None:
        if not ids:
            raise RequestError("the prompt is empty")

    def compile(self, spec: GrammarSpec) -> GrammarSpec:
        """Stand in for the compiler, too."""
        self.compiling.wait(30)
        return spec

    def cancel(self, request_id: str, index: int | None = None, reason: str = "cancelled") -> None:
        self.cancelled.append(request_id if index is None else f"{request_id} {index} {reason}")

    def request_ids(self) -> list[str]:
        return list(self.listeners)

    def stats(self) -> SimpleNamespace:
        return self.state


def generator_over(engine: FakeEngine, stall_timeout_s: float = 10) -> Generator:
    generator = Generator.__new__(Generator)  # its constructor loads a model
    generator._engine = engine  # type: ignore[assignment]
    generator._tracing = None
    generator._grammars = engine  # type: ignore[assignment]
    generator._stall_watch = StallWatch(stall_timeout_s)
    generator._numbers_watch = NumbersWatch()
    generator._mailbox = None
    generator._actor = "SERVE_REPLICA::a"
    generator._links = delta_links(generator._engine.cancel)
    return generator


@pytest.mark.parametrize(("kernels", "dtype"), [(True, None), (False, "float32")])
def test_the_model_is_loaded_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, kernels: bool, dtype: str | None
) -> None:
    asked: dict[str, Any] = {}
    engine = SimpleNamespace(from_pretrained=lambda path, config, **options: asked.update(dict(config), **options))
    monkeypatch.setattr("mpt_serve.engine.Engine", engine)
    monkeypatch.setattr("mpt_serve.deployments.generator._check_accelerator", lambda: None)  # asks a running Ray
    monkeypatch.setattr("model.kernel_selection.kernels_available", lambda: kernels)
    args = {"model": str(tiny_checkpoint), "quantization": "int4", "quantization_cache_dir": "~/quantised"}
    generator._load(Settings.from_mapping(args))
    assert (asked["quantization"], asked["quantization_cache_dir"]) == ("int4", "~/quantised")
    assert (asked["mesh"], asked["dtype"]) == (None, dtype)  # 'auto', on a CPU
    assert (asked["draft_model"], asked["speculation"], asked["cache_dtype"]) == (None, "ngram", "auto")
    draft = {"speculation": "draft", "draft_model": str(tiny_checkpoint), "num_draft_tokens": 3}
    generator._load(Settings.from_mapping(args | {"engine": draft | {"prefix_caching": False}}))
    assert (asked["draft_model"], asked["num_draft_tokens"]) == (str(tiny_checkpoint), 3)
    assert (asked["speculation"], asked["prefix_caching"]) == ("draft", False)
    generator._load(Settings.from_mapping(args | {"dtype": "bfloat16"}))
    assert asked["dtype"] == "bfloat16"
    generator._load(Settings.from_mapping(args | {"engine": {"kernels": "xla"}}))
    assert asked["dtype"] == "float32"


def test_a_stream_ends_with_its_finish_reason_and_leaves_nothing_behind() -> None:
    engine = FakeEngine()

    async def scenario() -> list[Delta]:
        stream: Any = generator_over(engine).generate([1], SamplingParams(), "a")
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        engine.listeners["a"](Delta((5,), None, None, 1))
        deltas = [await first]
        engine.listeners["a"](Delta((6,), "length", None, 1))
        return deltas + [delta async for delta in stream]

    assert [delta.token_ids for delta in asyncio.run(scenario())] == [(5,), (6,)]
    assert engine.cancelled == ["a"]


def test_closing_a_stream_cancels_in_the_engine() -> None:
    engine = FakeEngine()

    async def scenario() -> None:
        stream: Any = generator_over(engine).generate([1], SamplingParams(), "a")
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(scenario())
    assert engine.cancelled == ["a"]


def test_all_choices_end_before_a_stream_does() -> None:
    engine = FakeEngine()

    async def scenario() -> list[int]:
        stream: Any = generator_over(engine).generate([1], SamplingParams(n=2), "a")
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        for index in (1, 0):
            engine.listeners["a"](Delta((5,), "length", None, 1, index=index))
        return [(await first).index, *[delta.index async for delta in stream]]

    assert asyncio.run(scenario()) == [1, 0]


def test_a_choice_that_its_reader_stops_ends_with_stop() -> None:
    engine = FakeEngine()
    asyncio.run(generator_over(engine).end_choice("a", 3))
    assert engine.cancelled == ["a 3 stop"]


def test_a_request_continues_after_its_ids() -> None:
    engine = FakeEngine()

    async def scenario() -> None:
        stream: Any = generator_over(engine).generate([1], SamplingParams(), "a", [7, 8])
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        engine.listeners["a"](Delta((9,), "length", None, 1))
        await first

    asyncio.run(scenario())
    assert engine.generated == [7, 8]


SPEC = GrammarSpec("regex", "a+")


def test_a_grammar_is_compiled_off_the_event_loop() -> None:
    engine = FakeEngine()
    engine.compiling.clear()

    async def scenario() -> None:
        stream: Any = generator_over(engine).generate([1], SamplingParams(), "a", spec=SPEC)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.01)  # the loop runs meanwhile
        engine.compiling.set()
        while "a" not in engine.listeners:
            await asyncio.sleep(0.001)
        engine.listeners["a"](Delta((9,), "stop", 9, 1))
        assert (await first).finish_reason == "stop"

    asyncio.run(scenario())
    assert engine.threads != [threading.current_thread()]
    assert engine.grammars == [SPEC]


def test_a_request_that_is_closed_while_its_grammar_compiles_is_cancelled() -> None:
    engine = FakeEngine()
    engine.compiling.clear()

    async def scenario() -> None:
        waiting = asyncio.ensure_future(anext(generator_over(engine).generate([1], SamplingParams(), "a", spec=SPEC)))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not engine.cancelled  # it is not there yet
        engine.compiling.set()
        while not engine.cancelled:
            await asyncio.sleep(0.001)

    asyncio.run(scenario())
    assert engine.cancelled == ["a"]


@pytest.mark.parametrize("spec", [None, SPEC])
def test_a_refused_request_raises(spec: GrammarSpec | None) -> None:
    async def scenario() -> None:
        await anext(generator_over(FakeEngine()).generate([], SamplingParams(), "a", spec=spec))

    with pytest.raises(RequestError, match="the prompt is empty"):
        asyncio.run(scenario())


def test_health_fails_with_a_dead_engine() -> None:
    engine = FakeEngine()
    generator = generator_over(engine)
    asyncio.run(generator.check_health())
    engine.state.error = "out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(generator.check_health())


def test_a_stall_is_work_without_steps_for_too_long() -> None:
    watch = StallWatch(limit_s=10)
    watch.check(steps=5, busy=True, now=0)
    watch.check(steps=5, busy=True, now=10)
    watch.check(steps=105, busy=True, now=21)  # it advanced
    watch.check(steps=105, busy=False, now=100)  # it is idle
    watch.check(steps=105, busy=True, now=109)
    with pytest.raises(RuntimeError, match="took no step for 11 s"):
        watch.check(steps=105, busy=True, now=111)


def test_long_steps_are_no_stall_where_recent_ones_took_as_long() -> None:
    watch = StallWatch(limit_s=10)
    watch.check(steps=5, busy=True, now=0)
    watch.check(steps=7, busy=True, now=4)  # 2 s a step
    watch.check(steps=7, busy=True, now=43)
    with pytest.raises(RuntimeError, match="took no step for 41 s"):
        watch.check(steps=7, busy=True, now=45)


def test_a_report_names_the_requests_and_says_what_is_wrong() -> None:
    engine = FakeEngine()
    generator = generator_over(engine)

    async def scenario() -> tuple[ReplicaReport, ReplicaReport]:
        stream = generator.generate([1], SamplingParams(), "a")
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        working = await generator.report()
        engine.state.error = "out of memory"
        stopped = await generator.report()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return working, stopped

    working, stopped = asyncio.run(scenario())
    assert working == ReplicaReport("SERVE_REPLICA::a", ["a"], "")
    assert "out of memory" in stopped.stalled


def test_a_report_opens_a_link_to_the_ingress_that_asks() -> None:
    generator = generator_over(FakeEngine())

    async def scenario() -> None:
        receiver = DeltaReceiver()
        receiver.start("127.0.0.1")
        address = await receiver.address(-1)
        assert (await generator.report(address)).link is None  # not yet
        while (link := (await generator.report(address)).link) is None:
            await asyncio.sleep(0)
        while receiver.connection(link) is None:
            await asyncio.sleep(0)
        receiver.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_replica_that_computes_no_numbers_again_and_again_is_unhealthy() -> None:
    engine = FakeEngine()
    generator = generator_over(engine)

    def check(broken: int, finished: int) -> None:
        engine.state.without_numbers, engine.state.finished = broken, {"stop": 1, "length": finished}
        asyncio.run(generator.check_health())

    check(2, 0)
    check(4, 1)  # others finish in between
    check(6, 1)
    with pytest.raises(RuntimeError, match="the last 3 choices ended because the model's logits held no finite number"):
        check(7, 1)
    with pytest.raises(RuntimeError, match="the last 4 choices"):
        check(8, 1)


def test_over_a_link_a_call_yields_its_id_and_ends_when_all_is_sent() -> None:
    engine = FakeEngine()

    async def scenario() -> None:
        generator = generator_over(engine)
        receiver = DeltaReceiver()
        receiver.start("127.0.0.1")
        received: list[Delta] = []
        with receiver.receive(delivery := Delivery(range(2), received.append, frozenset(), lambda index: None)):
            address = await receiver.address(delivery.number)
            call: Any = generator.generate([1], SamplingParams(n=2), "a", (), None, address)
            receiver.bind(delivery, await anext(call))
            for index in range(2):
                engine.listeners["a"](Delta((5,), "length", None, 1, index=index))
            generator._links.flush()
            assert await anext(call, None) is None
            await delivery.ended
            assert [delta.index for delta in received] == [0, 1]
            assert engine.cancelled == ["a"]
        with receiver.receive(delivery):  # refused: the call says why, and the link has nothing of it
            address = await receiver.address(delivery.number)
            with pytest.raises(RequestError):
                await anext(generator.generate([], SamplingParams(), "b", (), None, address))
        for link in generator._links._open:
            assert not link._requests
            link.close()
        receiver.close()
        await asyncio.sleep(0)

    asyncio.run(scenario())
