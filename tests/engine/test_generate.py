"""Batches over the engine: text in, text out, whole or while it comes, and nothing left running behind."""

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

import numpy as np
import pytest
from small_engine import VOCAB_LIMIT
from test_engine import Listener, assert_all_free, lazy_engine, wait_idle, wait_until

from mpt_serve.engine import (
    Completion,
    Delta,
    Engine,
    EngineClosedError,
    EngineConfig,
    Piece,
    RequestError,
    SamplingParams,
)
from mpt_serve.structured_outputs.compiler import GrammarCompiler, LazyGrammarCompiler
from mpt_serve.structured_outputs.spec import GrammarSpec
from mpt_serve.text.chat_template import MissingChatTemplateError
from mpt_serve.text.tokenizer import TextTokenizer, TokenizerError

__all__ = ["lazy_engine"]  # a fixture

TEXT_SETTINGS = EngineConfig(
    max_num_seqs=8, max_num_batched_tokens=32, block_size=4, num_blocks=256, pre_compile=False, max_model_len=512
)
END = 256  # of the tiny checkpoint, whose other ids are bytes
GREEDY = SamplingParams(max_tokens=12, temperature=0)
SAMPLED = SamplingParams(max_tokens=40, seed=4)
PROMPTS = ["Once", "a prompt of words", "ünï"]


@pytest.fixture(scope="module")
def text_engine(tiny_checkpoint: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_checkpoint, TEXT_SETTINGS, eos_token_ids=[END], chat_template="dolly") as engine:
        yield engine


@pytest.fixture(scope="module")
def embedded() -> Iterator[Engine]:
    with Engine.from_pretrained("embedded", TEXT_SETTINGS) as engine:
        yield engine


def saying(text: str, **wishes: object) -> SamplingParams:
    """Parameters of an answer that must be this text, a byte for each id, as the tiny checkpoint has them."""
    own: dict[str, object] = {"max_tokens": 200, "seed": 1, "guide": GrammarSpec("choice", json.dumps([text]))} | wishes
    return SamplingParams(**own)  # type: ignore[arg-type]


def joined(pieces: Sequence[Piece], prompt_index: int, index: int) -> tuple[str | None, tuple[int, ...]]:
    own = [piece for piece in pieces if (piece.prompt_index, piece.index) == (prompt_index, index)]
    assert [piece.finish_reason is not None for piece in own] == [False] * (len(own) - 1) + [True]
    text = None if own[0].text is None else "".join(piece.text or "" for piece in own)
    return text, tuple(token for piece in own for token in piece.token_ids)


# Prompts and answers


def test_text_and_ids_are_the_same_prompt(text_engine: Engine) -> None:
    tokenizer = text_engine.tokenizer
    assert tokenizer is not None
    ids = [tokenizer.encode(prompt) for prompt in PROMPTS]
    from_text, from_ids = text_engine.generate(PROMPTS, GREEDY), text_engine.generate(ids, GREEDY)
    assert from_text == from_ids
    for prompt, completion in zip(ids, from_text, strict=True):
        assert completion.prompt_ids == tuple(prompt)
        assert completion.num_prompt_tokens == len(prompt)
        assert completion.num_generated_tokens == len(completion.token_ids) == 12
        assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("prompt", ["Once", [79, 110], (79, 110), np.array([79, 110], np.int32)], ids=repr)
def test_one_prompt_is_a_batch_of_one(text_engine: Engine, prompt: str | Sequence[int]) -> None:
    assert text_engine.generate(prompt, GREEDY) == text_engine.generate([prompt], GREEDY)


def test_a_batch_may_be_an_array_and_may_be_empty(text_engine: Engine) -> None:
    rows = np.array([[79, 110], [80, 111]])
    assert text_engine.generate(rows, GREEDY) == text_engine.generate(rows.tolist(), GREEDY)  # type: ignore[call-overload]
    assert text_engine.generate([]) == []
    assert list(text_engine.generate([], stream=True)) == []


def test_a_completion_says_all_about_its_choices(text_engine: Engine) -> None:
    params = replace(SAMPLED, n=3, choice_index=5, logprobs=2, prompt_logprobs=1)
    (completion,) = text_engine.generate("a prompt of words", params)
    assert [choice.index for choice in completion.choices] == [5, 6, 7]
    assert len({choice.token_ids for choice in completion.choices}) == 3
    for choice in completion.choices:
        assert choice.logprobs is not None
        assert len(choice.logprobs) == len(choice.token_ids) == 40
        assert {len(entry.top) for entry in choice.logprobs} == {2}
        (alone,) = text_engine.generate("a prompt of words", replace(params, n=1, choice_index=choice.index))
        assert alone.choices[0].token_ids == choice.token_ids
    assert completion.num_generated_tokens == 120
    assert completion.prompt_logprobs is not None
    assert completion.prompt_logprobs[0] is None
    assert len(completion.prompt_logprobs) == len(completion.prompt_ids)
    assert completion.text == completion.choices[0].text
    (plain,) = text_engine.generate("a prompt of words", GREEDY)
    assert (plain.prompt_logprobs, plain.choices[0].logprobs) == (None, None)


