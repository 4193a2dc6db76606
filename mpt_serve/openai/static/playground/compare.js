// The compare tab: one prompt with two settings, side by side.

import { showCode } from "./code.js";
import { announce, byId, element, growing, oncePerFrame } from "./dom.js";
import { chooseExample } from "./examples.js";
import { Generation } from "./generation.js";
import { Output } from "./output.js";
import { chatRequest, completionRequest } from "./requests.js";
import { server } from "./server.js";

/**
 * The compare tab. sides: [{name, settings}] of its two columns. report: shows an error of the settings.
 * shownSide: returns the number of the settings that the panel shows, whose request "Code" shows.
 */
export class Compare {
  constructor(sides, report, shownSide) {
    this._report = report;
    this._prompt = byId("compare-prompt");
    this._fit = growing(this._prompt);
    this._renderSoon = oncePerFrame(() => this.render());
    this._columns = sides.map(({ name, settings }) => column(name, settings));
    byId("columns").replaceChildren(...this._columns.map(({ made }) => made));
    byId("compare-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    byId("compare-stop").addEventListener("click", () => this.stop());
    byId("compare-examples").addEventListener("click", () => chooseExample(this._asChat ? "chat" : "text", (text) => this._fill(text)));
    byId("compare-code").addEventListener("click", () => {
      const requests = this._requests();
      if (requests) showCode(requests[shownSide()]);
    });
    this.render();
  }

  get running() {
    return this._columns.some(({ generation }) => generation?.running);
  }

  /** Run the prompt with both settings at the same time. */
  async submit() {
    if (this.running || !server.ready) return;
    if (this._prompt.value.trim() === "") return void this._prompt.focus();
    const requests = this._requests();
    if (!requests) return;
    announce("The model writes twice");
    const runs = this._columns.map((own, number) => {
      own.generation = new Generation(requests[number]);
      own.output = new Output({ plain: !this._asChat });
      own.place.replaceChildren(own.output.element);
      return own.generation.run(() => this._renderSoon());
    });
    this.render();
    await Promise.all(runs);
    this.render();
    announce("Both outputs are complete");
  }

  stop() {
    this._columns.forEach(({ generation }) => generation?.stop());
  }

  /** Show both outputs, what differs between the settings, and what can be done now. */
  render() {
    byId("compare-stop").hidden = !this.running;
    byId("compare-send").hidden = this.running;
    byId("compare-send").disabled = !server.ready;
    byId("compare-as").disabled = !server.chat;
    if (!server.chat) byId("compare-as").value = "instruct";
    this._columns.forEach((own, number) => {
      const other = this._columns[1 - number];
      const differences = own.settings.differences(other.settings);
      own.differences.replaceChildren(...(differences.length ? differences : ["the same settings"]).map((text) => element("li", { text })));
      if (!own.generation) return;
      const calls = own.generation.calls.map(({ name, args }) => `\n\n\`${name}(${args})\``).join("");
      own.output.update(own.generation.text + calls, own.generation);
    });
  }

  get _asChat() {
    return byId("compare-as").value === "chat";
  }

  _requests() {
    const text = this._prompt.value;
    try {
      return this._columns.map(({ settings }) =>
        this._asChat
          ? chatRequest(server.model, "", [{ role: "user", text }], settings)
          : completionRequest(server.model, text, settings));
    } catch (error) {
      this._report(error);
      return null;
    }
  }

  _fill(text) {
    this._prompt.value = text;
    this._fit();
    this._prompt.focus();
  }
}

function column(name, settings) {
  const differences = element("ul", { class: "differences", "aria-label": `What is different in ${name}` });
  const place = element("div", {}, element("p", { class: "empty", text: "No output yet." }));
  const made = element("section", { class: "column", "aria-label": `Output of ${name}` }, element("h2", { class: "role", text: name }), differences, place);
  return { made, differences, place, settings, generation: null, output: null };
}
