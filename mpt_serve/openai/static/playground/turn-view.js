// One turn of a conversation on the page, with what can be done to it.

import { button, copyFrom, element, growing } from "./dom.js";
import { Output, branches } from "./output.js";

const NAMES = { user: "You", assistant: "Model", tool: "Result" };

/** Shows one turn. actions: `edit(turn, text)`, `regenerate(turn)`, `goOn(turn, text, tokens)`, `select(turn, place)`, `sendResults(turn, texts)`. */
export class TurnView {
  constructor(turn, actions) {
    this.turn = turn;
    this._actions = actions;
    this._editing = false;
    this._calls = null;
    this._branches = element("span");
    const label = element("span", { class: "role", text: turn.role === "tool" ? `${NAMES.tool} of ${turn.callName}` : NAMES[turn.role] });
    const head = element("div", { class: "turn-head" }, label, this._branches);
    this._content = element("div");
    this.element = element("li", { class: `turn turn-${turn.role}` }, head, this._content);
    if (turn.role === "assistant") this._buildOutput();
    else this._buildMessage();
  }

  /** Bring the view up to date. last: whether it is the conversation's last turn. */
  update(last) {
    const { turn } = this;
    const made = branches(turn.place, turn.siblings.length, (place) => this._actions.select(turn, place));
    if (this._branchesOf !== `${turn.place} ${turn.siblings.length}`) {
      this._branchesOf = `${turn.place} ${turn.siblings.length}`;
      this._branches.replaceChildren(...(made ? [made] : []));
    }
    if (turn.role !== "assistant") return;
    this._output.update(turn.text, turn.generation);
    this._showCalls(last && !turn.generation?.running);
  }

  /** Put the focus on the arrows between the alternatives, as far as there are any. */
  focusBranches(label) {
    const step = [...this._branches.querySelectorAll("button")];
    (step.find((own) => own.dataset.step === label && !own.disabled) ?? step.find((own) => !own.disabled))?.focus();
  }

  _buildOutput() {
    const edit = button("Edit", () => this._edit(), { class: "quiet small" });
    const again = button("Regenerate", () => this._actions.regenerate(this.turn), { class: "quiet small" });
    this._output = new Output({ actions: [edit, again], onContinue: (text, tokens) => this._actions.goOn(this.turn, text, tokens) });
    this._callList = element("div", { class: "calls" });
    this._content.replaceChildren(this._output.element, this._callList);
  }

  _buildMessage() {
    const { turn } = this;
    const copy = button("Copy", () => copyFrom(copy, turn.text), { class: "quiet small" });
    const edit = button("Edit", () => this._edit(), { class: "quiet small" });
    const foot = element("div", { class: "output-foot" }, element("span", { class: "output-actions" }, copy, edit));
    this._content.replaceChildren(element("div", { class: "text plain", text: turn.text }), foot);
  }

  _edit() {
    const { turn } = this;
    const rebuild = () => (turn.role === "assistant" ? this._buildOutput() : this._buildMessage());
    const area = element("textarea", { rows: 3, "aria-label": "Edited text" });
    area.value = turn.text;
    const close = () => {
      rebuild();
      this._calls = null;
      this.update(true);
      this._content.querySelector("button")?.focus();
    };
    const note = turn.role === "assistant" ? "Keep as an alternative" : "Send as an alternative";
    const form = element(
      "form",
      { class: "edit" },
      area,
      element("div", { class: "composer-row" }, element("span", { class: "hint" }), button("Cancel", close, { class: "quiet" }), element("button", { type: "submit", class: "primary", text: note })),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      rebuild();
      this._calls = null;
      this._actions.edit(turn, area.value);
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
      else if (event.key === "Escape") close();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this._content.replaceChildren(form);
    growing(area)();
    area.focus();
  }

  /** Show the calls of tools, with fields for their results while nothing follows. */
  _showCalls(open) {
    const { calls } = this.turn;
    const shown = JSON.stringify([calls, open]);
    if (shown === this._calls) return;
    this._calls = shown;
    if (!calls.length) return void this._callList.replaceChildren();
    const areas = calls.map((call) => element("textarea", { rows: 2, "aria-label": `Result of ${call.name}`, placeholder: "Its result, as text or JSON" }));
    const blocks = calls.map((call, number) =>
      element(
        "div",
        { class: "call" },
        element("div", { class: "call-name" }, "calls ", element("code", { text: call.name })),
        element("pre", { tabindex: 0, role: "group", "aria-label": `Arguments of ${call.name}`, text: pretty(call.args) }),
        open ? areas[number] : null,
      ));
    if (!open) return void this._callList.replaceChildren(...blocks);
    const form = element("form", {}, ...blocks, element("div", { class: "composer-row" }, element("span", { class: "hint", text: "Nothing is run by this page or the server: enter what the function returns." }), element("button", { type: "submit", class: "primary", text: calls.length > 1 ? "Send results" : "Send result" })));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this._actions.sendResults(this.turn, areas.map((area) => area.value));
    });
    return void this._callList.replaceChildren(form);
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // a call that the token limit has cut off
  }
}