def test_the_cached_part_of_a_prompt_is_told_and_changes_nothing(text_engine: Engine) -> None:
    prompt = "told before, and told again"
    (first,), (second,) = text_engine.generate(prompt, GREEDY), text_engine.generate(prompt, GREEDY)
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 24)
    assert first == second


def test_a_shared_seed_gives_equal_prompts_equal_answers(text_engine: Engine) -> None:
    a, b = text_engine.generate(["Once"] * 2, SAMPLED)
    assert a == b
    a, b = text_engine.generate(["Once"] * 2, [SAMPLED, replace(SAMPLED, seed=5)])
    assert a != b
    a, b = text_engine.generate(["Once"] * 2, replace(SAMPLED, seed=None))
    assert a != b


def test_the_id_that_ends_an_answer_is_not_part_of_its_text(text_engine: Engine) -> None:
    (free,) = text_engine.generate("Once", GREEDY)
    stop = free.token_ids[4]
    first = free.token_ids.index(stop)
    (stopped,) = text_engine.generate("Once", replace(GREEDY, stop_token_ids=(stop,)))
    assert stopped.token_ids == free.token_ids[: first + 1]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
    assert stopped.text == text_engine.tokenizer.decode(free.token_ids[:first])  # type: ignore[union-attr]


# Pieces


@pytest.mark.parametrize("stop", [(), ("e", "\ufffd\ufffd")], ids=["free", "stopped"])
@pytest.mark.parametrize("n", [1, 3])
def test_pieces_joined_are_the_completions(text_engine: Engine, n: int, stop: Sequence[str]) -> None:
    params = replace(SAMPLED, n=n, logprobs=0, prompt_logprobs=0)
    pieces = list(text_engine.generate(PROMPTS, params, stop=stop, stream=True))
    assert_all_free(text_engine)
    completions = text_engine.generate(PROMPTS, params, stop=stop)
    for i, completion in enumerate(completions):
        for choice in completion.choices:
            assert joined(pieces, i, choice.index) == (choice.text, choice.token_ids)
        assert Completion.of(completion.prompt_ids, [p for p in pieces if p.prompt_index == i]) == completion
    assert len(pieces) > 10 * n


def test_pieces_come_while_others_are_generated(text_engine: Engine) -> None:
    stream = text_engine.generate("Once", replace(GREEDY, max_tokens=400), stream=True)
    assert next(stream).finish_reason is None
    assert text_engine.stats().running == 1
    stream.close()
    assert_all_free(text_engine)


def test_leaving_a_stream_cancels_what_is_left(text_engine: Engine) -> None:
    for piece in text_engine.generate(PROMPTS * 4, replace(GREEDY, max_tokens=400), stream=True):
        if piece.prompt_index == 1:
            break
    assert_all_free(text_engine)


def test_a_stream_that_nobody_reads_never_begins(text_engine: Engine) -> None:
    before = wait_idle(text_engine)
    stream = text_engine.generate(PROMPTS, GREEDY, stream=True)
    with pytest.raises(RequestError, match="empty"):
        text_engine.generate([[]], GREEDY, stream=True)  # refused at once
    stream.close()
    assert text_engine.stats() == before


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
def test_stop_strings_end_an_answer_across_ids_and_characters(
    text_engine: Engine, stop: str | list[str], text: str, found: str | None
) -> None:
    params = saying("naïve café 🎉 STOP, end", logprobs=0)
    cancelled = wait_idle(text_engine).finished["cancelled"]
    pieces = list(text_engine.generate("Say it: ", params, stop=stop, stream=True))
    (completion,) = text_engine.generate("Say it: ", params, stop=stop)
    assert_all_free(text_engine)
    assert joined(pieces, 0, 0)[0] == completion.text == text
    assert (completion.finish_reason, completion.stop_reason) == ("stop", found or END)
    # Up to the id that completes the string, and no further.
    assert wait_idle(text_engine).finished["cancelled"] == cancelled
    ids = list((text + found).encode()) if found else [*text.encode(), END]
    assert len(completion.token_ids) == len(completion.choices[0].logprobs or ()) == len(ids)


