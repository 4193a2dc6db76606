"""Which tokens of which requests the next step computes. Plain Python, no JAX, no clock, no threads.

The loop around it keeps one step ahead of the host: `schedule` makes step k + 1 while step k still runs, and `accept`
takes the sampled ids of step k afterwards. A request's counters therefore run ahead of what the host knows:
`num_computed` counts tokens of dispatched steps, `in_flight` counts sampled ids not yet read.
"""

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from mpt_serve.engine.block_pool import BlockPool
from mpt_serve.engine.request import FinishReason, Request

Drafts = Mapping[Request, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Row:
    """One request's share of a step: compute the tokens at positions [start, start + length).

    samples: ids are sampled after the last so many of its tokens: 0 for a chunk that ends inside the prompt, 1 at the
        sequence's end, 1 + len(drafts) where drafts are verified.
    token_in_flight: the row's last token is one that the host does not know yet; the device has it.
    drafts: the row's last tokens, which are guesses.
    """

    request: Request
    start: int
    length: int
    samples: int
    token_in_flight: bool
    drafts: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        """The position after its last token."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of one step; the first `num_decode` rows have one token each.

    copies: (from, to) pairs of cache blocks, to be copied before anything of the step is written.
    """

    rows: list[Row]
    num_decode: int
    copies: list[tuple[int, int]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(row.length for row in self.rows)

    @property
    def num_samples(self) -> int:
        return sum(row.samples for row in self.rows)

    @property
    def speculative(self) -> bool:
        """What the step samples decides where its rows end."""
        return any(row.drafts for row in self.rows)


class Scheduler:
    """Continuous batching in `Request.order`, with chunked prefill, shared blocks and preemption by recompute.

    Every step takes the decode rows first (one token each, and drafts where there are some), then spends the rest of
    the token budget on prefill chunks; a waiting request is admitted when the pool has blocks for all the tokens it
    has, less what is found in the pool already. When a decode row finds no free block, the last running request gives
    up its blocks and goes back to the queue with the ids it has generated; it later computes prompt and generated ids
    as if they were a prompt, as far as they are not found in the pool.

    While a choice of a prompt runs, the others wait until it has computed the prompt; then each takes over the full
    blocks and a copy of the one that is not full, and computes the prompt's last token alone. While they wait for that,
    and for nothing else, those behind them may be admitted before them. That ends soon, as the choice that computes is
    not preempted before those that overtake; and who overtakes leaves a slot and blocks for each choice that it passes,
    and no more of its own prompt than the next step computes beside them.

    Invariants, checked by `check_integrity`:
    - running and waiting requests are each in order; the first of all is never preempted, and nobody is admitted
      before one that waits for slots, blocks or tokens: whoever is accepted finishes.
    - running requests hold one slot each and blocks for all their computed tokens; waiting ones hold neither.
    - every block is free or held by running requests (see `BlockPool`).
    - a preempted request is not admitted again before its token in flight has been accepted.

    max_num_batched_tokens: above max_num_seqs (`EngineConfig` checks that), so that prompts go on whoever else runs.
    max_samples: ids that one step samples at most; drafts share what running requests leave of it.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_samples: int | None = None,
        prefix_caching: bool = True,
    ) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.num_preemptions = 0
        self._max_samples = max_num_seqs if max_samples is None else max_samples
        self._prefix_caching = prefix_caching
        # Slots are handed out lowest first, so that few requests use few slots.
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))
        self._arrivals = 0

    # The life of a request

    def fits(self, num_prompt_tokens: int, max_output: int) -> bool:
        """Whether a request can run to its end alone."""
        return self._most_blocks(num_prompt_tokens, max_output) <= self.pool.num_blocks

    def _most_blocks(self, num_prompt_tokens: int, max_output: int) -> int:
        """Blocks of a request at its end. The last generated token is never fed, hence never stored."""
        return self.pool.blocks_for(num_prompt_tokens + max(0, max_output - 1))

    def add(self, request: Request) -> None:
        """Queue a request. Raises `ValueError` when it could never finish in this pool."""
        if not self.fits(len(request.prompt_ids), request.max_output):
            raise ValueError(f"request {request.request_id} can never fit {self.pool.num_blocks} blocks")
        request.arrival = self._arrivals
        self._arrivals += 1
        insort(self.waiting, request, key=_order)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request wherever it is; its blocks and slot are free at once.

        Steps in flight may still write the freed blocks: the device executes steps in order, so a new owner's writes
        come later. Their sampled ids are dropped by `accept`.
        """
        if request.finish_reason is not None:
            return
        request.finish_reason = reason
        if request.slot is None:
            self.waiting.remove(request)
        else:
            self.running.remove(request)
            self._release(request)

    # One step

    def schedule(self, drafts: Drafts | None = None) -> StepRows:
        """Choose the next step's rows and account for them; no rows when there is nothing to compute now.

        drafts: guesses of what requests without a token in flight generate next; some may be left out.
        """
        preemptions = self.num_preemptions
        rows, verifying = self._decode_rows(drafts or {})
        step = StepRows([*rows, *verifying], len(rows))
        budget = self.max_num_batched_tokens - step.num_tokens
        for row in self._running_prefills(budget):
            step.rows.append(row)
            budget -= row.length
        # Blocks given up in this pass are for the requests that lacked them.
        if preemptions == self.num_preemptions:
            self._admit(budget, step)
        return step

    def accept(self, rows: Sequence[Row], sampled: Sequence[int]) -> list[tuple[Row, int]]:
        """Take the ids sampled by a step, those of each row after those of the row before.

        Finishes requests that hit a stop id or their length. Returns each row whose request is not over yet, or only
        now, with how many of its sampled ids were taken. Rows of requests that ended meanwhile are left out.
        """
        accepted = []
        begin = 0
        for row in rows:
            request, ids = row.request, sampled[begin : begin + row.samples]
            begin += row.samples
            request.in_flight -= bool(ids)
            if request.finish_reason is None:
                accepted.append((row, self._take(row, ids)))
        return accepted

    def _take(self, row: Row, ids: Sequence[int]) -> int:
        """Append sampled ids to the request as long as the drafts before them were right; how many."""
        request = row.request
        taken = 0
        for token, draft in zip(ids, [*row.drafts, None], strict=False):
            request.output_ids.append(token)
            taken += 1
            if token in request.stop_ids:
                break
            if len(request.output_ids) >= request.max_output or token != draft:
                break
        if row.drafts:
            request.num_computed = row.start + taken
        self._publish(request)
        if taken and request.output_ids[-1] in request.stop_ids:
            self.finish(request, "stop")
        elif row.stop >= len(request.prompt_ids) and len(request.output_ids) >= request.max_output:
            self.finish(request, "length")
        return taken

    def _decode_rows(self, drafts: Drafts) -> tuple[list[Row], list[Row]]:
        """A row for each running request that has exactly one token to compute: those without drafts, those with.

        Preempts the last for blocks.
        """
        alone: list[Row] = []
        verifying: list[Row] = []
        arriving = min(len(self.waiting), len(self._free_slots))  # samples that are not to be missed by them
        spare = min(self._max_samples, self.max_num_batched_tokens) - len(self.running) - arriving
        index = 0
        # In order; preemption takes from the end of `running`, so no request chosen here is preempted afterwards.
        while index < len(self.running):
            request = self.running[index]
            index += 1
            exhausted = request.exhausted and request.num_computed >= len(request.prompt_ids)
            if exhausted or request.num_tokens - request.num_computed != 1 or not self._grow(request):
                continue
            guesses = () if request.in_flight else self._room_for(request, drafts.get(request, ())[: max(0, spare)])
            spare -= len(guesses)
            (verifying if guesses else alone).append(self._row(request, 1, guesses))
        return alone, verifying

    def _room_for(self, request: Request, drafts: Sequence[int]) -> tuple[int, ...]:
        """As many of the drafts as the request may generate and as blocks are there for."""
        if not drafts:
            return ()
        drafts = drafts[: request.max_output - request.num_generated - 1]
        missing = self.pool.blocks_for(request.num_computed + 1 + len(drafts)) - len(request.blocks)
        # The others' next blocks come first.
        request.blocks += self.pool.allocate(max(0, min(missing, self.pool.num_free - len(self.running))))
        room = len(request.blocks) * self.pool.block_size - request.num_computed - 1
        return tuple(drafts[:room])

    def _running_prefills(self, budget: int) -> Iterator[Row]:
        for request in self.running:
            if budget == 0:
                return
            pending = request.num_tokens - request.num_computed
            if pending > 1:  # one pending token is a decode row: taken already, or exhausted
                length = min(budget, pending)
                budget -= length
                yield self._row(request, length)

    def _admit(self, budget: int, step: StepRows) -> None:
        """Add rows of waiting requests to the step, in order, but for choices whose prompt is just being computed."""
        passed = 0  # so many of those; they are the first that wait, and a free slot is kept for each
        begun = len(step.rows)
        while budget > 0 and step.num_samples < self._max_samples:
            if passed >= min(len(self.waiting), len(self._free_slots)):
                return
            request = self.waiting[passed]
            if request.in_flight:  # preempted, and its last token has not been read yet
                return
            readers = self._readers(request)
            source = next((reader for reader in readers if _has_written_prompt(reader, step.rows, begun)), None)
            if readers and source is None:
                passed += 1
                continue
            if source is None:
                found = self._found(request)
                computed = len(found) * self.pool.block_size
            else:  # all but the prompt's last token, whose logits are needed
                computed = len(request.prompt_ids) - 1
                found = source.blocks[: computed // self.pool.block_size]
            if not self._has_room(request, found, passed):
                return
            pending = request.num_tokens - computed
            # What it leaves to the next step must leave that one a token for each slot.
            if passed and pending - budget > self.max_num_batched_tokens - self.max_num_seqs:
                return
            self.waiting.pop(passed)
            self._start(request, found, computed)
            if source is not None and computed % self.pool.block_size:
                step.copies.append((source.blocks[len(found)], request.blocks[len(found)]))
            step.rows.append(self._row(request, min(budget, pending)))
            budget -= step.rows[-1].length

    def _readers(self, request: Request) -> list[Request]:
        """Running choices that have computed the prompt that the request needs, or are about to."""
        unscored = request.wants_prompt_logprobs and len(request.prompt_logprobs) < len(request.prompt_ids)
        if request.output_ids or unscored:
            return []
        return [other for other in self.running if other.siblings is request.siblings]

    def _has_room(self, request: Request, found: Sequence[int], passed: int) -> bool:
        """Whether there are blocks for a request whose first ones are found, and for what it must leave to others."""
        needed = self.pool.blocks_for(request.num_tokens) - len(found)
        # What runs and still grows will soon want a block; admitting into the last ones would preempt.
        headroom = sum(map(self._grows, self.running))
        kept = 2 * passed  # each takes one for the end of its prompt, and soon grows
        return needed + self.pool.free_among(found) + headroom + kept <= self.pool.num_free

    def _found(self, request: Request) -> list[int]:
        """Published blocks that hold the request's first tokens, but for the last one: its logits are needed."""
        most = request.num_tokens - 1
        if request.wants_prompt_logprobs:
            most = min(most, len(request.prompt_logprobs) - 1)
        if self._prefix_caching:
            request.extend_digests(request.num_known, self.pool.block_size)
        return self.pool.find(request.digests[: most // self.pool.block_size])

    def _start(self, request: Request, found: list[int], computed: int) -> None:
        """Let a request run: with the blocks found, its other blocks new, and its first tokens computed."""
        self.pool.acquire(found)
        request.blocks = [*found, *self.pool.allocate(self.pool.blocks_for(request.num_tokens) - len(found))]
        request.num_computed = computed
        request.num_published = len(found)
        if request.num_cached is None:
            request.num_cached = min(computed, len(request.prompt_ids))
        request.slot = self._free_slots.pop()
        request.state_is_set = False
        insort(self.running, request, key=_order)

    def _row(self, request: Request, length: int, drafts: tuple[int, ...] = ()) -> Row:
        """The row that computes the next `length` tokens and the drafts after them, accounted as dispatched."""
        start, stop = request.num_computed, request.num_computed + length
        samples = 1 + len(drafts) if stop == request.num_tokens and request.max_output > 0 else 0
        row = Row(
            request, start, length + len(drafts), samples, token_in_flight=stop > request.num_known, drafts=drafts
        )
        request.num_computed = row.stop
        self._publish(request)
        request.in_flight += bool(samples)
        return row

    def _publish(self, request: Request) -> None:
        """Let others find the full blocks of known ids that a dispatched step writes: later steps read them after."""
        if not self._prefix_caching or request.slot is None:
            return
        known = min(request.num_computed, request.num_known)
        full = known // self.pool.block_size
        if full > request.num_published:
            request.extend_digests(known, self.pool.block_size)
            for block, digest in zip(
                request.blocks[request.num_published : full], request.digests[request.num_published : full], strict=True
            ):
                self.pool.publish(block, digest)
            request.num_published = full

    def _grow(self, request: Request) -> bool:
        """Make room for one more token; False when `request` itself, being the last, had to give up."""
        if request.num_computed < len(request.blocks) * self.pool.block_size:
            return True
        while self.pool.num_free == 0:
            last = self.running[-1]
            self._preempt(last)
            if last is request:
                return False
        request.blocks += self.pool.allocate(1)
        return True

    def _grows(self, request: Request) -> bool:
        """Whether the request may need more blocks than it has."""
        return len(request.blocks) < self._most_blocks(len(request.prompt_ids), request.max_output)

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        request.num_computed = 0
        insort(self.waiting, request, key=_order)
        self.num_preemptions += 1

    def _release(self, request: Request) -> None:
        assert request.slot is not None
        self.pool.release(request.blocks)
        self._free_slots.append(request.slot)
        request.blocks, request.slot, request.num_published = [], None, 0

    def check_integrity(self) -> None:
        """Check the invariants of the class. Raises `AssertionError` naming the one that is broken."""
        self.pool.check_integrity(request.blocks for request in self.running)
        for queue in (self.running, self.waiting):
            if any(a.order >= b.order for a, b in pairwise(queue)):
                raise AssertionError("requests are not in order")
        slots = [request.slot for request in self.running if request.slot is not None]
        if len(slots) != len(self.running) or sorted([*self._free_slots, *slots]) != list(range(self.max_num_seqs)):
            raise AssertionError(f"slots {slots} of running requests and free slots {self._free_slots} do not add up")
        for request in self.running:
            if request.num_computed > len(request.blocks) * self.pool.block_size:
                raise AssertionError(f"{request.request_id} computed {request.num_computed} tokens without blocks")
            if not 0 <= request.num_generated <= request.max_output:
                raise AssertionError(f"{request.request_id} generates more than {request.max_output} tokens")
        for request in self.waiting:
            if request.blocks or request.slot is not None or request.num_computed:
                raise AssertionError(f"{request.request_id} waits, but holds blocks or a slot")


def _has_written_prompt(request: Request, rows: Sequence[Row], begun: int) -> bool:
    """Whether steps before this one have computed its prompt: copies come before what the step itself writes.

    Rows from `begun` on are of requests just admitted; even the blocks found for those may be written in this step.
    """
    prompt = len(request.prompt_ids)
    writing = any(row.request is request and (i >= begun or row.start < prompt) for i, row in enumerate(rows))
    return request.num_computed >= prompt and not writing


def _order(request: Request) -> tuple[int, int]:
    return request.order
