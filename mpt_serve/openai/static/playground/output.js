// What an output shows in every tab: its text or tokens, its problem, its speed, and its buttons.

import { button, copyFrom, element } from "./dom.js";
import { markdown } from "./markdown.js";
import { tokenView } from "./tokens.js";

/** Shows one generation, or a text that is none. `update` brings it up to date with what there is. */
export class Output {
  /**
   * prefix: text that stands before the output, in plain outputs. plain: show text as it is, not as Markdown.
   * actions: further buttons. onContinue: gets a text and its tokens, from which the user wants another output to go on.
   */
  constructor({ plain = false, prefix = "", actions = [], onContinue = null } = {}) {
    this._plain = plain;
    this._prefix = prefix;
    this._tokensShown = false;
    this._shown = null; // what the body shows, so that nothing is built twice
    this._text = "";
    this._body = element("div", { class: plain ? "text plain" : "text" });
    this._problem = element("p", { class: "problem", role: "alert", hidden: true });
    this._summary = element("span", { class: "summary" });
    this._copy = button("Copy", () => copyFrom(this._copy, this._text), { class: "quiet small" });
    this._tokens = button("Tokens", () => this._toggleTokens(), { class: "quiet small", "aria-pressed": "false", hidden: true });
    this._onContinue = onContinue;
    this._goOn = button("Continue", () => onContinue(this._text, this._generation.tokens), { class: "quiet small", hidden: true });
    this._actions = element("span", { class: "output-actions" }, this._copy, this._tokens, this._goOn, ...actions);
    this.element = element("div", { class: "output" }, this._body, this._problem, element("div", { class: "output-foot" }, this._summary, this._actions));
  }

  /** text: of the output. generation: where it comes from, or null. */
  update(text, generation) {
    this._text = text;
    this._generation = generation;
    const running = generation?.running ?? false;
    this._tokens.hidden = running || !generation?.tokens.length;
    const shown = this._tokensShown && !this._tokens.hidden ? "tokens" : `text ${text} ${running}`;
    if (shown !== this._shown) {
      this._shown = shown;
      this._body.replaceChildren(shown === "tokens" ? this._tokenView(generation.tokens) : this._textView(text, running));
    }
    this._problem.hidden = !generation?.error;
    this._problem.textContent = generation?.error ?? "";
    this._summary.textContent = generation?.summary ?? "";
    this._actions.hidden = running;
    this._copy.hidden = text === "";
    this._goOn.hidden = !this._onContinue || text === "" || !["length", "stopped"].includes(generation?.finish) || generation.calls.length > 0;
    this.element.setAttribute("aria-busy", String(running));
  }

  _textView(text, running) {
    const made = document.createDocumentFragment();
    if (this._plain) made.append(element("span", { class: "prefix", text: this._prefix }), element("span", { text }));
    else made.append(markdown(text));
    if (running) made.append(element("span", { class: "cursor", "aria-hidden": "true" }));
    return made;
  }

  _tokenView(tokens) {
    if (!this._onContinue) return tokenView(tokens);
    return tokenView(tokens, (chosen) => this._onContinue(chosen.map(({ text }) => text).join(""), chosen));
  }

  _toggleTokens() {
    this._tokensShown = !this._tokensShown;
    this._tokens.setAttribute("aria-pressed", String(this._tokensShown));
    this.update(this._text, this._generation);
  }
}

/** Return `< 1 / 2 >` for the alternatives of something, null if there is one alone. onSelect: gets a place. */
export function branches(place, count, onSelect) {
  if (count < 2) return null;
  const step = (text, label, target) =>
    button(text, () => onSelect(target), { class: "quiet small step", "aria-label": label, disabled: target < 0 || target >= count, data: { step: label } });
  return element(
    "span",
    { class: "branches", role: "group", "aria-label": "Alternatives" },
    step("\u2039", "Previous alternative", place - 1),
    element("span", { text: `${place + 1} / ${count}` }),
    step("\u203a", "Next alternative", place + 1),
  );
}
