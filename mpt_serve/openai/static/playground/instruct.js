// The instruct tab: a text that the model continues, with the outputs of one prompt as alternatives.

import { showCode } from "./code.js";
import { announce, byId, element, growing, oncePerFrame } from "./dom.js";
import { chooseExample } from "./examples.js";
import { Generation } from "./generation.js";
import { Output, branches } from "./output.js";
import { completionRequest, formatted } from "./requests.js";
import { server } from "./server.js";

/** The instruct tab. settings: of its requests. report: shows an error of the settings. */
export class Instruct {
  constructor(settings, report) {
    this._settings = settings;
    this._report = report;
    this._outputs = []; // [{generation, output, prompt}], of the last prompt
    this._shown = 0;
    this._prompt = byId("prompt");
    this._fit = growing(this._prompt);
    this._renderSoon = oncePerFrame(() => this.render());
    byId("instruct-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    byId("instruct-stop").addEventListener("click", () => this.stop());
    byId("instruct-examples").addEventListener("click", () => chooseExample("text", (text) => this._fill(text)));
    byId("instruct-code").addEventListener("click", () => {
      const request = this._request();
      if (request) showCode(request);
    });
    this.render();
  }

  get running() {
    return this._current?.generation.running ?? false;
  }

  /** Generate a text for the prompt: another alternative, if the prompt is still the same. */
  submit() {
    const prompt = this._prompt.value;
    if (this.running || !server.ready) return;
    if (prompt === "") return void this._prompt.focus();
    const request = this._request();
    if (!request) return;
    if (this._outputs[0]?.prompt !== prompt) this._outputs = [];
    this._generate(prompt, request);
  }

  stop() {
    this._current?.generation.stop();
  }

  /** Show the output and what can be done now. */
  render() {
    const current = this._current;
    byId("instruct-stop").hidden = !this.running;
    byId("instruct-send").hidden = this.running;
    byId("instruct-send").disabled = !server.ready;
    byId("instruct-send").textContent = current && current.prompt === this._prompt.value ? "Regenerate" : "Generate";
    if (!current) return void byId("completion").replaceChildren();
    current.output.update(current.generation.text, current.generation);
    const key = `${this._shown} ${this._outputs.length}`;
    if (this._rendered !== current || this._key !== key) {
      const steps = branches(this._shown, this._outputs.length, (place) => this._select(place));
      const head = element("div", { class: "turn-head" }, element("h2", { class: "role", text: "Completion" }), steps);
      byId("completion").replaceChildren(head, current.output.element);
      this._rendered = current;
      this._key = key;
    }
  }

  get _current() {
    return this._outputs[this._shown];
  }

  /** Return the request for the prompt, and a text after it; null if the settings are wrong. */
  _request(begun = "") {
    try {
      return completionRequest(server.model, formatted(this._prompt.value, byId("format").value) + begun, this._settings);
    } catch (error) {
      this._report(error);
      return null;
    }
  }

  async _generate(prompt, request, begun) {
    const generation = new Generation(request, begun);
    const prefix = byId("format").value === "plain" ? tail(prompt) : "";
    const output = new Output({ plain: true, prefix, onContinue: (text, tokens) => this._goOn(text, tokens) });
    this._outputs.push({ generation, output, prompt });
    this._shown = this._outputs.length - 1;
    announce("The model writes");
    this.render();
    await generation.run(() => this._renderSoon());
    this.render();
    announce(generation.error ?? `The completion is there: ${generation.summary}`);
  }

  /** Add an alternative that goes on from a beginning of the output, or from all of it. */
  _goOn(text, tokens) {
    if (this.running) return;
    const { prompt } = this._current;
    this._prompt.value = prompt;
    const request = this._request(text);
    if (request) this._generate(prompt, request, { text, tokens });
  }

  _select(place) {
    const forward = place > this._shown;
    this._shown = place;
    this.render();
    const steps = [...byId("completion").querySelectorAll(".step:not(:disabled)")];
    (forward ? steps.at(-1) : steps[0])?.focus();
  }

  _fill(text) {
    this._prompt.value = text;
    this._fit();
    this._prompt.focus();
    this.render();
  }
}

/** Return the last line of a prompt, which an output goes on from. */
function tail(prompt) {
  const line = prompt.slice(prompt.lastIndexOf("\n") + 1);
  return line.length > 200 ? `\u2026${line.slice(-200)}` : line;
}
