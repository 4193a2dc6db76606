// An output token by token: each is shaded by its probability, shows what else might have stood there, and can be
// replaced by that.

import { button, element } from "./dom.js";

const LEVELS = [0.9, 0.5, 0.2, 0.05]; // lower bounds of the shades; the last has what is below
const LEGEND = ["above 90 %", "50 to 90 %", "20 to 50 %", "5 to 20 %", "below 5 %"];

const NAMED = /^(bytes|token_id):/; // tokens that are no text
const BLANKS = { "": "no text", " ": "space", "\n": "line break", "\t": "tab" };

let views = 0;

/**
 * Return an element that shows tokens as `Generation` has them. One tab stop; arrow keys move between tokens.
 * onReplace: gets the tokens up to one that the user has replaced, with the other one as the last; null: none can be.
 */
export function tokenView(tokens, onReplace = null) {
  const id = `alternatives-${++views}`;
  const details = element("div", { class: "alternatives", id, role: "tooltip", hidden: true });
  const marks = tokens.map((token, number) => mark(token, number === 0));
  const flow = element("div", { class: "tokens", role: "group", "aria-label": "Tokens and their probabilities; arrow keys move" });
  marks.forEach((made, number) => flow.append(made, ...(tokens[number].text.includes("\n") ? [element("br")] : [])));
  const others = element("div", { class: "replacements", role: "group", hidden: true });
  const view = element("div", { class: "token-view" }, flow, others, details, legend());

  function show(made) {
    const number = marks.indexOf(made);
    if (number < 0) return;
    details.replaceChildren(alternatives(tokens[number]));
    details.hidden = false;
    for (const other of marks) other.removeAttribute("aria-describedby");
    made.setAttribute("aria-describedby", id);
    const left = Math.min(made.offsetLeft, Math.max(view.clientWidth - details.offsetWidth, 0));
    details.style.left = `${left}px`;
    details.style.top = `${made.offsetTop + made.offsetHeight + 4}px`;
  }

  function hide() {
    details.hidden = true;
  }

  /** Offer the alternatives of a token as buttons. */
  function offer(number) {
    const before = tokens.slice(0, number);
    if (number < 0 || before.some(({ text }) => NAMED.test(text))) return;
    marks.forEach((made, place) => made.classList.toggle("picked", place === number));
    const { text: old, others: all } = tokens[number];
    const usable = all.filter(([text]) => text !== old && text !== "" && !NAMED.test(text));
    const buttons = usable.map(([text, logprob]) =>
      button(`${visible(text)}  ${percent(logprob)}`, () => onReplace([...before, { text, logprob, others: all }]), { class: "small" }));
    others.setAttribute("aria-label", `Instead of ${visible(old)}`);
    others.replaceChildren(element("span", { text: buttons.length ? `Go on from here with, instead of ${visible(old)}` : "No alternatives are known here." }), ...buttons);
    others.hidden = false;
    hide();
    buttons[0]?.focus();
  }

  function focus(number) {
    const made = marks[Math.min(Math.max(number, 0), marks.length - 1)];
    for (const other of marks) other.tabIndex = other === made ? 0 : -1;
    made.focus();
  }

  flow.addEventListener("pointerover", (event) => show(event.target));
  flow.addEventListener("focusin", (event) => show(event.target));
  flow.addEventListener("click", (event) => {
    show(event.target); // a tap
    if (onReplace) offer(marks.indexOf(event.target));
  });
  view.addEventListener("pointerleave", () => {
    if (!flow.contains(document.activeElement)) hide();
  });
  flow.addEventListener("focusout", hide);
  flow.addEventListener("keydown", (event) => {
    const at = marks.indexOf(document.activeElement);
    const target = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: marks.length }[event.key];
    if (target !== undefined) {
      event.preventDefault();
      focus(target);
    } else if (event.key === "Escape" && !details.hidden) {
      event.stopPropagation(); // it closes this alone
      hide();
    }
  });
  return view;
}

function mark({ text, logprob }, first) {
  const blank = text.trim() === "";
  return element("button", {
    type: "button",
    class: `token level-${level(logprob)}`,
    text: text === "" ? visible(text) : text.replaceAll("\n", "\u21b5"),
    tabindex: first ? 0 : -1,
    "aria-label": `${blank ? BLANKS[text] ?? "blanks" : text.trim()}, ${percent(logprob)}`,
  });
}

function alternatives({ text, logprob, others }) {
  const rows = others.some(([other]) => other === text) ? others : [[text, logprob], ...others];
  const made = rows.map(([other, value]) =>
    element(
      "tr",
      { class: other === text ? "chosen" : "" },
      element("td", {}, element("code", { text: visible(other) })),
      element("td", { class: "number", text: percent(value) }),
      element("td", {}, bar(value)),
    ));
  const head = element("tr", {}, ...["Token", "Probability", ""].map((name) => element(name ? "th" : "td", { text: name })));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...made));
}

function bar(logprob) {
  const filled = element("span", { class: "share" });
  filled.style.width = `${(100 * Math.exp(logprob)).toFixed(1)}%`;
  return element("span", { class: "share-frame", "aria-hidden": "true" }, filled);
}

function legend() {
  const entries = LEGEND.map((text, number) => element("li", {}, element("span", { class: `swatch level-${number}` }), text));
  return element("ul", { class: "legend", "aria-label": "Shades by probability" }, ...entries);
}

/** Return a token's text with its blanks as signs. */
function visible(text) {
  return text.replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5").replace(/^ | $/g, "\u00b7").replaceAll(/ {2}/g, "\u00b7\u00b7") || "(empty)";
}

function percent(logprob) {
  if (logprob === null) return "unknown";
  const value = 100 * Math.exp(logprob);
  return value < 0.1 ? "below 0.1 %" : `${value.toFixed(1)} %`;
}

function level(logprob) {
  const at = LEVELS.findIndex((bound) => Math.exp(logprob ?? 0) >= bound);
  return at < 0 ? LEVELS.length : at;
}
