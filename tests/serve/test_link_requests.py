"""Requests that go to the only Generator over its link, before their calls of Serve's."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

from mpt_serve.deployments.admission import Admission
from mpt_serve.deployments.delta_link import delta_links
from mpt_serve.deployments.readiness import Waiting
from mpt_serve.deployments.replica_updates import ReplicaUpdates, RunningReplica
from mpt_serve.deployments.request_wire import LinkRequest
from mpt_serve.deployments.serve_backend import ServeBackend
from mpt_serve.deployments.version import Version
from mpt_serve.deployments.watchdog import ReplicaReport
from mpt_serve.engine.request import Delta
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.openai.backend import GenerationRequest, ModelInfo
from mpt_serve.structured_outputs.spec import GrammarSpec

LOOPBACK = "127.0.0.1"
END = Delta((9,), "length", None, 2)


class Handle:
    """A handle of the Generator's; notes the calls, which yield the whole output unless the request has begun."""

    def __init__(self) -> None:
        self.calls: list[bool] = []
        self.report: ReplicaReport | None = None
        self.generate = SimpleNamespace(remote=self._generate)

    def options(self, **_: Any) -> "Handle":
        return self

    def broadcast(self, *_: object) -> SimpleNamespace:
        async def reply() -> ReplicaReport:
            assert self.report is not None
            return self.report

        async def each() -> list[SimpleNamespace]:
            return [SimpleNamespace(get_async=reply)]

        return SimpleNamespace(_fetch_replica_results_async=each)

    async def _generate(self, *_: object, begun: bool = False, **__: object) -> AsyncIterator[Delta]:
        self.calls.append(begun)
        if not begun:
            yield END


def test_a_request_goes_over_the_link_where_it_can() -> None:
    handle: Any = Handle()
    over_link: list[LinkRequest] = []

    def begin(request: LinkRequest, on_delta: Callable[[Delta], None]) -> None:
        over_link.append(request)
        on_delta(END)

    async def scenario() -> None:
        info = ModelInfo(id="m", created=0, max_model_len=64, vocab_len=300)
        updates = ReplicaUpdates(["Generator"])
        no_handle: Any = None
        bounds = Admission(8, 1000), updates, Version("s", "m"), Waiting(1.0, 8)
        served = ServeBackend(info, no_handle, no_handle, handle, *bounds)
        served.resize(8)
        served.listen(LOOPBACK)
        address = await served._generator_replicas.receiver.address(-1)
        assert address is not None
        link = await delta_links(lambda *_: None, begin).to(address)
        assert link is not None
        handle.report = ReplicaReport("a", (), "", link.id, takes_work=True)

        async def goes_over_link(**fields: Any) -> bool:
            """Send a request, and return which way it went."""
            parts: dict[str, Any] = {
                "ids": (1, 2),
                "params": SamplingParams(max_tokens=5),
                "grammar": None,
                "request_id": "r",
                **fields,
            }
            before = len(over_link), len(handle.calls)
            deltas: list[Delta] = []
            await asyncio.wait_for(served.generate(GenerationRequest(**parts), deltas.append), 60)
            await asyncio.sleep(0)  # the call is read by a task
            assert deltas == [END]
            assert len(handle.calls) == before[1] + 1  # Serve counts it either way
            assert handle.calls[-1] == (len(over_link) > before[0])
            return bool(handle.calls[-1])

        one = RunningReplica(8, None, "a")
        assert not await goes_over_link()  # no replica is known
        updates.replicas["Generator"] = [one]
        assert not await goes_over_link()  # it has not reported
        for report in await served._replicas.reports():
            await report
        assert await goes_over_link()
        assert over_link[0].request_id.startswith("r/")
        assert (list(over_link[0].prompt_ids), over_link[0].params.max_tokens) == ([1, 2], 5)
        assert not await goes_over_link(grammar=GrammarSpec("regex", "a"))
        assert not await goes_over_link(ids=(1,) * 10_000)
        updates.replicas["Generator"] = [one, RunningReplica(8, None, "b")]
        assert not await goes_over_link()  # Serve chooses
        updates.replicas["Generator"] = [one]
        assert await goes_over_link()
        link.close()
        served._generator_replicas.receiver.close()
        await asyncio.sleep(0)

    asyncio.run(scenario())
