// The form of one set of settings.

import { byId, element } from "./dom.js";
import { PARAMETERS } from "./parameters.js";
import { STRUCTURES } from "./settings.js";

/** Shows settings as a form. onChange: called after each change. */
export class Panel {
  constructor(onChange) {
    this._onChange = onChange;
    this._place = byId("fields");
    this._settings = null;
  }

  /** Show the form of these settings. */
  show(settings) {
    this._settings = settings;
    this._place.replaceChildren(
      group("Sampling", true, ...PARAMETERS.map((parameter) => this._parameter(parameter))),
      this._structure(),
      this._tools(),
      this._tokens(),
    );
  }

  /** Say at its field what is wrong with a setting. error: a SettingError. */
  showProblem({ field, message }) {
    const input = byId(`setting-${field}`);
    if (!input) return;
    for (let above = input.parentElement; above && above !== this._place; above = above.parentElement) {
      if (above.tagName === "DETAILS") above.open = true;
    }
    const problem = byId(`problem-${field}`);
    problem.textContent = message;
    problem.hidden = false;
    input.setAttribute("aria-invalid", "true");
    input.focus();
  }

  _set(name, value) {
    this._settings.set(name, value);
    const problem = byId(`problem-${name}`);
    if (problem) problem.hidden = true;
    byId(`setting-${name}`)?.removeAttribute("aria-invalid");
    this._onChange();
  }

  _parameter(parameter) {
    const { name, label, kind, min, max, step, fallback, help, slider } = parameter;
    const id = `setting-${name}`;
    const shared = { id, "aria-describedby": `help-${name} problem-${name}`, placeholder: fallback };
    const input = kind === "lines"
      ? element("textarea", { ...shared, rows: 2, spellcheck: "false" })
      : element("input", { ...shared, type: "text", inputmode: step < 1 ? "decimal" : "numeric", autocomplete: "off" });
    input.value = this._settings.values[name];
    const range = slider ? element("input", { type: "range", min: name === "top_p" ? 0.01 : min, max, step, "aria-label": `${label}, slider` }) : null;
    if (range) {
      range.value = input.value === "" ? fallback : input.value;
      range.addEventListener("input", () => {
        input.value = range.value;
        this._set(name, range.value);
      });
    }
    input.addEventListener("input", () => {
      if (range) range.value = input.value === "" ? fallback : input.value;
      this._set(name, input.value);
    });
    return element(
      "div",
      { class: kind === "lines" ? "field" : "field field-row" },
      element("label", { for: id, text: label }),
      input,
      range,
      element("p", { class: "help", id: `help-${name}`, text: help }),
      problemOf(name),
    );
  }

  _structure() {
    const { values } = this._settings;
    const select = element("select", { id: "setting-structure", "aria-describedby": "problem-structure" }, ...STRUCTURES.map(({ kind, label }) => element("option", { value: kind, text: label })));
    select.value = values.structure;
    const areas = STRUCTURES.filter(({ text }) => text).map(({ kind, text }) => this._area(kind, text, 6));
    const update = () => areas.forEach((area) => (area.hidden = area.dataset.kind !== select.value));
    select.addEventListener("change", () => {
      this._set("structure", select.value);
      update();
    });
    update();
    const field = element("div", { class: "field" }, element("label", { for: "setting-structure", text: "The output is" }), select, problemOf("structure"));
    return group("Structured output", values.structure !== "none", field, ...areas);
  }

  _tools() {
    const { values } = this._settings;
    const choice = element("input", { id: "setting-tool_choice", type: "text", autocomplete: "off", list: "tool-choices", value: values.tool_choice });
    choice.value = values.tool_choice;
    choice.addEventListener("input", () => this._set("tool_choice", choice.value));
    const choices = element("datalist", { id: "tool-choices" }, ...["auto", "required", "none"].map((value) => element("option", { value })));
    return group(
      "Tools",
      values.tools_on,
      this._switch("tools_on", "Send tools with chat messages"),
      this._area("tools", "Definitions, as a JSON array", 10),
      element("div", { class: "field" }, element("label", { for: "setting-tool_choice", text: "Choice: auto, required, none, or a name" }), choice, choices),
      this._switch("parallel_tool_calls", "Several calls in one message"),
    );
  }

  _tokens() {
    const { values } = this._settings;
    const count = element("input", { id: "setting-alternatives", type: "text", inputmode: "numeric", autocomplete: "off", "aria-describedby": "problem-alternatives" });
    count.value = values.alternatives;
    count.addEventListener("input", () => this._set("alternatives", count.value));
    return group(
      "Tokens and probabilities",
      values.tokens_on,
      this._switch("tokens_on", "Request the tokens' probabilities"),
      element("div", { class: "field field-row" }, element("label", { for: "setting-alternatives", text: "Alternatives, 0 to 20" }), count, problemOf("alternatives")),
      element("p", { class: "help", text: "Below each output, \u201cTokens\u201d then shows them." }),
    );
  }

  _area(name, label, rows) {
    const area = element("textarea", { id: `setting-${name}`, rows, spellcheck: "false", class: "mono", "aria-describedby": `problem-${name}` });
    area.value = this._settings.values[name];
    area.addEventListener("input", () => this._set(name, area.value));
    return element("div", { class: "field", data: { kind: name } }, element("label", { for: `setting-${name}`, text: label }), area, problemOf(name));
  }

  _switch(name, label) {
    const box = element("input", { id: `setting-${name}`, type: "checkbox" });
    box.checked = this._settings.values[name];
    box.addEventListener("change", () => this._set(name, box.checked));
    return element("label", { class: "switch" }, box, label);
  }
}

function group(title, open, ...fields) {
  return element("details", { class: "group", open }, element("summary", { text: title }), element("div", { class: "group-fields" }, ...fields));
}

function problemOf(name) {
  return element("p", { class: "problem", id: `problem-${name}`, role: "alert", hidden: true });
}
