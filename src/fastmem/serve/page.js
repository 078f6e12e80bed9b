"use strict";
const $ = id => document.getElementById(id);
let model = null, tokens = [], used = null;  // used: the stored memory that answers, chosen in the list

function headers() {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: "Bearer " + key } : {}) };
}

async function call(path, body, signal, method) {
  const found = await fetch(path.slice(1), { method: method || (body ? "POST" : "GET"), headers: headers(), body: body && JSON.stringify(body), signal });
  if (found.ok) return found;
  if (found.status === 401) $("key-field").hidden = false;
  const text = await found.text();
  let message = text;
  try { message = JSON.parse(text).error.message; } catch {}
  throw new Error(message || "the server responded with status " + found.status);
}

async function fetchModel() {
  if (model) return;
  model = (await (await call("/v1/models")).json()).data[0].id;
  $("model").textContent = model;
}

// Calls `each` with the object of every server-sent event.
async function readEvents(found, each) {
  const reader = found.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) each(JSON.parse(line.slice(6)));
  }
}

// Streams one answer into its place; returns its costs and usage.
async function answer(side, body, signal) {
  const place = $("answer-" + side), started = performance.now(), end = {};
  const options = { stream: true, stream_options: { include_usage: true } };
  await readEvents(await call("/v1/chat/completions", { ...body, ...options }, signal), one => {
    if (one.error) throw new Error(one.error.message);
    if (one.fastmem) end.costs = one.fastmem;
    if (one.usage) end.usage = one.usage;
    for (const choice of one.choices) place.textContent += choice.delta.content || "";
  });
  if (!place.textContent) place.textContent = "\u2014";
  end.total = (performance.now() - started) / 1000;
  const read = end.usage.prompt_tokens - end.usage.prompt_tokens_details.cached_tokens;
  $("note-" + side).textContent = end.usage.completion_tokens + " tokens in " + seconds(end.total) + ", first after "
    + seconds(end.costs.first_token_seconds) + "; " + read + " of " + end.usage.prompt_tokens + " prompt tokens read";
  if (side === "memory" && end.costs.notice) $("notice-memory").textContent = end.costs.notice + " On this page, set it under Options.";
  return end;
}

const seconds = s => s < 1 ? Math.round(s * 1000) + " ms" : s.toFixed(2) + " s";
const decimals = n => n === null ? "not finite" : n.toFixed(2);
const mega = b => b >= 1e6 ? (b / 1e6).toFixed(1) + " MB" : (b / 1e3).toFixed(0) + " kB";

const nameOf = memory => memory.name || memory.id;

// An answer without the words around it.
const plain = answer => answer.replace(/^.*the answer is:\s*/is, "").replace(/[.\s]+$/, "");

// The characters of the document that the answer repeats: [start, end) of every occurrence.
function sourceSpans(text, answer) {
  const wanted = plain(answer).toLowerCase(), spans = [];
  for (let at = text.toLowerCase().indexOf(wanted); wanted && at >= 0; at = text.toLowerCase().indexOf(wanted, at + 1)) {
    spans.push([at, at + wanted.length]);
  }
  return spans;
}

function showTokens() {
  const side = document.querySelector("input[name=side]:checked").value;
  const most = Math.max(2, ...tokens.map(t => t.before)) * 0.8, shown = tokens.filter(t => t.text);
  const spans = sourceSpans(shown.map(t => t.text).join(""), $("answer-memory").textContent);
  $("most").textContent = most.toFixed(1);
  $("document-view").parentElement.classList.toggle("change", side === "change");
  let at = 0;
  $("document-view").replaceChildren(...shown.map((t, i) => {
    const span = document.createElement("span"), value = side === "change" ? Math.max(0, t.before - t.after) : t[side];
    const start = at, end = at += t.text.length;
    span.textContent = t.text;
    span.style.background = "rgba(var(--" + (side === "change" ? "cool" : "warm") + "), calc(var(--strength) * "
      + Math.min(value / most, 1).toFixed(3) + "))";
    span.className = spans.some(([from, to]) => start < to && end > from && t.text.trim()) ? "source" : "";
    span.tabIndex = i ? -1 : 0;
    span.setAttribute("role", "option");
    span.setAttribute("aria-label", t.text.trim() + ", " + valuesOf(t));
    for (const event of ["focus", "click", "mouseenter"]) span.addEventListener(event, () => showToken(t));
    return span;
  }));
}

