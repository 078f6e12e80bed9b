"use strict";
const $ = id => document.getElementById(id);
let model = null, tokens = [];

function headers() {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: "Bearer " + key } : {}) };
}

async function call(path, body) {
  const found = await fetch(path, { method: body ? "POST" : "GET", headers: headers(), body: body && JSON.stringify(body) });
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

// Reads the server-sent events of one answer; returns its costs and usage.
async function stream(body, onText) {
  const found = await call("/v1/chat/completions", { ...body, stream: true, stream_options: { include_usage: true } });
  const reader = found.body.pipeThrough(new TextDecoderStream()).getReader();
  const end = {};
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return end;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: {")) continue;
      const one = JSON.parse(line.slice(6));
      if (one.error) throw new Error(one.error.message);
      if (one.fastmem) end.costs = one.fastmem;
      if (one.usage) end.usage = one.usage;
      for (const choice of one.choices) onText(choice.delta.content || "");
    }
  }
}

async function answer(side, body) {
  const place = $("answer-" + side), started = performance.now();
  const end = await stream(body, text => { place.textContent += text; });
  if (!place.textContent) place.textContent = "\u2014";
  end.total = (performance.now() - started) / 1000;
  const read = end.usage.prompt_tokens - end.usage.prompt_tokens_details.cached_tokens;
  $("note-" + side).textContent = end.usage.completion_tokens + " tokens in " + seconds(end.total) + ", first after "
    + seconds(end.costs.first_token_seconds) + "; " + read + " of " + end.usage.prompt_tokens + " prompt tokens read";
  return end;
}

const seconds = s => s < 1 ? Math.round(s * 1000) + " ms" : s.toFixed(2) + " s";
const mega = b => b >= 1e6 ? (b / 1e6).toFixed(1) + " MB" : (b / 1e3).toFixed(0) + " kB";

function showTokens() {
  const side = document.querySelector("input[name=side]:checked").value;
  const most = Math.max(2, ...tokens.map(t => t.before)) * 0.8;
  $("most").textContent = most.toFixed(1);
  $("document-view").replaceChildren(...tokens.filter(t => t.text).map(t => {
    const span = document.createElement("span");
    span.textContent = t.text;
    span.style.background = "rgba(var(--warm), " + (0.75 * Math.min(t[side] / most, 1)).toFixed(3) + ")";
    span.title = t.before.toFixed(2) + " nats before, " + t.after.toFixed(2) + " after";
    return span;
  }));
}

function showCurve(trace) {
  if (!trace.length) { $("curve").textContent = "no steps"; return; }
  const w = Math.max($("curve").clientWidth, 240), h = Math.round(120 + w / 7), left = 38, bottom = 24, top = 10, right = 12;
  const most = Math.max(...trace.map(s => s.loss)) * 1.05, last = Math.max(trace.length - 1, 1);
  const x = i => left + (w - left - right) * i / last, y = v => top + (h - top - bottom) * (1 - v / most);
  const path = key => trace.map((s, i) => (i ? "L" : "M") + x(i).toFixed(1) + " " + y(s[key]).toFixed(1)).join("");
  const ticks = [0, most / 2, most].map(v => `<line x1="${left}" x2="${w - right}" y1="${y(v)}" y2="${y(v)}" stroke="var(--line)"/>`
    + `<text x="${left - 6}" y="${y(v) + 4}" text-anchor="end">${v.toFixed(1)}</text>`).join("");
  $("curve").innerHTML = `<svg viewBox="0 0 ${w} ${h}" role="img" aria-label="loss from ${trace[0].loss.toFixed(2)} to `
    + `${trace.at(-1).loss.toFixed(2)}">${ticks}<path d="${path("kl")}" fill="none" stroke="var(--base)" stroke-width="1.5" `
    + `stroke-dasharray="4 3"/><path d="${path("loss")}" fill="none" stroke="var(--accent)" stroke-width="2.5"/>`
    + `<text x="${left}" y="${h - 5}">step 0</text><text x="${w - right}" y="${h - 5}" text-anchor="end">${trace.length - 1}</text>`
    + `<text x="${(w + left) / 2}" y="${h - 5}" text-anchor="middle">loss \u2014   KL to the base model - -</text></svg>`;
}

function showCosts(memory, base, tuned, making) {
  const rows = [["", "base model", "with memory"],
    ["memory available after", "", making === null ? "none" : tuned.costs.memory_made || making.made ? seconds(making.seconds) : "made before"],
    ["first token", seconds(base.costs.first_token_seconds), seconds(tuned.costs.first_token_seconds)],
    ["complete answer", seconds(base.total), seconds(tuned.total)],
    ["prompt tokens reused", base.usage.prompt_tokens_details.cached_tokens, tuned.usage.prompt_tokens_details.cached_tokens],
    ["memory", "", memory ? mega(memory.bytes) : "none"]];
  $("costs").replaceChildren(...rows.map((cells, i) => {
    const row = document.createElement("tr");
    row.append(...cells.map(cell => Object.assign(document.createElement(i ? "td" : "th"), { textContent: cell })));
    return row;
  }));
}

async function ask() {
  await fetchModel();
  const documents = [{ text: $("document").value.trim() }], method = $("method").value;
  const recipe = {};
  if ($("steps").value !== "") recipe.steps = Number($("steps").value);
  if ($("rate").value.trim() !== "") recipe.learning_rate = Number($("rate").value);
  const body = { model, documents, messages: [{ role: "user", content: $("question").value.trim() }], max_tokens: 100 };
  for (const side of ["base", "memory"]) { $("answer-" + side).textContent = ""; $("note-" + side).textContent = ""; }
  $("title-memory").textContent = method.startsWith("fastmem") ? "With the document memorized" : "With " + method;
  $("results").hidden = true;
  const base = answer("base", { ...body, fastmem: { method: "base" } });
  const tuned = answer("memory", { ...body, fastmem: method.startsWith("fastmem") ? { method, recipe } : { method } });
  const [one, other] = await Promise.all([base, tuned]);
  let memory = null, making = null;
  if (other.costs.memory) {
    making = { seconds: other.costs.memory_seconds, made: other.costs.memory_made };
    memory = await (await call("/v1/memories/" + other.costs.memory)).json();
    tokens = (await (await call("/v1/memories/" + other.costs.memory + "/surprise", { documents })).json()).tokens;
  }
  $("document-view").parentElement.hidden = $("curve").parentElement.hidden = !memory;
  $("results").hidden = false;
  showCosts(memory, one, other, making);
  if (memory) { showTokens(); showCurve(memory.trace); }
}

$("form").addEventListener("submit", async event => {
  event.preventDefault();
  $("problem").textContent = "";
  $("ask").disabled = true;
  try { await ask(); } catch (error) { $("problem").textContent = error.message; }
  $("ask").disabled = false;
});
for (const radio of document.querySelectorAll("input[name=side]")) radio.addEventListener("change", showTokens);
fetchModel().catch(() => {});