def test_stop_strings_are_found_in_what_speculation_brings_at_once(text_engine: Engine) -> None:
    before = text_engine.stats().accepted_tokens
    (completion,) = text_engine.generate("abcdefgh" * 6, saying("abcdefgh" * 20 + "!"), stop="h!")
    assert text_engine.stats().accepted_tokens > before
    assert completion.text == "abcdefgh" * 19 + "abcdefg"
    assert len(completion.token_ids) == 161
    assert_all_free(text_engine)


def test_a_stop_string_ends_one_choice_and_not_the_others(text_engine: Engine) -> None:
    params = replace(SAMPLED, n=6)
    free = [choice.text or "" for choice in text_engine.generate("Once", params)[0].choices]
    counts = {char: sum(char in text for text in free) for char in "".join(free)}
    stop = next(char for char, count in counts.items() if 2 <= count <= 4 and char != "\ufffd")
    before = wait_idle(text_engine)
    (completion,) = text_engine.generate("Once", params, stop=[stop])
    for text, choice in zip(free, completion.choices, strict=True):
        assert choice.text == text.split(stop)[0]
        assert (choice.finish_reason, choice.stop_reason) == (("stop", stop) if stop in text else ("length", None))
    after = wait_idle(text_engine)
    assert 0 < after.finished["stop"] - before.finished["stop"] <= counts[stop]
    assert after.finished["length"] - before.finished["length"] >= 6 - counts[stop]
    assert after.finished["cancelled"] == before.finished["cancelled"]
    assert_all_free(text_engine)


def test_the_text_of_the_first_min_tokens_ends_nothing(text_engine: Engine) -> None:
    (completion,) = text_engine.generate("Say it: ", saying("one, two, three", min_tokens=6), stop=[","])
    assert completion.text == "one, two"


# What is refused


@pytest.mark.parametrize(
    ("prompts", "params", "stop", "message"),
    [
        (["fine", []], GREEDY, (), "the prompt is empty"),
        (["fine", [VOCAB_LIMIT, 257]], GREEDY, (), "token id 257 is not in the vocabulary"),
        (["fine", "x" * 512], GREEDY, (), "context length of 512"),
        (["fine", b"bytes"], GREEDY, (), "must be a string or a sequence of token ids, not bytes"),
        (b"bytes", GREEDY, (), "not bytes"),
        (["fine", 5], GREEDY, (), "not int"),
        (["fine", ["a"]], GREEDY, (), "integer token ids"),
        (["fine", "fine"], [GREEDY], (), "one for each of 2, got 1"),
        (["fine", "fine"], [GREEDY, replace(GREEDY, guide=GrammarSpec("regex", "("))], (), "the regex cannot be used"),
        ("fine", GREEDY, "", "none of them empty"),
        ("fine", GREEDY, ["a", ""], "none of them empty"),
        ("fine", GREEDY, [5], "a string or a list of strings"),
    ],
)
def test_nothing_runs_where_anything_is_refused(
    text_engine: Engine, prompts: object, params: object, stop: object, message: str
) -> None:
    before = wait_idle(text_engine)
    with pytest.raises(RequestError, match=message):
        text_engine.generate(prompts, params, stop=stop)  # type: ignore[call-overload]
    assert text_engine.stats() == before


def test_the_refusal_of_a_batch_names_the_prompt(text_engine: Engine) -> None:
    with pytest.raises(RequestError, match="empty") as refusal:
        text_engine.generate(["fine", "fine", []], GREEDY)
    assert refusal.value.__notes__ == ["This is about prompts[2]."]


def test_without_a_tokenizer_there_are_only_ids(lazy_engine) -> None:  # type: ignore[no-untyped-def]
    engine = lazy_engine()
    assert engine.tokenizer is None
    (completion,) = engine.generate([1, 2, 3], GREEDY)
    assert (completion.text, len(completion.token_ids)) == (None, 12)
    assert {piece.text for piece in engine.generate([1, 2, 3], GREEDY, stream=True)} == {None}
    refused = "needs a tokenizer, and this engine has none"
    with pytest.raises(RequestError, match="a prompt of text " + refused):
        engine.generate("text", GREEDY)
    with pytest.raises(RequestError, match="a stop string " + refused):
        engine.generate([1], GREEDY, stop="x")
    with pytest.raises(RequestError, match="a conversation " + refused):
        engine.chat([{"role": "user", "content": "Hi"}])
    with pytest.raises(RequestError, match="needs the model's tokenizer"):
        engine.generate([1], replace(GREEDY, guide=GrammarSpec("json_object")))
    assert_all_free(engine)


