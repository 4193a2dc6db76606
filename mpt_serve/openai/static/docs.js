"use strict";
// Renders the OpenAPI document. All of its text is set as text, never as HTML.

const main = document.getElementById("operations");
const access = document.getElementById("access");

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function resolved(schema, root) {
  while (schema && schema.$ref) schema = root.components.schemas[schema.$ref.split("/").pop()];
  return schema || {};
}

// A schema in a few words; `null` is left out, since every field may be null.
function words(schema, root) {
  if (schema["x-accepts"]) return schema["x-accepts"];
  if (schema.$ref) {
    const target = resolved(schema, root);
    return target.type === "object" ? schema.$ref.split("/").pop() : words(target, root);
  }
  const options = schema.anyOf || schema.oneOf;
  if (options) return options.filter((o) => o.type !== "null").map((o) => words(o, root)).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.type === "array") return "array of " + words(schema.items || {}, root);
  const bounds = [];
  if ("minimum" in schema) bounds.push("from " + schema.minimum);
  if ("exclusiveMinimum" in schema) bounds.push("above " + schema.exclusiveMinimum);
  if ("maximum" in schema) bounds.push("to " + schema.maximum);
  return [schema.type || "any JSON", ...bounds].join(" ");
}

function fields(schema, root) {
  const target = resolved(schema, root);
  const options = target.anyOf || target.oneOf;
  if (options) return element("div", "", ...options.map((option) => fields(option, root)));
  if (!target.properties) return element("p", words(schema, root));
  const rows = Object.entries(target.properties).map(([name, field]) => {
    const required = (target.required || []).includes(name);
    const fallback = required ? "required" : field["x-default"] || JSON.stringify(field.default ?? null);
    const cells = [words(field, root), fallback, field.description || ""];
    return element("tr", "", element("td", "", element("code", name)), ...cells.map((cell) => element("td", cell)));
  });
  const head = element("tr", "", ...["field", "accepts", "default", "meaning"].map((name) => element("th", name)));
  const table = element("table", "", element("thead", "", head), element("tbody", "", ...rows));
  const frame = element("div", "", element("h3", target.title || ""), table);
  frame.className = "table";
  return frame;
}

function curl(path, body, base) {
  const address = base + path;
  if (!body) return `curl ${address}`;
  return `curl ${address} -H 'Content-Type: application/json' -d '${JSON.stringify(body.example)}'`;
}

function operation(path, method, described, root, base) {
  const name = element("span", method);
  name.className = "method";
  const summary = element("summary", "", name, element("code", path), " ", described.summary || "");
  const block = element("details", "", summary);
  block.id = described.operationId;
  block.addEventListener("toggle", () => {
    if (!block.open || block.childElementCount > 1) return;
    const body = described.requestBody?.content["application/json"];
    block.append(element("pre", curl(path, body, base)));
    if (body) block.append(element("h2", "Request"), fields(body.schema, root));
    for (const [kind, content] of Object.entries(described.responses["200"].content)) {
      const json = content.schema.properties?.data?.contentSchema || content.schema; // of an event: its data
      block.append(element("h2", "Response, " + kind), fields(json, root));
    }
  });
  return block;
}

function render(root) {
  const base = new URL(root.servers[0].url, location.href).href.replace(/\/$/, "");
  document.getElementById("about").textContent = `${root.info.title} ${root.info.version}: ${root.info.description}`;
  const blocks = Object.entries(root.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, described]) => operation(path, method, described, root, base)));
  main.replaceChildren(...blocks);
  document.getElementById(location.hash.slice(1))?.setAttribute("open", "");
}

async function load(key) {
  const response = await fetch("openapi.json", key ? { headers: { Authorization: `Bearer ${key}` } } : {});
  access.hidden = response.status !== 401;
  if (!response.ok) throw new Error(`openapi.json: ${response.status}`);
  render(await response.json());
}

function start(key) {
  load(key).catch((error) => main.replaceChildren(element("p", error.message)));
}

access.addEventListener("submit", (event) => {
  event.preventDefault();
  start(document.getElementById("key").value);
});
start();
