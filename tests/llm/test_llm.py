"""Batches of prompts: text in, text out, whole or as it comes, and nothing left running behind."""

import gc
import json
import os
import re
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_helpers import FreeSteps, Listener, assert_all_free, held_after, wait_idle, wait_until

from model.checkpoint.load import load_weights
from model.config.mpt_config import MptConfig
from model.layers.forward import last_hidden_states
from mpt_serve.engine import Delta, Engine, EngineClosedError, EngineConfig, RequestError, SamplingParams
from mpt_serve.errors import MptServeError
from mpt_serve.llm import LLM, Completion, Piece
from mpt_serve.structured_outputs.compiler import GrammarCompiler, LazyGrammarCompiler
from mpt_serve.structured_outputs.spec import GrammarSpec
from mpt_serve.text.chat_template import MissingChatTemplateError
from mpt_serve.text.tokenizer import TextTokenizer, TokenizerError

# Without drafts from past outputs: of requests that are equal to earlier ones, many ids would come at once.
SETTINGS = EngineConfig(
    max_num_seqs=8,
    max_num_batched_tokens=32,
    block_size=4,
    num_blocks=256,
    pre_compile=False,
    max_model_len=512,
    past_output_tokens=None,
)
END = 256  # of the tiny checkpoint, whose other ids are bytes
GREEDY = SamplingParams(max_tokens=12, temperature=0)
SAMPLED = SamplingParams(max_tokens=40, seed=4)
WRITTEN = SamplingParams(max_tokens=200, seed=1)  # long enough for any text that a grammar demands
PROMPTS = ["Once", "a prompt of words", "ünï"]


@pytest.fixture(scope="module")
def llm(tiny_checkpoint: Path) -> Iterator[LLM]:
    with LLM.from_pretrained(tiny_checkpoint, SETTINGS, eos_token_ids=[END], chat_template="dolly") as llm:
        yield llm


@pytest.fixture(scope="module")
def embedded() -> Iterator[LLM]:
    with LLM.from_pretrained("embedded", SETTINGS) as llm:
        yield llm