def test_a_checkpoint_without_a_tokenizer_takes_one_or_works_with_ids(
    text_engine: Engine, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny_checkpoint / name)
    expected = text_engine.generate("Once", GREEDY)
    with Engine.from_pretrained(tmp_path, TEXT_SETTINGS) as engine:
        assert (engine.tokenizer, engine.vocab_limit) == (None, 320)
        (completion,) = engine.generate(expected[0].prompt_ids, GREEDY)
        assert completion.text is None
    tokenizer = TextTokenizer.from_folder(tiny_checkpoint)
    with Engine.from_pretrained(tmp_path, TEXT_SETTINGS, tokenizer=tokenizer) as engine:
        assert (engine.tokenizer, engine.vocab_limit) == (tokenizer, 257)
        assert engine.generate("Once", GREEDY) == expected
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot be read"):
        Engine.from_pretrained(tmp_path, TEXT_SETTINGS)


# How it ends


def test_an_interrupt_cancels_the_batch(text_engine: Engine) -> None:
    before = text_engine.stats().generated_tokens

    def interrupt() -> None:
        wait_until(lambda: text_engine.stats().generated_tokens > before)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        text_engine.generate(PROMPTS * 40, replace(GREEDY, max_tokens=480, ignore_eos=True))
    thread.join()
    assert_all_free(text_engine)
    assert text_engine.generate("Once", GREEDY)[0].finish_reason == "length"


@pytest.mark.parametrize("progress", [False, True])
def test_an_interrupt_between_two_pieces_cancels_the_batch(
    text_engine: Engine, monkeypatch: pytest.MonkeyPatch, progress: bool
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Completion, "of", interrupt)
    before = wait_idle(text_engine).finished["cancelled"]
    params = [replace(GREEDY, max_tokens=1), *[replace(GREEDY, max_tokens=480, ignore_eos=True)] * 3]
    with pytest.raises(KeyboardInterrupt) as interrupted:  # whose traceback is held, as `sys.last_exc` holds it
        text_engine.generate(["Once"] * 4, params, progress=progress)
    assert wait_idle(text_engine).finished["cancelled"] == before + 3
    assert interrupted.traceback


