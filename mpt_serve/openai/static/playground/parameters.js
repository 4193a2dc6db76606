// The sampling parameters that the page offers: what a request calls them, what they accept, and what they mean.

/**
 * Each: `name` of the request's field; `kind`: number, integer or lines; `min`, `max`, `step` of a number; `fallback`:
 * what the server takes if the field is left out, as text; `initial`: what this page begins with, if it is not that.
 */
export const PARAMETERS = [
  {
    name: "temperature", label: "Temperature", kind: "number", min: 0, max: 2, step: 0.05, fallback: "1", initial: "0.7",
    slider: true, help: "Randomness of the sampled tokens. 0 always takes the most likely one.",
  },
  {
    name: "top_p", label: "Top p", kind: "number", min: 0.01, max: 1, step: 0.01, fallback: "1", slider: true,
    help: "Keep the most likely tokens that together reach this probability.",
  },
  {
    name: "top_k", label: "Top k", kind: "integer", min: -1, max: 2147483647, step: 1, fallback: "0",
    help: "Keep this number of the most likely tokens. 0 keeps all.",
  },
  {
    name: "min_p", label: "Min p", kind: "number", min: 0, max: 1, step: 0.01, fallback: "0", slider: true,
    help: "Drop tokens less likely than this share of the most likely one's probability.",
  },
  {
    name: "max_tokens", label: "Max tokens", kind: "integer", min: 1, max: 2147483647, step: 1,
    fallback: "the server's choice", initial: "256", help: "Generated tokens at most.",
  },
  {
    name: "seed", label: "Seed", kind: "integer", min: Number.MIN_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER, step: 1,
    fallback: "random", help: "The same seed and request give the same text.",
  },
  {
    name: "stop", label: "Stop strings", kind: "lines", fallback: "none",
    help: "One in each line; the text ends before the first of them. \\n stands for a line break.",
  },
  {
    name: "repetition_penalty", label: "Repetition penalty", kind: "number", min: 0.01, max: 10, step: 0.05,
    fallback: "1", help: "Above 1: tokens of the prompt and the output become less likely.",
  },
  {
    name: "presence_penalty", label: "Presence penalty", kind: "number", min: -2, max: 2, step: 0.1, fallback: "0",
    help: "Subtracted from the logits of tokens that the output has.",
  },
  {
    name: "frequency_penalty", label: "Frequency penalty", kind: "number", min: -2, max: 2, step: 0.1, fallback: "0",
    help: "The same, once for each time that the output has the token.",
  },
];

/** Return a parameter's value in a request, undefined to leave it out. Throws RangeError that says what is accepted. */
export function valueOf(parameter, text) {
  if (parameter.kind === "lines") {
    const strings = text.split("\n").filter((line) => line !== "").map((line) => line.replaceAll("\\n", "\n"));
    return strings.length ? strings : undefined;
  }
  if (text.trim() === "") return undefined;
  const value = Number(text);
  const { min, max, label } = parameter;
  if (!Number.isFinite(value) || (parameter.kind === "integer" && !Number.isInteger(value)) || value < min || value > max) {
    const kind = parameter.kind === "integer" ? "an integer" : "a number";
    const bounds = Math.abs(max) >= 2147483647 && Math.abs(min) > 1e9 ? "" : max >= 2147483647 ? ` from ${min}` : ` from ${min} to ${max}`;
    throw new RangeError(`${label} takes ${kind}${bounds}.`);
  }
  return value;
}
