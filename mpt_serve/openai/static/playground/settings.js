// One set of settings: what the user has entered, and the fields of a request that follow from it.

import { PARAMETERS, valueOf } from "./parameters.js";

/** What the output must match: the values of the select, and the field that holds the text of each. */
export const STRUCTURES = [
  { kind: "none", label: "none" },
  { kind: "json_object", label: "any JSON object" },
  {
    kind: "json_schema", label: "JSON schema", text: "Schema",
    sample: '{\n  "type": "object",\n  "properties": {\n    "name": {"type": "string"},\n    "age": {"type": "integer"}\n  },\n  "required": ["name", "age"]\n}',
  },
  { kind: "regex", label: "regular expression", text: "Expression", sample: "[0-9]{4}-[0-9]{2}-[0-9]{2}" },
  { kind: "choice", label: "one of a list", text: "Choices, one in each line", sample: "positive\nnegative\nneutral" },
  {
    kind: "grammar", label: "grammar (Lark or GBNF)", text: "Grammar",
    sample: 'start: greeting " " name "!"\ngreeting: "Hello" | "Goodbye"\nname: /[A-Z][a-z]{1,10}/',
  },
];

const SAMPLE_TOOLS = `[
  {
    "type": "function",
    "function": {
      "name": "weather",
      "description": "The weather in a city",
      "parameters": {
        "type": "object",
        "properties": {
          "city": {"type": "string", "maxLength": 24},
          "unit": {"enum": ["celsius", "fahrenheit"]}
        },
        "required": ["city"]
      }
    }
  }
]`;

/** A setting that cannot be sent; `field` is its id in the form. */
export class SettingError extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

const INITIAL = {
  ...Object.fromEntries(PARAMETERS.map(({ name, initial }) => [name, initial ?? ""])),
  structure: "none",
  ...Object.fromEntries(STRUCTURES.filter(({ text }) => text).map(({ kind, sample }) => [kind, sample])),
  tools_on: false,
  tools: SAMPLE_TOOLS,
  tool_choice: "auto",
  parallel_tool_calls: true,
  tokens_on: false,
  alternatives: "5",
};

const NAMES = { structure: "output", tools_on: "tools", tools: "definitions", tokens_on: "token probabilities" };

/** Settings by name, as text and switches; kept in the browser under a name. */
export class Settings {
  constructor(stored, changes = {}) {
    this._stored = `mpt-serve-settings-${stored}`;
    this._initial = { ...INITIAL, ...changes };
    this.values = { ...this._initial, ...read(this._stored) };
  }

  set(name, value) {
    this.values[name] = value;
    localStorage.setItem(this._stored, JSON.stringify(this.values));
  }

  reset() {
    this.values = { ...this._initial };
    localStorage.removeItem(this._stored);
  }

  /** Return the fields of a completion request. Throws SettingError. */
  completionFields() {
    const fields = { ...this.sampling(), ...this.structure() };
    if (this.values.tokens_on) fields.logprobs = this.alternatives();
    return fields;
  }

  /** Return the fields of a chat request. Throws SettingError. */
  chatFields() {
    const fields = { ...this.sampling(), ...this.structure(), ...this.tools() };
    if (this.values.tokens_on) Object.assign(fields, { logprobs: true, top_logprobs: this.alternatives() });
    return fields;
  }

  sampling() {
    const fields = {};
    for (const parameter of PARAMETERS) {
      try {
        fields[parameter.name] = valueOf(parameter, this.values[parameter.name]);
      } catch (error) {
        throw new SettingError(parameter.name, error.message);
      }
    }
    return fields;
  }

  structure() {
    const { structure: kind } = this.values;
    const text = this.values[kind] ?? "";
    if (kind === "none") return {};
    if (kind === "json_object") return { response_format: { type: "json_object" } };
    if (text.trim() === "") throw new SettingError(kind, "Enter what the output must match, or choose \u201cnone\u201d.");
    if (kind === "json_schema") {
      const schema = parsed(kind, text, "The schema");
      return { response_format: { type: "json_schema", json_schema: { name: "output", schema } } };
    }
    if (kind === "choice") return { structured_outputs: { choice: text.split("\n").filter((line) => line !== "") } };
    return { structured_outputs: { [kind]: text } };
  }

  tools() {
    const { tools_on: on, tools: text, tool_choice: choice, parallel_tool_calls: parallel } = this.values;
    if (!on) return {};
    const tools = parsed("tools", text, "The list of tools");
    if (!Array.isArray(tools) || !tools.length) throw new SettingError("tools", "Tools are a JSON array with one object for each.");
    const named = ["auto", "none", "required"].includes(choice) ? choice : { type: "function", function: { name: choice } };
    return { tools, tool_choice: named, ...(parallel ? {} : { parallel_tool_calls: false }) };
  }

  alternatives() {
    try {
      return valueOf({ label: "Alternatives", kind: "integer", min: 0, max: 20 }, this.values.alternatives) ?? 5;
    } catch (error) {
      throw new SettingError("alternatives", error.message);
    }
  }

  /** Return in words what differs from other settings: `temperature 0.2`. */
  differences(other) {
    return Object.keys(INITIAL)
      .filter((name) => this.values[name] !== other.values[name] && (this._used(name) || other._used(name)))
      .map((name) => {
        const value = this.values[name];
        const shown = { true: "on", false: "off", "": "unset" }[value] ?? value;
        return `${NAMES[name] ?? name.replaceAll("_", " ")} ${shown.length > 24 || shown.includes("\n") ? "changed" : shown}`;
      });
  }

  /** Return whether a value has an effect on requests. */
  _used(name) {
    const { structure, tools_on: tools, tokens_on: tokens } = this.values;
    if (STRUCTURES.some(({ kind, text }) => text && kind === name)) return structure === name;
    if (["tools", "tool_choice", "parallel_tool_calls"].includes(name)) return tools;
    return name !== "alternatives" || tokens;
  }
}

function parsed(field, text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SettingError(field, `${what} is not valid JSON: ${error.message}`);
  }
}

function read(stored) {
  try {
    const values = JSON.parse(localStorage.getItem(stored) ?? "{}");
    return Object.fromEntries(Object.entries(values).filter(([name, value]) => typeof value === typeof INITIAL[name]));
  } catch {
    return {};
  }
}
