// The API key: asked for when the server wants one, kept in this tab's session storage.

import { byId } from "./dom.js";

const STORED = "mpt-serve-api-key";

const dialog = byId("key-dialog");
const field = byId("key");
const problem = byId("key-error");
const change = byId("change-key");

let asking = null; // the open question, shared by all requests that wait for it

/** Return the key that requests carry, or null. */
export function apiKey() {
  return sessionStorage.getItem(STORED);
}

/** The user has closed the question without a key. */
export class NoKeyError extends Error {
  constructor() {
    super("This server needs an API key. Press \u201cAPI key\u201d above to enter one.");
  }
}

/** Ask for a key. message: what was wrong with the last one. Rejects with NoKeyError if the user enters none. */
export function askForKey(message = "") {
  change.hidden = false;
  asking ??= new Promise((resolve, reject) => {
    field.value = "";
    problem.textContent = message;
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        if (dialog.returnValue !== "use") return reject(new NoKeyError());
        sessionStorage.setItem(STORED, field.value.trim());
        field.value = "";
        return resolve();
      },
      { once: true },
    );
    dialog.showModal();
    field.focus();
  });
  return asking;
}

/** Make the dialog's buttons work. onChange: called after the user has replaced the key without being asked. */
export function startAccess(onChange) {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close("use");
  });
  byId("key-cancel").addEventListener("click", () => dialog.close(""));
  change.hidden = apiKey() === null;
  change.addEventListener("click", () => askForKey().then(onChange, () => {}));
}
