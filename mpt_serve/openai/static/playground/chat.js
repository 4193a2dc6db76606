// The chat tab: a conversation that is a tree, one response at a time.

import { Conversation } from "./conversation.js";
import { announce, byId, element, growing, oncePerFrame } from "./dom.js";
import { chooseExample, exampleList } from "./examples.js";
import { Generation } from "./generation.js";
import { chatRequest, continuedRequest } from "./requests.js";
import { server } from "./server.js";
import { showCode } from "./code.js";
import { TurnView } from "./turn-view.js";

const STORED = "mpt-serve-conversation";

/** The chat tab. settings: of its requests. report: shows an error of the settings. */
export class Chat {
  constructor(settings, report) {
    this._settings = settings;
    this._report = report;
    this._conversation = new Conversation();
    this._views = new WeakMap(); // of turns
    this._generation = null;
    this._follow = true; // the end of the conversation stays in view
    this._message = byId("message");
    this._system = byId("system");
    this._scroll = byId("chat-scroll");
    this._fit = growing(this._message);
    this._renderSoon = oncePerFrame(() => this.render());
    byId("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    byId("chat-stop").addEventListener("click", () => this.stop());
    byId("chat-clear").addEventListener("click", () => this._clear());
    byId("chat-code").addEventListener("click", () => this._showCode());
    byId("chat-examples").addEventListener("click", () => chooseExample("chat", (text) => this._fill(text)));
    byId("chat-start").replaceChildren(element("h2", { text: "Try one of these, or write a message" }), exampleList("chat", (text) => this._fill(text)));
    this._system.addEventListener("input", () => this._save());
    this._scroll.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = this._scroll;
      this._follow = scrollHeight - scrollTop - clientHeight < 60;
    });
    this._restore();
    this.render();
  }

  get running() {
    return this._generation?.running ?? false;
  }

  /** Send what has been written. */
  submit() {
    const text = this._message.value;
    const { last } = this._conversation;
    if (this.running || !server.ready || !server.chat) return;
    if (text.trim() === "" && last.role !== "user") return void this._message.focus();
    const request = this._request(text.trim() === "" ? [] : [{ role: "user", text }]);
    if (!request) return;
    const parent = text.trim() === "" ? last : this._conversation.add(last, "user", text);
    this._message.value = "";
    this._fit();
    this._generate(parent, request);
  }

  stop() {
    this._generation?.stop();
  }

  /** Show the conversation and what can be done now. */
  render() {
    const { path } = this._conversation;
    const wanted = path.map((turn) => this._viewOf(turn));
    wanted.forEach((view, number) => view.update(number === path.length - 1));
    sync(byId("turns"), wanted.map((view) => view.element));
    byId("chat-start").hidden = path.length > 0 || !server.chat;
    byId("chat-clear").hidden = path.length === 0;
    byId("chat-stop").hidden = !this.running;
    byId("chat-send").hidden = this.running;
    byId("chat-send").disabled = !server.ready || !server.chat;
    byId("no-chat").hidden = server.chat;
    byId("no-chat").textContent = server.chatRefusal;
    const usage = path.findLast((turn) => turn.generation?.usage)?.generation.usage;
    const limit = server.maxLength ? ` of ${server.maxLength.toLocaleString("en")}` : "";
    byId("context").textContent = usage ? `${usage.total_tokens.toLocaleString("en")}${limit} tokens of context used, ${usage.prompt_tokens_details?.cached_tokens ?? 0} from the prefix cache` : "";
    if (this._follow && path.length) this._scroll.scrollTop = this._scroll.scrollHeight;
  }

  _viewOf(turn) {
    if (!this._views.has(turn)) {
      this._views.set(turn, new TurnView(turn, {
        edit: (edited, text) => this._edit(edited, text),
        regenerate: (old) => this._regenerate(old),
        goOn: (old, text, tokens) => this._goOn(old, text, tokens),
        select: (shown, place) => this._select(shown, place),
        sendResults: (called, texts) => this._sendResults(called, texts),
      }));
    }
    return this._views.get(turn);
  }

  /** Return the request for a conversation: the shown one, or the turns before one, and further ones; null if none. */
  _request(more, before = this._conversation.path) {
    return this._built(() => chatRequest(server.model, this._system.value, [...before, ...more], this._settings));
  }

  _built(build) {
    try {
      return build();
    } catch (error) {
      this._report(error);
      return null;
    }
  }

  async _generate(parent, request, begun) {
    const generation = new Generation(request, begun);
    const turn = this._conversation.add(parent, "assistant", generation.text, { generation });
    this._generation = generation;
    this._follow = true;
    announce("The model writes");
    this.render();
    await generation.run(() => {
      turn.text = generation.text;
      turn.calls = generation.calls;
      this._renderSoon();
    });
    this.render();
    this._save();
    announce(generation.error ?? `The response is complete: ${generation.summary}`);
    if (document.activeElement === document.body) this._message.focus();
  }

  _edit(turn, text) {
    if (turn.role === "assistant") {
      this._conversation.edit(turn, text);
      this._save();
      return this.render();
    }
    if (this.running) return this.render();
    const request = this._request([{ ...turn, text }], this._conversation.before(turn));
    if (!request) return this.render();
    return this._generate(this._conversation.edit(turn, text), request);
  }

  _regenerate(turn) {
    if (this.running) return;
    const request = this._request([], this._conversation.before(turn));
    if (request) this._generate(turn.parent, request);
  }

  /** Add an alternative that goes on from a beginning of the response, or from all of it. */
  _goOn(turn, text, tokens) {
    if (this.running) return;
    const before = this._conversation.before(turn);
    const request = this._built(() => continuedRequest(server.model, this._system.value, before, text, this._settings));
    if (request) this._generate(turn.parent, request, { text, tokens });
  }

  _select(turn, place) {
    const label = place > turn.place ? "Next alternative" : "Previous alternative";
    this._conversation.select(turn, place);
    this._follow = false;
    this.render();
    this._viewOf(turn.siblings[turn.parent.selected]).focusBranches(label);
    this._save();
  }

  _sendResults(turn, texts) {
    if (this.running) return;
    const results = turn.calls.map((call, number) => ({ role: "tool", text: texts[number], callId: call.id }));
    const request = this._request(results, [...this._conversation.before(turn), turn]);
    if (!request) return;
    let parent = turn;
    for (const { text, callId } of results) parent = this._conversation.add(parent, "tool", text, { callId });
    this._generate(parent, request);
  }

  _fill(text) {
    this._message.value = text;
    this._fit();
    this._message.focus();
  }

  _clear() {
    this.stop();
    this._conversation.clear();
    this._save();
    this.render();
    this._message.focus();
  }

  _showCode() {
    const text = this._message.value;
    const { path } = this._conversation;
    const asked = path.slice(0, path.findLastIndex((turn) => turn.role === "user") + 1);
    const request = text.trim() === "" ? this._request([], asked) : this._request([{ role: "user", text }]);
    if (request) showCode(request);
  }

  /** Keep the conversation over a reload of this tab. */
  _save() {
    try {
      sessionStorage.setItem(STORED, JSON.stringify({ system: this._system.value, tree: this._conversation.save() }));
    } catch {
      sessionStorage.removeItem(STORED); // too large
    }
  }

  _restore() {
    try {
      const { system, tree } = JSON.parse(sessionStorage.getItem(STORED));
      this._conversation.load(tree);
      this._system.value = system;
    } catch {
      this._conversation.clear(); // nothing kept, or of another version of this page
    }
  }
}

/** Make an element's children the wanted ones; those that stay are not moved, so that the focus stays too. */
function sync(parent, wanted) {
  for (const child of [...parent.children]) if (!wanted.includes(child)) child.remove();
  wanted.forEach((child, number) => {
    if (parent.children[number] !== child) parent.insertBefore(child, parent.children[number] ?? null);
  });
}