def test_an_engine_that_fails_meanwhile_raises(lazy_engine, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    engine = lazy_engine()

    def fail(*step: object) -> None:
        raise RuntimeError("out of device memory")

    monkeypatch.setattr(engine._runner, "step", fail)
    with pytest.raises(EngineClosedError, match="a step failed"):
        engine.generate([[1, 2], [3]], GREEDY)
    assert_all_free(engine)


def test_a_request_that_fails_alone_says_so(text_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpt_serve.engine.token_masks.TokenMasks.fill", lambda *_: 1 / 0)
    failed, fine = text_engine.generate(["Once"] * 2, [saying("yes"), GREEDY])
    assert (failed.finish_reason, failed.text, fine.finish_reason) == ("error", "", "length")
    assert "could not say what may follow" in (failed.choices[0].error or "")
    assert_all_free(text_engine)


def test_closing_the_engine_ends_a_batch(tiny_checkpoint: Path) -> None:
    with Engine.from_pretrained(tiny_checkpoint, TEXT_SETTINGS) as engine:
        stream = engine.generate(PROMPTS, replace(GREEDY, max_tokens=400), stream=True)
        next(stream)
        engine.close()
        assert [piece.finish_reason for piece in stream if piece.finish_reason] == ["cancelled"] * 3
        with pytest.raises(EngineClosedError, match="closed"):
            engine.generate("Once", GREEDY)


def test_one_choice_can_be_cancelled(text_engine: Engine) -> None:
    params = replace(SAMPLED, n=3)
    expected = [choice.token_ids for choice in text_engine.generate("Once", params)[0].choices]
    seen: defaultdict[int, list[int]] = defaultdict(list)
    ended = threading.Event()

    def listen(delta: Delta) -> None:
        seen[delta.index] += delta.token_ids
        if delta.index == 0 and len(seen[0]) >= 3:
            text_engine.cancel("three", 0)
        if len(listener.deltas) and sum(d.finish_reason is not None for d in listener.deltas) == 3:
            ended.set()

    listener = Listener(listen)
    text_engine.submit(text_engine.tokenizer.encode("Once"), params, listener, "three")  # type: ignore[union-attr]
    assert ended.wait(60)
    assert {d.index: d.finish_reason for d in listener.deltas if d.finish_reason} == {
        0: "cancelled",
        1: "length",
        2: "length",
    }
    assert tuple(seen[0]) == expected[0][: len(seen[0])]
    assert [tuple(seen[1]), tuple(seen[2])] == expected[1:]
    assert_all_free(text_engine)


# Guides


def test_the_guide_compiler_is_made_with_the_first_guide_and_closed_with_the_engine(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[GrammarCompiler] = []
    closed: list[GrammarCompiler] = []
    construct, close = GrammarCompiler.__init__, GrammarCompiler.close
    monkeypatch.setattr(
        GrammarCompiler, "__init__", lambda self, *given: (made.append(self), construct(self, *given))[1]
    )
    monkeypatch.setattr(GrammarCompiler, "close", lambda self: (closed.append(self), close(self))[1])
    with Engine.from_pretrained(tiny_checkpoint, TEXT_SETTINGS, eos_token_ids=[END]) as engine:
        engine.generate("Once", GREEDY)
        assert made == []
        completions = engine.generate(["Say: "] * 2, [saying("yes"), saying("no")])
        assert [completion.text for completion in completions] == ["yes", "no"]
        assert len(made) == 1
    assert closed == made


def test_a_vocabulary_without_an_end_refuses_guides(tiny_checkpoint: Path) -> None:
    with (
        Engine.from_pretrained(tiny_checkpoint, TEXT_SETTINGS, eos_token_ids=[300]) as engine,
        pytest.raises(RequestError, match="structured outputs need an end-of-sequence id below 257"),
    ):
        engine.generate("Once", saying("yes"))
    LazyGrammarCompiler(lambda: pytest.fail("there was no guide")).close()


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
    text_engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    prompts: int,
    progress: bool | None,
    stream: bool,
    shown: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    asked = text_engine.generate(["Once"] * prompts, replace(GREEDY, n=2), progress=progress, stream=stream)  # type: ignore[call-overload]
    assert len(list(asked)) >= prompts
    bar = capsys.readouterr().err
    assert bool(re.search(rf"Generating: 100%.* {prompts}/{prompts} .*tokens/s", bar)) == bool(bar) == shown


# The model in the package


def test_chats_are_written_as_the_template_says(embedded: Engine, text_engine: Engine) -> None:
    conversation = [{"role": "user", "content": "Tell me a story about a fox."}]
    prompt = "<|im_start|>user\nTell me a story about a fox.<|im_end|>\n<|im_start|>assistant\n"
    (answer,) = embedded.chat(conversation, GREEDY)
    assert answer.prompt_ids == tuple(embedded.tokenizer.encode(prompt))  # type: ignore[union-attr]
    assert embedded.generate(prompt, GREEDY) == [answer]
    assert embedded.chat([conversation] * 2, GREEDY) == [answer] * 2
    assert joined(list(embedded.chat(conversation, GREEDY, stream=True)), 0, 0) == (answer.text, answer.token_ids)
    (instructed,) = text_engine.chat(conversation, GREEDY)
    decoded = text_engine.tokenizer.decode(instructed.prompt_ids)  # type: ignore[union-attr]
    assert decoded.endswith("Tell me a story about a fox.\n\n### Response:\n")
    assert embedded.chat([]) == []


def test_a_checkpoint_without_a_template_cannot_chat(tiny_checkpoint: Path) -> None:
    with (
        Engine.from_pretrained(tiny_checkpoint, TEXT_SETTINGS) as engine,
        pytest.raises(MissingChatTemplateError, match="chat_template to 'chatml'"),
    ):
        engine.chat([{"role": "user", "content": "Hi"}])


def test_guides_of_a_whole_vocabulary(embedded: Engine) -> None:
    params = SamplingParams(max_tokens=40, seed=2, n=3, guide=GrammarSpec("regex", "(yes|no), [a-z]{3,6}!"))
    (completion,) = embedded.generate("Is the sky blue? ", params)
    for choice in completion.choices:
        assert choice.finish_reason == "stop"
        assert re.fullmatch("(yes|no), [a-z]{3,6}!", choice.text or "")


def test_the_examples_of_the_documentation_run(capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[2] / "docs" / "library.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    assert len(examples) == 5
    names: dict[str, object] = {}
    printed = []
    for example in examples:
        exec(compile(example, "docs/library.md", "exec"), names)
        printed.append(capsys.readouterr().out)
    names["engine"].close()  # type: ignore[attr-defined]
    assert printed[0].count(" length 20\n") == 2
    assert len(printed[1].splitlines()) == 3
    assert re.fullmatch(r"(yes|no), [a-z]{3,8}\.\n", printed[2])
    assert printed[3].splitlines()[-1].endswith(" length")
    assert len(printed[4]) > 20
