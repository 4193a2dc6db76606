// What the page knows of the server: whether it is ready, which model it serves, and whether that takes conversations.

import { json, send } from "./api.js";
import { byId } from "./dom.js";

const LOADING_MS = 1000; // between two polls
const READY_MS = 30_000;

/** The served model, as soon as it is known. */
export const server = { ready: false, model: "", maxLength: null, chat: true, chatRefusal: "" };

const listeners = [];
let refusal = null; // why the model's name could not be read from a server that is ready

/** Call a function each time that `server` has changed. */
export function onServerChange(listener) {
  listeners.push(listener);
}

/** Watch the server for as long as the page is open. */
export async function watchServer() {
  const begun = performance.now();
  for (;;) {
    const problem = await poll();
    const changed = server.ready !== (problem === null);
    server.ready = problem === null;
    if (changed && server.ready) await loadModel().catch((error) => (refusal = { title: "The server refuses this page", detail: error.message }));
    showState(problem ?? refusal, begun);
    if (changed) listeners.forEach((listener) => listener());
    await pause(server.ready ? READY_MS : LOADING_MS);
  }
}

/** Read the model's name and limits again, with the key that there is now. Rejects with ApiError or NoKeyError. */
export async function loadModel() {
  const { data } = await json("v1/models");
  const info = await json("tokenizer_info");
  const [model] = data;
  Object.assign(server, { model: model.id, maxLength: model.max_model_len || null, chat: info.chat_template !== null });
  server.chatRefusal = server.chat ? "" : await chatRefusal();
  refusal = null;
  byId("state").hidden = server.ready;
  listeners.forEach((listener) => listener());
}

async function chatRefusal() {
  try {
    await json("tokenize", { messages: [{ role: "user", content: "a" }] });
    return "";
  } catch (error) {
    return error.message;
  }
}

/** Return what is wrong, null if the server is ready. */
async function poll() {
  try {
    const response = await send("ready");
    if (response.ok) return null;
    const body = await response.json().catch(() => null);
    const detail = body?.error?.message ?? `Status ${response.status}.`;
    return body?.error?.code === "loading"
      ? { title: "The model is loading", detail, loading: true, progress: body.loading?.progress }
      : { title: "The server takes no requests now", detail };
  } catch (error) {
    return { title: "No connection", detail: error.message };
  }
}

function showState(problem, begun) {
  byId("state").hidden = problem === null;
  if (problem === null) return;
  byId("state-title").textContent = problem.title;
  const seconds = Math.round((performance.now() - begun) / 1000);
  const waited = problem.loading && !server.model ? ` ${seconds} s so far; you can write your first message meanwhile.` : "";
  const detail = problem.detail === `${problem.title}.` ? "" : problem.detail;
  byId("state-detail").textContent = `${detail}${waited}`.trim();
  const bar = byId("state-progress");
  bar.hidden = !problem.loading;
  if (problem.progress === undefined) bar.removeAttribute("value");
  else bar.value = problem.progress;
}

/** Wait; at once over when the user comes back to the page. */
function pause(milliseconds) {
  return new Promise((resolve) => {
    const listening = new AbortController();
    const over = () => {
      clearTimeout(timer);
      listening.abort();
      resolve();
    };
    const timer = setTimeout(over, milliseconds);
    document.addEventListener("visibilitychange", over, { signal: listening.signal });
  });
}
