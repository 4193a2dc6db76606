// Elements made of plain data. Text is set as text: nothing here or elsewhere in this page parses HTML.

/** Return the element of the page with an id. */
export function byId(id) {
  return document.getElementById(id);
}

/**
 * Return a new element.
 * properties: `class`, `text`, `on` (listeners by event), `data` (dataset); all others are attributes, where false and
 * null leave one out and true sets it without a value.
 */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key === "text") made.textContent = value;
    else if (key === "on") Object.entries(value).forEach(([type, listener]) => made.addEventListener(type, listener));
    else if (key === "data") Object.assign(made.dataset, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Return a button that is no submit button. */
export function button(text, onClick, properties = {}) {
  return element("button", { type: "button", text, on: { click: onClick }, ...properties });
}

/** Call `work` once before the next frame, however often the returned function is called until then. */
export function oncePerFrame(work) {
  let pending = false;
  return () => {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => {
      pending = false;
      work();
    });
  };
}

/** Say something to screen readers without moving the focus. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** Copy a text; the button says for a moment that it is done, or that the browser does not allow it. */
export async function copyFrom(pressed, text) {
  const label = pressed.textContent;
  try {
    await navigator.clipboard.writeText(text);
    pressed.textContent = "Copied";
    announce("Copied");
  } catch {
    pressed.textContent = "Not allowed";
  }
  setTimeout(() => {
    pressed.textContent = label;
  }, 1500);
}

/** Let a text area grow with its text, up to the height that the style sheet allows. */
export function growing(area) {
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
  };
  area.addEventListener("input", fit);
  return fit;
}
