// Starts the page: tabs, settings, keys of the keyboard, and what follows from the server's state.

import { startAccess } from "./access.js";
import { Chat } from "./chat.js";
import { startCode } from "./code.js";
import { Compare } from "./compare.js";
import { announce, byId, element } from "./dom.js";
import { startExamples } from "./examples.js";
import { Instruct } from "./instruct.js";
import { Panel } from "./panel.js";
import { loadModel, onServerChange, server, watchServer } from "./server.js";
import { Settings, SettingError } from "./settings.js";
import { tabs } from "./tabs.js";
import { startTheme } from "./theme.js";

const SIDES = [
  { name: "Settings A", settings: new Settings("a") },
  { name: "Settings B", settings: new Settings("b", { temperature: "0" }) },
];
const NARROW = matchMedia("(max-width: 60rem)");

const panel = new Panel(() => modes.compare.render());
const modes = {
  chat: new Chat(SIDES[0].settings, report),
  instruct: new Instruct(SIDES[0].settings, report),
  compare: new Compare(SIDES, report, () => side),
};
let mode = "chat";
let side = 0; // the settings that the panel shows

function showSide(number) {
  side = number;
  panel.show(SIDES[side].settings);
  for (const radio of byId("sides").querySelectorAll("input")) radio.checked = Number(radio.value) === side;
}

function startSides() {
  const radios = SIDES.map(({ name }, number) => {
    const radio = element("input", { type: "radio", name: "side", value: number });
    radio.addEventListener("change", () => showSide(number));
    return element("label", { class: "side" }, radio, element("span", { text: name }));
  });
  byId("sides").replaceChildren(...radios);
}

/** Show an error of the settings at its field, or any other one to screen readers and in the console. */
function report(error) {
  if (!(error instanceof SettingError)) throw error;
  const wrong = SIDES.findIndex(({ settings }) => {
    try {
      settings.chatFields();
      return false;
    } catch {
      return true;
    }
  });
  if (wrong >= 0 && mode === "compare") showSide(wrong);
  openSettings(true);
  panel.showProblem(error);
  announce(error.message);
}

function openSettings(open) {
  document.body.classList.toggle("with-settings", open);
  byId("settings").hidden = !open;
  byId("toggle-settings").setAttribute("aria-expanded", String(open));
}

function startSettings() {
  const toggle = byId("toggle-settings");
  toggle.addEventListener("click", () => {
    openSettings(byId("settings").hidden);
    if (NARROW.matches && !byId("settings").hidden) byId("close-settings").focus();
  });
  byId("close-settings").addEventListener("click", () => {
    openSettings(false);
    toggle.focus();
  });
  byId("reset-settings").addEventListener("click", () => {
    SIDES[side].settings.reset();
    showSide(side);
    modes.compare.render();
    announce("The settings are as at the beginning");
  });
  openSettings(!NARROW.matches);
  NARROW.addEventListener("change", () => openSettings(!NARROW.matches));
}

const selectTab = tabs(document.querySelector('header [role="tablist"]'), (tab) => {
  mode = tab.id.replace("tab-", "");
  byId("sides").hidden = mode !== "compare";
  if (mode !== "compare" && side !== 0) showSide(0);
});

function onKey(event) {
  if (document.querySelector("dialog[open]")) return; // which has its own keys
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    modes[mode].submit();
  } else if (event.key === "Escape") {
    if (modes[mode].running) modes[mode].stop();
    else if (NARROW.matches && !byId("settings").hidden) byId("close-settings").click();
  }
}

function onServer() {
  if (server.model) {
    const limit = server.maxLength ? `, ${server.maxLength.toLocaleString("en")} tokens` : "";
    byId("model").textContent = `${server.model}${limit}`;
    document.title = `${server.model}: playground`;
  }
  if (!server.chat && mode === "chat" && !onServer.moved) {
    onServer.moved = true; // once: the tab stays reachable, and says why it cannot be used
    selectTab(byId("tab-instruct"));
  }
  Object.values(modes).forEach((own) => own.render());
}

startTheme(byId("theme"));
startSides();
startSettings();
showSide(0);
startCode();
startExamples();
startAccess(() => loadModel().catch((error) => announce(error.message)));
onServerChange(onServer);
document.addEventListener("keydown", onKey);
byId("prompt").addEventListener("input", () => modes.instruct.render());
const named = location.hash.slice(1);
if (Object.hasOwn(modes, named)) selectTab(byId(`tab-${named}`)); // links such as /#instruct
watchServer();
