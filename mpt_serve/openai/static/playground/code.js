// A request as code that sends it: curl, and Python with OpenAI's client.

import { apiKey } from "./access.js";
import { BASE } from "./api.js";
import { byId, copyFrom } from "./dom.js";
import { tabs } from "./tabs.js";

// The parameters that OpenAI's client knows by name; all others go through `extra_body`.
const OF_BOTH = ["model", "temperature", "top_p", "max_tokens", "seed", "stop", "presence_penalty", "frequency_penalty", "logprobs"];
const KNOWN = {
  "v1/chat/completions": [...OF_BOTH, "messages", "top_logprobs", "response_format", "tools", "tool_choice", "parallel_tool_calls"],
  "v1/completions": [...OF_BOTH, "prompt"],
};

/** Return a request as a command of curl. */
export function curl({ path, body }) {
  const text = JSON.stringify({ ...body, stream: true }, null, 2).replaceAll("'", "'\\''");
  const lines = [`curl -N ${new URL(path, BASE)}`, "-H 'Content-Type: application/json'"];
  if (apiKey() !== null) lines.push('-H "Authorization: Bearer $API_KEY"');
  return `${[...lines, `-d '${text}'`].join(" \\\n  ")}\n`;
}

/** Return a request as a Python program. Text is printed as it comes; tool calls and tokens, when all is there. */
export function python({ path, body }) {
  const chat = path === "v1/chat/completions";
  const streams = !body.tools && body.logprobs === undefined;
  const given = Object.entries(body).filter(([, value]) => value !== undefined);
  const known = given.filter(([name]) => KNOWN[path].includes(name));
  const rest = given.filter(([name]) => !KNOWN[path].includes(name));
  if (rest.length) known.push(["extra_body", Object.fromEntries(rest)]);
  if (streams) known.push(["stream", true]);
  const call = chat ? "client.chat.completions.create" : "client.completions.create";
  const piece = chat ? "chunk.choices[0].delta.content or \"\"" : "chunk.choices[0].text";
  const end = streams
    ? ["for chunk in response:", `    print(${piece}, end="", flush=True)`]
    : [`print(response.choices[0].model_dump_json(indent=2))`];
  return [
    ...(apiKey() === null ? [] : ["import os", ""]),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(new URL("v1", BASE).href)}, api_key=${apiKey() === null ? '"unused"' : 'os.environ["API_KEY"]'})`,
    `response = ${call}(`,
    ...known.map(([name, value]) => `    ${name}=${literal(value, 1)},`),
    ")",
    ...end,
    "",
  ].join("\n");
}

/** Return a value of JSON as Python writes it. depth: of the line that it stands in. */
function literal(value, depth = 0) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value); // whose escapes Python has too
  const inner = "    ".repeat(depth + 1);
  const entries = Array.isArray(value)
    ? value.map((item) => literal(item, depth + 1))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, depth + 1)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const short = `${open}${entries.join(", ")}${close}`;
  if (short.length <= 60 && !short.includes("\n")) return short;
  return `${open}\n${entries.map((entry) => `${inner}${entry},\n`).join("")}${"    ".repeat(depth)}${close}`;
}

/** Show a request as code. */
export function showCode(request) {
  byId("code-curl").textContent = curl(request);
  byId("code-python").textContent = python(request);
  byId("code-dialog").showModal();
}

/** Make the dialog work. */
export function startCode() {
  const dialog = byId("code-dialog");
  tabs(dialog.querySelector('[role="tablist"]'));
  byId("code-close").addEventListener("click", () => dialog.close());
  byId("code-copy").addEventListener("click", (event) => {
    const shown = byId("panel-curl").hidden ? byId("code-python") : byId("code-curl");
    copyFrom(event.currentTarget, shown.textContent);
  });
}
