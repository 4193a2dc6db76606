// One request that generates: its text, tool calls, tokens and speed while they arrive.

import { request } from "./api.js";
import { events } from "./events.js";
import { streamed } from "./requests.js";

const SHORT_MS = 100;

/**
 * The output of one request.
 * text; calls: [{id, name, args}]; tokens: [{text, logprob, others: [[text, logprob]]}], if they were requested;
 * finish: `stop`, `length`, `tool_calls`, `stopped` by the user, `error`, or null while it runs; error: the message.
 */
export class Generation {
  /** begun: the text and tokens that the output goes on from, which the request contains. */
  constructor({ path, body }, begun = { text: "", tokens: [] }) {
    this.text = begun.text;
    this.calls = [];
    this.tokens = [...begun.tokens];
    this.finish = null;
    this.error = null;
    this.usage = null;
    this._path = path;
    this._body = body;
    this._abort = new AbortController();
    this._sentAt = 0;
    this._firstAt = null;
    this._lastAt = 0;
    this._firstCount = 0;
  }

  /** Send the request and read its stream. onChange: called after each change. Resolves in any case. */
  async run(onChange) {
    this._sentAt = performance.now();
    try {
      const response = await request(this._path, streamed(this._body), this._abort.signal);
      for await (const chunk of events(response)) {
        this._take(chunk);
        onChange();
      }
      this.finish ??= "stop";
    } catch (error) {
      const stopped = this._abort.signal.aborted;
      this.finish = stopped ? "stopped" : "error";
      this.error = stopped ? null : error.message;
    }
    onChange();
  }

  /** End the request; what has come so far stays. */
  stop() {
    this._abort.abort();
  }

  get running() {
    return this.finish === null;
  }

  /** Milliseconds from the request to its first token; null before it. */
  get firstTokenMs() {
    return this._firstAt === null ? null : this._firstAt - this._sentAt;
  }

  /**
   * Tokens per second after the first event with tokens; null before the second one. Of an output whose events took less
   * than SHORT_MS, since the request was sent: they may have come together, in which case their distance says nothing.
   */
  get tokensPerSecond() {
    const all = this.usage?.completion_tokens ?? 0;
    if (this._firstAt === null || all <= this._firstCount) return null;
    const short = this._lastAt - this._firstAt < SHORT_MS;
    const [count, since] = short ? [all, this._sentAt] : [all - this._firstCount, this._firstAt];
    return (1000 * count) / (this._lastAt - since);
  }

  /** The speed in words, for the line below an output. */
  get summary() {
    const parts = [];
    const count = this.usage?.completion_tokens;
    if (count !== undefined) parts.push(`${count} ${count === 1 ? "token" : "tokens"}`);
    if (this.tokensPerSecond !== null) parts.push(`${this.tokensPerSecond.toFixed(this.tokensPerSecond < 10 ? 1 : 0)} tokens/s`);
    if (this.firstTokenMs !== null) parts.push(`first token after ${this.firstTokenMs.toFixed(0)} ms`);
    const end = { length: "ended at the token limit", stopped: "stopped", tool_calls: "calls tools" }[this.finish];
    if (end) parts.push(end);
    return parts.join(" \u00b7 ");
  }

  _take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices[0];
    if ((this.usage?.completion_tokens ?? 0) > 0 && choice) {
      this._lastAt = performance.now();
      if (this._firstAt === null) {
        this._firstAt = this._lastAt;
        this._firstCount = this.usage.completion_tokens;
      }
    }
    if (!choice) return;
    if (choice.delta) this._takeDelta(choice.delta);
    else this.text += choice.text ?? "";
    this.tokens.push(...tokensOf(choice.logprobs));
    if (choice.finish_reason) this.finish = choice.finish_reason;
  }

  _takeDelta(delta) {
    this.text += delta.content ?? "";
    for (const { index, id, function: called } of delta.tool_calls ?? []) {
      const call = (this.calls[index] ??= { id, name: called.name, args: "" });
      call.args += called.arguments ?? "";
    }
  }
}

/** Return the tokens that a chunk's `logprobs` lists: an array in chat, four arrays in completions. */
function tokensOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) {
    return logprobs.content.map(({ token, logprob, top_logprobs: top }) => ({
      text: token, logprob, others: top.map((other) => [other.token, other.logprob]),
    }));
  }
  return logprobs.tokens.map((text, number) => ({
    text,
    logprob: logprobs.token_logprobs[number],
    others: Object.entries(logprobs.top_logprobs[number] ?? {}).sort((one, other) => other[1] - one[1]),
  }));
}