const valuesOf = t => decimals(t.before) + " nats before, " + decimals(t.after) + " after";

function showToken(t) { $("token-note").textContent = "\u201c" + t.text.trim() + "\u201d: " + valuesOf(t); }

function moveToken(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], all = [...$("document-view").children];
  const next = step && all[all.indexOf(document.activeElement) + step];
  if (!next) return;
  event.preventDefault();
  document.activeElement.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function showCurve(trace) {
  if (!trace.length) { $("curve").textContent = "no steps"; return; }
  const em = parseFloat(getComputedStyle($("curve")).fontSize) / 16, w = Math.max($("curve").clientWidth, 240);
  const h = Math.round(120 * em + w / 7), left = 38 * em, bottom = 24 * em, top = 10, right = 12 * em;
  const most = Math.max(...trace.map(s => Math.max(s.loss, s.kl))) * 1.05, last = Math.max(trace.length - 1, 1);
  const x = i => left + (w - left - right) * i / last, y = v => top + (h - top - bottom) * (1 - v / most);
  const path = key => trace.map((s, i) => (i ? "L" : "M") + x(i).toFixed(1) + " " + y(s[key]).toFixed(1)).join("");
  const ticks = [0, most / 2, most].map(v => `<line x1="${left}" x2="${w - right}" y1="${y(v)}" y2="${y(v)}" stroke="var(--line)"/>`
    + `<text x="${left - 6}" y="${y(v) + 4 * em}" text-anchor="end">${v.toFixed(1)}</text>`).join("");
  $("curve").innerHTML = `<svg viewBox="0 0 ${w} ${h}" role="img" aria-label="loss from ${trace[0].loss.toFixed(2)} to `
    + `${trace.at(-1).loss.toFixed(2)}">${ticks}<path d="${path("kl")}" fill="none" stroke="var(--base)" stroke-width="1.5" `
    + `stroke-dasharray="4 3"/><path d="${path("loss")}" fill="none" stroke="var(--accent)" stroke-width="2.5"/>`
    + `<text x="${left}" y="${h - 5 * em}">step 0</text><text x="${w - right}" y="${h - 5 * em}" text-anchor="end">${trace.length - 1}</text>`
    + `<text x="${(w + left) / 2}" y="${h - 5 * em}" text-anchor="middle">loss \u2014   KL to the base model - -</text></svg>`;
}

function showCosts(memory, base, tuned, making) {
  const rows = [["", "base model", "with memory"],
    ["memory available after", "", making === null ? "none" : seconds(making)],
    ["first token", seconds(base.costs.first_token_seconds), seconds(tuned.costs.first_token_seconds)],
    ["complete answer", seconds(base.total), seconds(tuned.total)],
    ["prompt tokens reused", base.usage.prompt_tokens_details.cached_tokens, tuned.usage.prompt_tokens_details.cached_tokens],
    ["memory", "", memory ? mega(memory.bytes) : "none"]];
  $("costs").replaceChildren(...rows.map((cells, i) => {
    const row = document.createElement("tr");
    row.append(...cells.map(cell => Object.assign(document.createElement(i || !cell ? "td" : "th"), { textContent: cell })));
    return row;
  }));
}

// Makes the memory of the documents, with a line for every step; returns it.
async function memorize(documents, recipe, name, signal) {
  $("making").hidden = false;
  $("progress-note").textContent = "waiting";
  $("progress").removeAttribute("value");
  try {
    const found = await call("/v1/memories", { documents, name: name || null, fastmem: { recipe }, stream: true }, signal);
    let memory = null;
    await readEvents(found, one => {
      if (one.error) throw new Error(one.error.message);
      if (one.object !== "memory.progress") { memory = one; return; }
      $("progress").max = one.steps;
      $("progress").value = one.step + 1;
      $("progress-note").textContent = "step " + (one.step + 1) + " of " + one.steps + ", loss " + decimals(one.loss);
    });
    return memory;
  } finally { $("making").hidden = true; }
}