@pytest.fixture(scope="module")
def without_tokenizer(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in a folder without its tokenizer."""
    folder = tmp_path_factory.mktemp("ids")
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(tiny_checkpoint / name)
    return folder


def only(text: str) -> GrammarSpec:
    """Return a grammar whose only text is this one: a byte for each id, in the tiny checkpoint."""
    return GrammarSpec("choice", json.dumps([text]))


def joined(pieces: Sequence[Piece], prompt_index: int, index: int) -> tuple[str | None, tuple[int, ...]]:
    own = [piece for piece in pieces if (piece.prompt_index, piece.index) == (prompt_index, index)]
    assert [piece.finish_reason is not None for piece in own] == [False] * (len(own) - 1) + [True]
    text = None if own[0].text is None else "".join(piece.text or "" for piece in own)
    return text, tuple(token for piece in own for token in piece.token_ids)


# Embeddings


def test_embeddings_are_the_models_hidden_states(llm: LLM, tiny_checkpoint: Path) -> None:
    config = MptConfig.from_file(tiny_checkpoint)
    weights = load_weights(tiny_checkpoint, config, dtype=np.float32)
    prompts = [*PROMPTS, [79, 110, 99, 101]]
    of_tokens = llm.embed(prompts, pooling="none")
    means, ends = llm.embed(prompts), llm.embed(prompts, pooling="last", normalize=False)
    assert (llm.embed(PROMPTS[1])[0].values == means[1].values).all()
    for prompt, own, mean, end in zip(prompts, of_tokens, means, ends, strict=True):
        ids = llm.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt  # type: ignore[union-attr]
        assert own.prompt_ids == mean.prompt_ids == end.prompt_ids == tuple(ids)
        expected = np.asarray(last_hidden_states(weights, config, np.array([ids])))[0]  # type: ignore[arg-type]
        np.testing.assert_allclose(own.values, expected, atol=1e-4)
        assert own.values.dtype == mean.values.dtype == np.float32
        assert (end.values == own.values[-1]).all()
        pooled = expected.mean(axis=0)
        np.testing.assert_allclose(mean.values, pooled / np.linalg.norm(pooled), atol=1e-4)
    assert llm.embed([]) == []
    assert_all_free(llm.engine)


def test_what_cannot_be_embedded_is_refused_before_the_first_runs(llm: LLM) -> None:
    steps = wait_idle(llm.engine).steps
    with pytest.raises(RequestError, match="the prompt is empty") as refusal:
        llm.embed(["Once", ""])
    assert refusal.value.__notes__ == ["This is about prompts[1]."]
    with pytest.raises(RequestError, match="pooling must be one of 'mean', 'last', 'none', got 'max'"):
        llm.embed("Once", pooling="max")  # type: ignore[arg-type]
    assert wait_idle(llm.engine).steps == steps


def test_embeddings_of_an_engine_that_is_closed_or_broken(tiny_checkpoint: Path) -> None:
    with LLM.from_pretrained(tiny_checkpoint, SETTINGS) as closed:
        params = SamplingParams(max_tokens=400, ignore_eos=True)
        closed.engine.submit([79], params, lambda delta: closed.engine.close())

        def embed_for_ever() -> None:
            while True:
                closed.embed(PROMPTS)

        with pytest.raises(EngineClosedError):
            embed_for_ever()
    config = MptConfig.from_file(tiny_checkpoint)
    weights = load_weights(tiny_checkpoint, config, dtype=np.float32)
    norm = replace(weights.norm_f, weight=weights.norm_f.weight * np.nan)
    with Engine(replace(weights, norm_f=norm), config, SETTINGS) as engine:
        with pytest.raises(MptServeError, match="hidden states"):
            LLM(engine).embed([[79, 110]])
        assert_all_free(engine)


# Prompts and outputs


def test_text_and_ids_are_the_same_prompt(llm: LLM) -> None:
    tokenizer = llm.tokenizer
    assert tokenizer is not None
    ids = [tokenizer.encode(prompt) for prompt in PROMPTS]
    from_text, from_ids = llm.generate(PROMPTS, GREEDY), llm.generate(ids, GREEDY)
    assert from_text == from_ids
    for prompt, completion in zip(ids, from_text, strict=True):
        assert completion.prompt_ids == tuple(prompt)
        assert completion.num_prompt_tokens == len(prompt)
        assert completion.num_generated_tokens == len(completion.token_ids) == 12
        assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("prompt", ["Once", [79, 110], (79, 110), np.array([79, 110], np.int32)], ids=repr)
def test_one_prompt_is_a_batch_of_one(llm: LLM, prompt: str | Sequence[int]) -> None:
    assert llm.generate(prompt, GREEDY) == llm.generate([prompt], GREEDY)


def test_a_batch_may_be_an_array_and_may_be_empty(llm: LLM) -> None:
    rows = np.array([[79, 110], [80, 111]])
    assert llm.generate(rows, GREEDY) == llm.generate(rows.tolist(), GREEDY)  # type: ignore[call-overload]
    assert llm.generate([]) == []
    assert list(llm.generate([], stream=True)) == []


def test_a_completion_says_all_about_its_choices(llm: LLM) -> None:
    params = replace(SAMPLED, n=3, choice_index=5, logprobs=2, prompt_logprobs=1)
    (completion,) = llm.generate("a prompt of words", params)
    assert [choice.index for choice in completion.choices] == [5, 6, 7]
    assert len({choice.token_ids for choice in completion.choices}) == 3
    for choice in completion.choices:
        assert choice.logprobs is not None
        assert len(choice.logprobs) == len(choice.token_ids) == 40
        assert {len(entry.top) for entry in choice.logprobs} == {2}
        (alone,) = llm.generate("a prompt of words", replace(params, n=1, choice_index=choice.index))
        assert alone.choices[0].token_ids == choice.token_ids
    assert completion.num_generated_tokens == 120
    assert completion.prompt_logprobs is not None
    assert completion.prompt_logprobs[0] is None
    assert len(completion.prompt_logprobs) == len(completion.prompt_ids)
    assert completion.text == completion.choices[0].text
    (plain,) = llm.generate("a prompt of words", GREEDY)
    assert (plain.prompt_logprobs, plain.choices[0].logprobs) == (None, None)


def test_the_cached_part_of_a_prompt_is_reported_and_changes_nothing(llm: LLM) -> None:
    prompt = "read before, and read again"
    (first,), (second,) = llm.generate(prompt, GREEDY), llm.generate(prompt, GREEDY)
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 24)
    assert first == second


def test_a_shared_seed_gives_equal_prompts_equal_outputs(llm: LLM) -> None:
    a, b = llm.generate(["Once"] * 2, SAMPLED)
    assert a == b
    a, b = llm.generate(["Once"] * 2, [SAMPLED, replace(SAMPLED, seed=5)])
    assert a != b
    a, b = llm.generate(["Once"] * 2, replace(SAMPLED, seed=None))
    assert a != b


def test_the_id_that_ends_an_output_is_not_part_of_its_text(llm: LLM) -> None:
    (free,) = llm.generate("Once", GREEDY)
    stop = free.token_ids[4]
    first = free.token_ids.index(stop)
    (stopped,) = llm.generate("Once", replace(GREEDY, stop_token_ids=(stop,)))
    assert stopped.token_ids == free.token_ids[: first + 1]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
    assert stopped.text == llm.tokenizer.decode(free.token_ids[:first])  # type: ignore[union-attr]


# Pieces


@pytest.mark.parametrize("stop", [(), ("e", "\ufffd\ufffd")], ids=["free", "stopped"])
@pytest.mark.parametrize("n", [1, 3])
def test_pieces_joined_are_the_completions(llm: LLM, n: int, stop: Sequence[str]) -> None:
    params = replace(SAMPLED, n=n, logprobs=0, prompt_logprobs=0)
    pieces = list(llm.generate(PROMPTS, params, stop=stop, stream=True))
    assert_all_free(llm.engine)
    completions = llm.generate(PROMPTS, params, stop=stop)
    for i, completion in enumerate(completions):
        for choice in completion.choices:
            assert joined(pieces, i, choice.index) == (choice.text, choice.token_ids)
        assert Completion.of(completion.prompt_ids, [p for p in pieces if p.prompt_index == i]) == completion
    assert len(pieces) > 10 * n


def test_pieces_come_while_others_are_generated(llm: LLM) -> None:
    stream = llm.generate("Once", replace(GREEDY, max_tokens=400), stream=True)
    with held_after(llm.engine, turns=20):
        assert next(stream).finish_reason is None
        assert llm.engine.stats().running == 1
        stream.close()
    assert_all_free(llm.engine)


def test_leaving_a_stream_cancels_what_is_left(llm: LLM) -> None:
    for piece in llm.generate(PROMPTS * 4, replace(GREEDY, max_tokens=400), stream=True):
        if piece.prompt_index == 1:
            break
    assert_all_free(llm.engine)


def test_a_stream_that_nobody_reads_never_begins(llm: LLM) -> None:
    before = wait_idle(llm.engine)
    stream = llm.generate(PROMPTS, GREEDY, stream=True)
    with pytest.raises(RequestError, match="empty"):
        llm.generate([[]], GREEDY, stream=True)  # refused at once
    stream.close()
    assert llm.engine.stats() == before


# Stop strings


@pytest.mark.parametrize(
    ("stop", "text", "found"),
    [
        ("STOP", "naïve café 🎉 ", "STOP"),
        (["fé"], "naïve ca", "fé"),
        (["café 🎉", "🎉 STO"], "naïve ", "café 🎉"),
        (["🎉"], "naïve café ", "🎉"),
        (["STOPS", "café!"], "naïve café 🎉 STOP, end", None),
        (["end"], "naïve café 🎉 STOP, ", "end"),
    ],
    ids=str,
)
def test_stop_strings_end_an_output_across_ids_and_characters(
    llm: LLM, stop: str | list[str], text: str, found: str | None
) -> None:
    params, written = replace(WRITTEN, logprobs=0), only("naïve café 🎉 STOP, end")
    cancelled = wait_idle(llm.engine).finished["cancelled"]
    pieces = list(llm.generate("Say it: ", params, structured_outputs=written, stop=stop, stream=True))
    (completion,) = llm.generate("Say it: ", params, structured_outputs=written, stop=stop)
    assert_all_free(llm.engine)
    assert joined(pieces, 0, 0)[0] == completion.text == text
    assert (completion.finish_reason, completion.stop_reason) == ("stop", found or END)
    # Up to the id that completes the string, and no further.
    assert wait_idle(llm.engine).finished["cancelled"] == cancelled
    ids = list((text + found).encode()) if found else [*text.encode(), END]
    assert len(completion.token_ids) == len(completion.choices[0].logprobs or ()) == len(ids)


def test_stop_strings_are_found_in_what_speculation_brings_at_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = llm.engine._drafter
    assert drafter is not None
    monkeypatch.setattr(drafter, "_costs", FreeSteps(drafter._costs.sizes))
    before = llm.engine.stats().accepted_tokens
    (completion,) = llm.generate("abcdefgh" * 6, WRITTEN, structured_outputs=only("abcdefgh" * 20 + "!"), stop="h!")
    assert llm.engine.stats().accepted_tokens > before
    assert completion.text == "abcdefgh" * 19 + "abcdefg"
    assert len(completion.token_ids) == 161
    assert_all_free(llm.engine)


def test_a_stop_string_ends_one_choice_and_not_the_others(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is held until the reader has found the string the first time."""
    found, cancel = threading.Event(), llm.engine.cancel

    def cancel_noted(*arguments: Any) -> None:
        cancel(*arguments)
        found.set()

    params = replace(SAMPLED, n=6)
    free = [choice.text or "" for choice in llm.generate("Once", params)[0].choices]
    counts = {char: sum(char in text for text in free) for char in "".join(text[:20] for text in free)}
    stop = next(char for char, count in counts.items() if 2 <= count <= 4 and char != "\ufffd")
    before = wait_idle(llm.engine)
    monkeypatch.setattr(llm.engine, "cancel", cancel_noted)
    turns = 10 + min(text.index(stop) for text in free if stop in text)
    with held_after(llm.engine, turns, until=found.is_set):
        (completion,) = llm.generate("Once", params, stop=[stop])
    for text, choice in zip(free, completion.choices, strict=True):
        assert choice.text == text.split(stop)[0]
        assert (choice.finish_reason, choice.stop_reason) == (("stop", stop) if stop in text else ("length", None))
    after = wait_idle(llm.engine)
    assert 0 < after.finished["stop"] - before.finished["stop"] <= counts[stop]
    assert after.finished["length"] - before.finished["length"] >= 6 - counts[stop]
    assert after.finished["cancelled"] == before.finished["cancelled"]
    assert_all_free(llm.engine)


def test_the_text_of_the_first_min_tokens_ends_nothing(llm: LLM) -> None:
    params = replace(WRITTEN, min_tokens=6)
    (completion,) = llm.generate("Say it: ", params, structured_outputs=only("one, two, three"), stop=[","])
    assert completion.text == "one, two"


# What is refused


@pytest.mark.parametrize(
    ("prompts", "params", "stop", "message"),
    [
        (["fine", []], GREEDY, (), "the prompt is empty"),
        (["fine", [90, 257]], GREEDY, (), "token id 257 is not in the vocabulary"),
        (["fine", "x" * 512], GREEDY, (), "context length of 512"),
        (["fine", b"bytes"], GREEDY, (), "must be a string or a sequence of token ids, not bytes"),
        (b"bytes", GREEDY, (), "not bytes"),
        (["fine", 5], GREEDY, (), "not int"),
        (["fine", ["a"]], GREEDY, (), "integer token ids"),
        (["fine", "fine"], [GREEDY], (), "one for each of 2 prompts, got 1"),
        ("fine", GREEDY, "", "none of them empty"),
        ("fine", GREEDY, ["a", ""], "none of them empty"),
        ("fine", GREEDY, [5], "a string or a list of strings"),
    ],
)
def test_nothing_runs_where_anything_is_refused(
    llm: LLM, prompts: object, params: object, stop: object, message: str
) -> None:
    before = wait_idle(llm.engine)
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts, params, stop=stop)  # type: ignore[call-overload]
    assert llm.engine.stats() == before


