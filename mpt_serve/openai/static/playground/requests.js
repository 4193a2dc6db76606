// The bodies of requests, as they are sent and as code shows them.

import { SettingError } from "./settings.js";

const DOLLY = (text) =>
  "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n" +
  `### Instruction:\n${text}\n\n### Response:\n`;
const CHATML = (text) => `<|im_start|>user\n${text}<|im_end|>\n<|im_start|>assistant\n`;
const FORMATS = { plain: (text) => text, dolly: DOLLY, chatml: CHATML };

/** Return a prompt in the form that the model was trained with: `plain`, `dolly` or `chatml`. */
export function formatted(text, format) {
  return FORMATS[format](text);
}

/** Return a chat request. turns: of the conversation, as `Conversation.path` returns them. */
export function chatRequest(model, system, turns, settings) {
  // A response without anything, because it was stopped or failed before its first token, is no message.
  const messages = turns.filter(({ role, text, calls }) => role !== "assistant" || text !== "" || calls?.length).map(message);
  if (system.trim() !== "") messages.unshift({ role: "system", content: system });
  return { path: "v1/chat/completions", body: { model, messages, ...settings.chatFields() } };
}

/** Return a chat request whose response goes on from a beginning of it. Throws SettingError. */
export function continuedRequest(model, system, turns, beginning, settings) {
  if (settings.values.structure !== "none") {
    throw new SettingError("structure", "A structured output cannot go on from a beginning. Choose \u201cnone\u201d.");
  }
  const { path, body } = chatRequest(model, system, [...turns, { role: "assistant", text: beginning }], settings);
  return { path, body: { ...body, continue_final_message: true, add_generation_prompt: false } };
}

/** Return a completion request. */
export function completionRequest(model, prompt, settings) {
  return { path: "v1/completions", body: { model, prompt, ...settings.completionFields() } };
}

/** Return the body of the same request as a stream that counts its tokens. */
export function streamed(body) {
  return { ...body, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
}

function message({ role, text, calls, callId }) {
  if (role === "tool") return { role, tool_call_id: callId, content: text };
  if (!calls?.length) return { role, content: text };
  const called = calls.map(({ id, name, args }) => ({ id, type: "function", function: { name, arguments: args } }));
  return { role, content: text === "" ? null : text, tool_calls: called };
}