// The recipe's fields that were filled in. Throws before anything is sent.
function wantedRecipe() {
  const recipe = {}, steps = $("steps").value.trim(), rate = $("rate").value.trim();
  if (steps !== "" && !/^\d+$/.test(steps)) throw new Error("Steps is \u201c" + steps + "\u201d: give a whole number, or leave it empty.");
  if (rate !== "" && !(Number(rate) > 0)) throw new Error("Learning rate is \u201c" + rate + "\u201d: give a number such as 1e-4, or leave it empty.");
  if (steps !== "") recipe.steps = Number(steps);
  if (rate !== "") recipe.learning_rate = Number(rate);
  return recipe;
}

async function ask(signal) {
  const recipe = wantedRecipe(), text = $("document").value.trim(), method = $("method").value;
  await fetchModel();
  const documents = text ? [{ text }] : [], messages = [{ role: "user", content: $("question").value.trim() }];
  const body = { model, documents, messages, max_tokens: 100 }, memorized = method.startsWith("fastmem");
  for (const name of ["answer-base", "answer-memory", "note-base", "note-memory", "notice-memory", "verdict"]) $(name).textContent = "";
  $("title-memory").textContent = !memorized ? "With " + method : used ? "With the memory " + nameOf(used) : "With the document memorized";
  $("results").hidden = true;
  const base = answer("base", { ...body, fastmem: { method: "base" } }, signal);
  base.catch(() => {});
  const began = performance.now(), makes = memorized && !used;
  const memory = makes ? await memorize(documents, recipe, $("name").value.trim(), signal) : memorized ? used : null;
  const making = makes ? (performance.now() - began) / 1000 : null;
  const wanted = makes ? { ...body, fastmem: { method, recipe } }
    : { ...body, model: memory ? nameOf(memory) : model, fastmem: { method } };
  const [one, other] = await Promise.all([base, answer("memory", wanted, signal)]);
  tokens = makes ? (await (await call("/v1/memories/" + memory.id + "/surprise", { documents }, signal)).json()).tokens : [];
  $("document-view").parentElement.hidden = !makes;
  $("curve").parentElement.hidden = !memory;
  $("results").hidden = false;
  showVerdict(text);
  showCosts(memory, one, other, making);
  showCode(wanted);
  if (makes) { showTokens(); await showMemories(); }
  if (memory) showCurve(memory.trace);
}

// What the two answers say about the document, in a sentence.
function showVerdict(text) {
  const [base, tuned] = ["base", "memory"].map(side => plain($("answer-" + side).textContent));
  const inDocument = answer => sourceSpans(text, answer).length > 0;
  $("verdict").textContent = base.toLowerCase() === tuned.toLowerCase() ? "Both answers are the same."
    : inDocument(tuned) && !inDocument(base) ? "The model alone answers \u201c" + base + "\u201d, which the document does not say. "
      + "Now it answers \u201c" + tuned + "\u201d, as the document does."
    : "The answers differ.";
}

let code = {};
function showCode(body) {
  const url = location.origin + location.pathname.replace(/[^/]*$/, "") + "v1", json = JSON.stringify(body, null, 2);
  const { documents, fastmem, ...rest } = body, extra = { documents, fastmem };
  const key = $("key").value ? " -H 'authorization: Bearer YOUR_KEY'" : "";
  code.curl = `curl ${url}/chat/completions -H 'content-type: application/json'${key} -d '${json.replaceAll("'", "'\\''")}'`;
  code.python = "from openai import OpenAI\n\nai = OpenAI(base_url=" + JSON.stringify(url) + ', api_key="YOUR_KEY")\n'
    + "answer = ai.chat.completions.create(\n    **" + JSON.stringify(rest) + ",\n    extra_body=" + JSON.stringify(extra)
    + ",\n)\nprint(answer.choices[0].message.content)";
  $("code").textContent = code.curl;
}