def test_the_refusal_of_a_batch_names_the_prompt(llm: LLM) -> None:
    with pytest.raises(RequestError, match="empty") as refusal:
        llm.generate(["fine", "fine", []], GREEDY)
    assert refusal.value.__notes__ == ["This is about prompts[2]."]


@pytest.mark.parametrize(
    ("specs", "params", "message"),
    [
        ([None, GrammarSpec("regex", "(")], GREEDY, "the regex cannot be used"),
        (GrammarSpec("json_schema", "["), GREEDY, "the JSON schema cannot be used"),
        ([None], GREEDY, "structured_outputs must be one GrammarSpec or one for each of 2 prompts, got 1"),
        (GrammarSpec("json_object"), replace(GREEDY, ignore_eos=True), "ignore_eos must be false with a grammar"),
    ],
)
def test_nothing_runs_where_a_grammar_is_refused(
    llm: LLM, specs: GrammarSpec | list[GrammarSpec | None], params: SamplingParams, message: str
) -> None:
    before = wait_idle(llm.engine)
    with pytest.raises(RequestError, match=message):
        llm.generate(["fine", "fine"], params, structured_outputs=specs)
    assert llm.engine.stats() == before


def test_without_a_tokenizer_there_are_only_ids(without_tokenizer: Path) -> None:
    with LLM.from_pretrained(without_tokenizer, SETTINGS) as llm:
        assert llm.tokenizer is None
        (completion,) = llm.generate([1, 2, 3], GREEDY)
        assert (completion.text, len(completion.token_ids)) == (None, 12)
        assert {piece.text for piece in llm.generate([1, 2, 3], GREEDY, stream=True)} == {None}
        refused = "needs a tokenizer, and this model has none"
        with pytest.raises(RequestError, match="a prompt of text " + refused):
            llm.generate("text", GREEDY)
        with pytest.raises(RequestError, match="a stop string " + refused):
            llm.generate([1], GREEDY, stop="x")
        with pytest.raises(RequestError, match="a conversation " + refused):
            llm.chat([{"role": "user", "content": "Hi"}])
        with pytest.raises(RequestError, match="a grammar " + refused):
            llm.generate([1], GREEDY, structured_outputs=GrammarSpec("json_object"))
        assert_all_free(llm.engine)


