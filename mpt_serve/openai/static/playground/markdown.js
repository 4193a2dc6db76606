// Markdown as elements. Text becomes text nodes only, images are not loaded, and links leave the page in a new tab.

import { button, copyFrom, element } from "./dom.js";

const MAX_DEPTH = 6; // of quotes and lists inside of each other
const MAX_INLINE = 20_000; // characters of one block that emphasis is looked for in
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+)(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** Return a fragment that shows a text of Markdown. */
export function markdown(text) {
  return blocks(text.split("\n"), 0);
}

function blocks(lines, depth) {
  const made = document.createDocumentFragment();
  let at = 0;
  while (at < lines.length) {
    const [block, next] = blockAt(lines, at, depth);
    if (block) made.append(block);
    at = next;
  }
  return made;
}

/** Return the block that begins at a line, null for a blank one, and where the next begins. */
function blockAt(lines, at, depth) {
  const line = lines[at];
  if (line.trim() === "") return [null, at + 1];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [element("p", { class: `heading heading-${heading[1].length}` }, inline(heading[2])), at + 1];
  if (RULE.test(line)) return [element("hr"), at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (line.includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && DIVIDER.test(lines[at + 1])) return table(lines, at);
  return paragraph(lines, at, depth);
}

function code(lines, at, [, marks, language]) {
  let end = at + 1;
  while (end < lines.length && !(lines[end].trim().startsWith(marks) && lines[end].trim().replaceAll(marks[0], "") === "")) end++;
  const text = lines.slice(at + 1, end).join("\n");
  const copy = button("Copy", () => copyFrom(copy, text), { class: "quiet small" });
  const head = element("div", { class: "code-head" }, element("span", { text: language || "code" }), copy);
  const body = element("pre", { tabindex: 0, role: "group", "aria-label": language ? `Code, ${language}` : "Code" }, element("code", { text }));
  return [element("div", { class: "code" }, head, body), end + 1];
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [element("blockquote", {}, blocks(inner, depth + 1)), end];
}

function list(lines, at, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const made = element(ordered ? "ol" : "ul", ordered && parseInt(mark, 10) !== 1 ? { start: parseInt(mark, 10) } : {});
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || item[1].length !== indent.length || /\d/.test(item[2]) !== ordered || RULE.test(lines[end])) break;
    const inner = [item[4]];
    const inside = item[1].length + item[2].length + 1; // the column of its content
    for (end++; end < lines.length && (leading(lines[end]) >= inside || blankInside(lines, end, inside)); end++) {
      inner.push(lines[end].slice(inside));
    }
    made.append(element("li", {}, inner.length === 1 ? inline(inner[0]) : blocks(inner, depth + 1)));
  }
  return [made, end];
}

function leading(line) {
  return line.trim() === "" ? 0 : line.length - line.trimStart().length;
}

function blankInside(lines, at, inside) {
  return lines[at].trim() === "" && at + 1 < lines.length && leading(lines[at + 1]) >= inside;
}

function table(lines, at) {
  const row = (line, name) => element("tr", {}, ...cells(line).map((cell) => element(name, {}, inline(cell))));
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  const body = lines.slice(at + 2, end).map((line) => row(line, "td"));
  const made = element("table", {}, element("thead", {}, row(lines[at], "th")), element("tbody", {}, ...body));
  return [element("div", { class: "table", tabindex: 0, role: "group", "aria-label": "Table" }, made), end];
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  const begins = (line) => FENCE.test(line) || HEADING.test(line) || (depth < MAX_DEPTH && (QUOTE.test(line) || ITEM.test(line)));
  while (end < lines.length && lines[end].trim() !== "" && !begins(lines[end])) end++;
  return [element("p", {}, inline(lines.slice(at, end).join("\n"))), end];
}

const INLINE = new RegExp(
  [
    "(?<ticks>`+)(?<code>[^`]+?)\\k<ticks>",
    "\\*\\*(?<bold>[^*\\n]+?)\\*\\*",
    "__(?<bold2>[^_\\n]+?)__(?!\\w)",
    "\\*(?<italic>[^*\\s][^*\\n]*?)\\*",
    "(?<!\\w)_(?<italic2>[^_\\s][^_\\n]*?)_(?!\\w)",
    "~~(?<gone>[^~\\n]+?)~~",
    "(?<image>!?)\\[(?<label>[^\\]\\n]+)\\]\\((?<target>https?://[^\\s)]+)\\)",
    "(?<url>https?://[^\\s<>)\\]\"']+)",
    "\\\\(?<escaped>[\\\\`*_{}\\[\\]()#+.!|~>-])",
  ].join("|"),
  "g",
);

/** Return a fragment with emphasis, code and links of one block's text. */
function inline(text) {
  const made = document.createDocumentFragment();
  let at = 0;
  for (const match of text.length > MAX_INLINE ? [] : text.matchAll(INLINE)) {
    made.append(text.slice(at, match.index), span(match.groups));
    at = match.index + match[0].length;
  }
  made.append(text.slice(at));
  return made;
}

function span(found) {
  if (found.code !== undefined) return element("code", { text: found.code });
  if (found.bold ?? found.bold2) return element("strong", {}, inline(found.bold ?? found.bold2));
  if (found.italic ?? found.italic2) return element("em", {}, inline(found.italic ?? found.italic2));
  if (found.gone) return element("del", { text: found.gone });
  if (found.label) return link(found.image ? `image: ${found.label}` : found.label, found.target);
  if (found.url) return link(found.url, found.url);
  return document.createTextNode(found.escaped);
}

function link(text, target) {
  return element("a", { href: target, title: target, target: "_blank", rel: "noopener noreferrer nofollow", text });
}