async function copy(event) {
  $("code").textContent = code[event.target.dataset.copy];
  const said = event.target.textContent;
  try { await navigator.clipboard.writeText($("code").textContent); event.target.textContent = "Copied"; }
  catch { event.target.textContent = "Shown below"; }
  setTimeout(() => { event.target.textContent = said; }, 1500);
}

async function showMemories() {
  const found = await (await call("/v1/memories?limit=50")).json();
  $("memories").replaceChildren(...found.data.map(memoryRow));
  const count = found.data.length;
  $("memories-note").textContent = count ? count + (found.has_more ? " and more" : "") : "none yet";
}

function memoryRow(memory) {
  const row = document.createElement("tr"), actions = document.createElement("td");
  for (const text of [nameOf(memory), memory.titles.filter(Boolean).join(", "), memory.document_tokens + " tokens", mega(memory.bytes)]) {
    row.append(Object.assign(document.createElement("td"), { textContent: text }));
  }
  for (const [label, act] of [["Use", use], ["Download", download], ["Delete", remove]]) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "plain", textContent: label });
    button.setAttribute("aria-label", label + " the memory " + nameOf(memory));
    button.addEventListener("click", () => Promise.resolve(act(memory)).catch(error => { $("problem").textContent = error.message; }));
    actions.append(button, " ");
  }
  row.append(actions);
  return row;
}

// Answer with a stored memory from now on; null: with the memory of the document again.
function use(memory) {
  used = memory;
  $("used").hidden = !memory;
  $("document").required = !memory;
  $("used-name").textContent = memory ? nameOf(memory) : "";
  if (memory) $("question").focus();
}

async function download(memory) {
  const file = await (await call("/v1/memories/" + memory.id + "/content")).blob();
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: nameOf(memory) + ".safetensors" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function remove(memory) {
  await call("/v1/memories/" + memory.id, null, null, "DELETE");
  if (used && used.id === memory.id) use(null);
  await showMemories();
}

async function showExamples() {
  const found = await (await fetch("examples")).json();
  $("embedded").hidden = !found.length;
  $("examples").replaceChildren(...found.map(one => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "plain", textContent: one.question });
    button.addEventListener("click", () => {
      use(null);
      $("document").value = one.document;
      $("question").value = one.question;
      countTokens();
      $("form").requestSubmit();
    });
    return button;
  }));
}

// How many tokens the document is, while it is typed.
let counting = null;
function countTokens() {
  clearTimeout(counting);
  counting = setTimeout(async () => {
    const prompt = $("document").value.trim();
    if (!prompt) { $("count").textContent = ""; return; }
    try {
      const found = await (await call("/tokenize", { prompt })).json();
      const limit = found.max_model_len, over = limit && found.count >= limit;
      $("count").textContent = found.count + (limit ? " of at most " + limit : "") + " tokens" + (over ? ": too long for this model" : "");
      $("count").classList.toggle("over", Boolean(over));
    } catch (error) { $("count").textContent = error.message; $("count").classList.add("over"); }
  }, 400);
}
$("document").addEventListener("input", countTokens);

let running = null;
$("form").addEventListener("submit", async event => {
  event.preventDefault();
  $("problem").textContent = "";
  $("ask").disabled = true;
  running = new AbortController();
  try { await ask(running.signal); }
  catch (error) { $("problem").textContent = error.name === "AbortError" ? "Cancelled." : error.message; running.abort(); }
  $("ask").disabled = false;
});
$("cancel").addEventListener("click", () => running.abort());
$("unused").addEventListener("click", () => use(null));
$("document-view").addEventListener("keydown", moveToken);
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", copy);
for (const radio of document.querySelectorAll("input[name=side]")) radio.addEventListener("change", showTokens);
fetchModel().then(showMemories).catch(() => {});
showExamples().catch(() => {});