def test_a_checkpoint_without_a_tokenizer_takes_one_or_works_with_ids(
    llm: LLM, tiny_checkpoint: Path, without_tokenizer: Path, tmp_path: Path
) -> None:
    expected = llm.generate("Once", GREEDY)
    with LLM.from_pretrained(without_tokenizer, SETTINGS) as ids:
        assert (ids.tokenizer, ids.engine.vocab_limit) == (None, 320)
        (completion,) = ids.generate(expected[0].prompt_ids, GREEDY)
        assert completion.text is None
    tokenizer = TextTokenizer.from_folder(tiny_checkpoint)
    with LLM.from_pretrained(without_tokenizer, SETTINGS, tokenizer=tokenizer) as other:
        assert (other.tokenizer, other.engine.vocab_limit) == (tokenizer, 257)
        assert other.generate("Once", GREEDY) == expected
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny_checkpoint / name)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot be read"):
        LLM.from_pretrained(tmp_path, SETTINGS)


# How it ends


@pytest.fixture
def _no_collections() -> Iterator[None]:
    """Collect no garbage meanwhile: an interrupt that comes while a callback of the collector runs is lost."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collections")
def test_an_interrupt_cancels_the_batch(llm: LLM) -> None:
    before = llm.engine.stats().generated_tokens

    def interrupt() -> None:
        wait_until(lambda: llm.engine.stats().generated_tokens > before)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS * 40, replace(GREEDY, max_tokens=480, ignore_eos=True))
    thread.join()
    assert_all_free(llm.engine)
    assert llm.generate("Once", GREEDY)[0].finish_reason == "length"


@pytest.mark.parametrize("progress", [False, True])
def test_an_interrupt_between_two_pieces_cancels_the_batch(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, progress: bool
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Completion, "of", interrupt)
    before = wait_idle(llm.engine).finished["cancelled"]
    params = [replace(GREEDY, max_tokens=1), *[replace(GREEDY, max_tokens=480, ignore_eos=True)] * 3]
    # The traceback of the interrupt is held, as `sys.last_exc` holds it.
    with held_after(llm.engine, turns=20), pytest.raises(KeyboardInterrupt) as interrupted:
        llm.generate(["Once"] * 4, params, progress=progress)
    assert wait_idle(llm.engine).finished["cancelled"] == before + 3
    assert interrupted.traceback


def test_an_engine_that_fails_meanwhile_raises(without_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*step: object) -> None:
        raise RuntimeError("out of device memory")

    with LLM.from_pretrained(without_tokenizer, SETTINGS) as llm:
        monkeypatch.setattr(llm.engine._runner, "step", fail)
        with pytest.raises(EngineClosedError, match="a step failed"):
            llm.generate([[1, 2], [3]], GREEDY)
        assert_all_free(llm.engine)


def test_a_request_that_fails_alone_says_so(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpt_serve.engine.token_masks.TokenMasks.fill", lambda *_: 1 / 0)
    failed, fine = llm.generate(["Once"] * 2, [WRITTEN, GREEDY], structured_outputs=[only("yes"), None])
    assert (failed.finish_reason, failed.text, fine.finish_reason) == ("error", "", "length")
    assert "failed to compute the allowed tokens" in (failed.choices[0].error or "")
    assert_all_free(llm.engine)


def test_closing_the_engine_ends_a_batch(tiny_checkpoint: Path) -> None:
    with LLM.from_pretrained(tiny_checkpoint, SETTINGS) as llm:
        stream = llm.generate(PROMPTS, replace(GREEDY, max_tokens=400), stream=True)
        with held_after(llm.engine, turns=20, until=lambda: llm.engine._closed):
            next(stream)
            llm.close()
        assert [piece.finish_reason for piece in stream if piece.finish_reason] == ["cancelled"] * 3
        with pytest.raises(EngineClosedError, match="closed"):
            llm.generate("Once", GREEDY)


def test_one_choice_can_be_cancelled(llm: LLM) -> None:
    params = replace(SAMPLED, n=3)
    expected = [choice.token_ids for choice in llm.generate("Once", params)[0].choices]
    seen: defaultdict[int, list[int]] = defaultdict(list)
    ended = threading.Event()

    def listen(delta: Delta) -> None:
        seen[delta.index] += delta.token_ids
        if delta.index == 0 and len(seen[0]) >= 3:
            llm.engine.cancel("three", 0)
        if len(listener.deltas) and sum(d.finish_reason is not None for d in listener.deltas) == 3:
            ended.set()

    listener = Listener(listen)
    llm.engine.submit(llm.tokenizer.encode("Once"), params, listener, "three")  # type: ignore[union-attr]
    assert ended.wait(60)
    assert {d.index: d.finish_reason for d in listener.deltas if d.finish_reason} == {
        0: "cancelled",
        1: "length",
        2: "length",
    }
    assert tuple(seen[0]) == expected[0][: len(seen[0])]
    assert [tuple(seen[1]), tuple(seen[2])] == expected[1:]
    assert_all_free(llm.engine)


# Structured outputs


def test_the_compiler_is_made_with_the_first_grammar_and_closed_with_the_llm(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[GrammarCompiler] = []
    closed: list[GrammarCompiler] = []
    construct, close = GrammarCompiler.__init__, GrammarCompiler.close
    monkeypatch.setattr(
        GrammarCompiler, "__init__", lambda self, *given: (made.append(self), construct(self, *given))[1]
    )
    monkeypatch.setattr(GrammarCompiler, "close", lambda self: (closed.append(self), close(self))[1])
    with LLM.from_pretrained(tiny_checkpoint, SETTINGS, eos_token_ids=[END]) as llm:
        llm.generate("Once", GREEDY)
        assert made == []
        completions = llm.generate(["Say: "] * 2, WRITTEN, structured_outputs=[only("yes"), only("no")])
        assert [completion.text for completion in completions] == ["yes", "no"]
        assert len(made) == 1
    assert closed == made


def test_each_prompt_compiles_its_grammar_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[GrammarSpec] = []
    compile = GrammarCompiler.compile
    monkeypatch.setattr(GrammarCompiler, "compile", lambda self, spec: compiled.append(spec) or compile(self, spec))
    llm.generate(["a", "b"], WRITTEN, structured_outputs=only("yes"))
    assert compiled == [only("yes")] * 2
    with pytest.raises(RequestError, match="the regex cannot be used"):
        llm.generate("a", WRITTEN, structured_outputs=GrammarSpec("regex", "("))
    assert len(compiled) == 2


def test_a_vocabulary_without_an_end_refuses_grammars(tiny_checkpoint: Path) -> None:
    with (
        LLM.from_pretrained(tiny_checkpoint, SETTINGS, eos_token_ids=[300]) as llm,
        pytest.raises(RequestError, match="structured outputs need an end-of-sequence id below 257"),
    ):
        llm.generate("Once", WRITTEN, structured_outputs=only("yes"))
    LazyGrammarCompiler(lambda: pytest.fail("there was no grammar")).close()


# Progress


@pytest.mark.parametrize(
    ("terminal", "prompts", "progress", "stream", "shown"),
    [
        (True, 3, None, False, True),
        (True, 1, None, False, False),
        (True, 3, None, True, False),
        (True, 3, False, False, False),
        (False, 3, None, False, False),
        (False, 1, True, False, True),
        (False, 3, True, True, True),
    ],
)
def test_the_bar_shows_for_batches_on_a_terminal_or_when_asked_for(
    llm: LLM,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    prompts: int,
    progress: bool | None,
    stream: bool,
    shown: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    asked = llm.generate(["Once"] * prompts, replace(GREEDY, n=2), progress=progress, stream=stream)  # type: ignore[call-overload]
    assert len(list(asked)) >= prompts
    bar = capsys.readouterr().err
    assert bool(re.search(rf"Generating: 100%.* {prompts}/{prompts} .*tokens/s", bar)) == bool(bar) == shown


# The model in the package


def test_chats_are_written_as_the_template_says(embedded: LLM, llm: LLM) -> None:
    conversation = [{"role": "user", "content": "Tell me a story about a fox."}]
    prompt = "<|im_start|>user\nTell me a story about a fox.<|im_end|>\n<|im_start|>assistant\n"
    (completion,) = embedded.chat(conversation, GREEDY)
    assert completion.prompt_ids == tuple(embedded.tokenizer.encode(prompt))  # type: ignore[union-attr]
    assert embedded.generate(prompt, GREEDY) == [completion]
    assert embedded.chat([conversation] * 2, GREEDY) == [completion] * 2
    assert joined(list(embedded.chat(conversation, GREEDY, stream=True)), 0, 0) == (
        completion.text,
        completion.token_ids,
    )
    (instructed,) = llm.chat(conversation, GREEDY)
    decoded = llm.tokenizer.decode(instructed.prompt_ids)  # type: ignore[union-attr]
    assert decoded.endswith("Tell me a story about a fox.\n\n### Response:\n")
    assert embedded.chat([]) == []


def test_a_checkpoint_without_a_template_cannot_chat(tiny_checkpoint: Path) -> None:
    with (
        LLM.from_pretrained(tiny_checkpoint, SETTINGS) as llm,
        pytest.raises(MissingChatTemplateError, match="chat_template to 'chatml'"),
    ):
        llm.chat([{"role": "user", "content": "Hi"}])


def test_grammars_over_a_whole_vocabulary(embedded: LLM) -> None:
    params, spec = SamplingParams(max_tokens=40, seed=2, n=3), GrammarSpec("regex", "(yes|no), [a-z]{3,6}!")
    (completion,) = embedded.generate("Is the sky blue? ", params, structured_outputs=spec)
    for choice in completion.choices:
        assert choice.finish_reason == "stop"
        assert re.fullmatch("(yes|no), [a-z]{3,6}!", choice.text or "")


def test_the_examples_of_the_documentation_run(capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[2] / "docs" / "library.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    assert len(examples) == 7
    names: dict[str, object] = {}
    printed = []
    for example in examples:
        exec(compile(example, "docs/library.md", "exec"), names)
        printed.append(capsys.readouterr().out)
    names["llm"].close()  # type: ignore[attr-defined]
    assert printed[0].count(" length 20\n") == 2
    assert len(printed[1].splitlines()) == 3
    assert re.fullmatch(r"-?0\.\d+ -?0\.\d+\n\((\d+), \d+\) \1\n", printed[2])
    assert printed[3].strip()
    assert re.fullmatch(r"(yes|no), [a-z]{3,8}\.\n", printed[4])
    assert printed[5].splitlines()[-1].endswith(" length")
    assert len(printed[6]) > 20
