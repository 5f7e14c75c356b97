// What the explorer draws: panels, read-out, histograms, table and code. Python sends arrays as bytes. Pointer, opacity and
// colors are drawn here, without asking Python.

const STATS = ["score", "z", "p", "q", "lfdr"];
const MAPS = ["z", "p", "q", "lfdr", "pi0", "posterior"];
const PANELS = ["image", "scores", ...MAPS];

// ---- helpers --------------------------------------------------------------------------------------------------------

const floats = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
const number = (value) => (value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : value.toPrecision(3));
const orDash = (value, format) => (value === null || value === undefined ? "–" : format(value));

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "rect", "path", "line", "text", "g", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function canvasOf(data) {
  const canvas = Object.assign(document.createElement("canvas"), { width: data.width, height: data.height });
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

// ---- the state: arrays of what is shown -----------------------------------------------------------------------------

function picture(model, gray) {
  const [H, W] = model.get("size");
  const rgb = bytes(model.get("pixels"));
  const data = new ImageData(W, H);
  for (let i = 0; i < H * W; i++) {
    const [r, g, b] = rgb.subarray(3 * i, 3 * i + 3);
    const light = 0.299 * r + 0.587 * g + 0.114 * b;
    data.data.set(gray ? [light, light, light, 255] : [r, g, b, 255], 4 * i);
  }
  return canvasOf(data);
}

function readState(model, old) {
  const [h, w] = model.get("grid");
  const [n, stats, maps] = [h * w, floats(model.get("stats")), floats(model.get("maps"))];
  const part = (all, i) => all.subarray(i * n, (i + 1) * n);
  const state = { h, w, source: model.get("pixels") };
  state.stats = Object.fromEntries(STATS.map((name, i) => [name, part(stats, i)]));
  state.maps = Object.fromEntries(MAPS.map((name, i) => [name, part(maps, i)]));
  state.maps.scores = state.stats.score;
  state.tested = state.stats.z.reduce((count, z) => count + !Number.isNaN(z), 0);
  state.top = state.stats.score.reduce((top, score) => Math.max(top, Math.abs(score)), 0);
  state.low = state.stats.score.some((score) => score < 0) ? -state.top : 0; // zero is the middle of the diverging colors
  const same = old && old.source === state.source;
  [state.color, state.gray] = same ? [old.color, old.gray] : [picture(model, false), picture(model, true)];
  return state;
}

// ---- colors ---------------------------------------------------------------------------------------------------------

const paletteOf = (state) => (state && state.low < 0 ? "diverging" : "colors");

function lookUp(model, palette) {
  const names = Object.values(model.get("palettes")).flat();
  return bytes(model.get("luts")).subarray(768 * names.indexOf(model.get(palette))).subarray(0, 768);
}

function colored(map, { h, w, low, top }, lut) {
  const data = new ImageData(w, h);
  for (let i = 0; i < h * w; i++) {
    if (map[i] === 0) continue; // zero has no color
    const step = Math.min(255, Math.max(0, Math.round((255 * (map[i] - low)) / (top - low))));
    data.data.set([lut[3 * step], lut[3 * step + 1], lut[3 * step + 2], 255], 4 * i);
  }
  return canvasOf(data);
}

function makeToolbar(model) {
  const opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05 });
  const select = make("select");
  const bar = make("canvas", { width: 256, height: 1, role: "img" });
  const [low, top] = [make("span"), make("span", { class: "top" })];
  const node = make(
    "div", { class: "toolbar" },
    make("label", {}, "Overlay opacity", opacity),
    make("label", {}, "Colors", select),
    make("div", { class: "bar-box" }, "Score", make("div", { class: "scale" }, low, bar, top)),
  );
  const choose = (values) => {
    model.set(values);
    model.save_changes();
  };
  opacity.addEventListener("input", () => choose({ opacity: Number(opacity.value) }));
  select.addEventListener("change", () => choose({ [select.dataset.palette]: select.value }));

  function draw(state) {
    const palette = paletteOf(state);
    opacity.value = model.get("opacity");
    if (select.dataset.palette !== palette) {
      select.replaceChildren(...model.get("palettes")[palette].map((name) => make("option", { value: name }, name)));
      select.dataset.palette = palette;
    }
    select.value = model.get(palette);
    if (!state) return;
    const [lut, ramp] = [lookUp(model, palette), new ImageData(256, 1)];
    for (let i = 0; i < 256; i++) ramp.data.set([lut[3 * i], lut[3 * i + 1], lut[3 * i + 2], 255], 4 * i);
    bar.getContext("2d").putImageData(ramp, 0, 0);
    bar.setAttribute("aria-label", `Color bar: scores from ${number(state.low)} to ${number(state.top)}; zero has no color`);
    low.textContent = state.low < 0 ? number(state.low) : "0 (no color)";
    top.textContent = number(state.top) + (state.low < 0 ? " (0: no color)" : "");
  }
  return { node, draw };
}

// ---- panels ---------------------------------------------------------------------------------------------------------

function makePanel(name) {
  const canvas = make("canvas", { role: "img" });
  const title = make("div", { class: "panel-title" });
  const note = make("div", { class: "panel-note" });
  const square = make("div", { class: "square", hidden: "" });
  const cursor = make("div", { class: "cursor", hidden: "" });
  const frame = make("div", { class: "frame" }, canvas, square, cursor);
  const node = make("div", { class: "panel", "data-panel": name }, title, frame, note);
  return { name, canvas, title, note, square, cursor, frame, node };
}

function place(node, [top, left, height, width]) {
  Object.assign(node.style, { top: `${100 * top}%`, left: `${100 * left}%`, height: `${100 * height}%`, width: `${100 * width}%` });
  node.hidden = false;
}

function drawPanel({ name, canvas }, model, state) {
  const [H, W] = model.get("size");
  const zoom = Math.max(1, Math.round(512 / Math.max(H, W)));
  if (canvas.width !== W * zoom || canvas.height !== H * zoom) Object.assign(canvas, { width: W * zoom, height: H * zoom });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.globalAlpha = 1;
  context.drawImage(name === "image" ? state.color : state.gray, 0, 0, canvas.width, canvas.height);
  if (name === "image") return;
  context.globalAlpha = model.get("opacity");
  context.drawImage(colored(state.maps[name], state, lookUp(model, paletteOf(state))), 0, 0, canvas.width, canvas.height);
}

function drawNote({ name, canvas, title, note, square: box }, model, state) {
  const [[H, W], square, row] = [model.get("size"), model.get("square"), model.get("rows")[name]];
  title.textContent = name === "image" ? "image" : model.get("titles")[name];
  note.textContent = row
    ? `${row.patches} of ${state.tested} patches, ${percent(row.score_kept)} of scores`
    : `${W} × ${H} px, ${state.w} × ${state.h} patches`;
  const left = row?.noise_left;
  if (left !== undefined) note.append(make("br"), left ? `noise: ${percent(left)} left` : "noise: gone");
  canvas.setAttribute("aria-label", name === "image" ? "The image as the model sees it" : `Map ${title.textContent}: ${note.textContent}`);
  box.hidden = true;
  if (square.length) place(box, [square[0] / H, square[1] / W, square[2] / H, square[2] / W]);
}

function makePanels(model) {
  const all = PANELS.map(makePanel);
  const drawColors = (state) => all.forEach((one) => drawPanel(one, model, state));
  const draw = (state) => {
    drawColors(state);
    all.forEach((one) => drawNote(one, model, state));
  };
  return { node: make("div", { class: "panels" }, ...all.map((one) => one.node)), all, draw, drawColors };
}

// ---- pointer --------------------------------------------------------------------------------------------------------

function patchAt(event, frame, { h, w }) {
  const box = frame.getBoundingClientRect();
  const part = (at, from, length, n) => Math.min(n - 1, Math.max(0, Math.floor((n * (at - from)) / length)));
  return [part(event.clientY, box.top, box.height, h), part(event.clientX, box.left, box.width, w)];
}

function readPatch({ w, stats, maps }, [row, column]) {
  const i = row * w + column;
  const where = make("b", {}, `row ${row + 1}, column ${column + 1}`);
  const tested = !Number.isNaN(stats.z[i]);
  const kept = MAPS.filter((name) => maps[name][i] !== 0).map((name) => (name === "pi0" ? "π₀" : name));
  const told = tested ? (kept.length ? `kept by ${kept.join(", ")}` : "kept by no map") : "not tested";
  const known = STATS.filter((name) => tested || name === "score");
  return [where, ...known.map((name) => make("span", { "data-stat": name }, `${name} ${number(stats[name][i])}`)), make("span", {}, told)];
}

function makePointer(model, panels, getState) {
  const node = make("div", { class: "readout", "aria-live": "polite" });
  let at = null; // row and column of the patch in question

  function draw(state) {
    for (const { cursor } of panels) cursor.hidden = true;
    if (at === null || !state || at[0] >= state.h || at[1] >= state.w) {
      const advice = "Point at a patch to read its numbers; click, or press Enter, to put a square of noise there.";
      node.replaceChildren(make("span", {}, advice));
      return;
    }
    for (const { cursor } of panels) place(cursor, [at[0] / state.h, at[1] / state.w, 1 / state.h, 1 / state.w]);
    node.replaceChildren(...readPatch(state, at));
  }

  const point = (to) => {
    at = to;
    draw(getState());
  };
  const addNoise = (y, x) => model.send({ kind: "noise", y, x });
  for (const { frame } of panels) {
    frame.addEventListener("pointermove", (event) => getState() && point(patchAt(event, frame, getState())));
    frame.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && point(null));
    frame.addEventListener("click", (event) => {
      const box = frame.getBoundingClientRect();
      if (getState()) addNoise((event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width);
    });
  }
  listenToKeys(panels[0].frame, getState, () => at, point, addNoise);
  return { node, draw };
}

function listenToKeys(frame, getState, getPoint, point, addNoise) {
  frame.tabIndex = 0;
  frame.setAttribute("role", "application");
  frame.setAttribute("aria-label", "Image: the arrow keys choose a patch, Enter puts a square of noise there");
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Enter: [0, 0] }[event.key];
    const state = getState();
    if (!step || !state) return;
    event.preventDefault();
    event.stopPropagation();
    const [row, column] = getPoint() ?? [Math.floor(state.h / 2), Math.floor(state.w / 2)];
    if (event.key === "Enter") return addNoise((row + 0.5) / state.h, (column + 0.5) / state.w);
    point([Math.min(state.h - 1, Math.max(0, row + step[0])), Math.min(state.w - 1, Math.max(0, column + step[1]))]);
  });
}

// ---- histograms -----------------------------------------------------------------------------------------------------

function histogram({ title, edges, ticks, counts, null_counts, bars, marks, mark_text }) {
  const [W, H, left, bottom, top] = [300, 150, 8, 34, 22];
  const [low, last] = [edges[0], edges[edges.length - 1]];
  const x = (value) => left + ((value - low) / (last - low)) * (W - 2 * left);
  const most = Math.max(...counts, ...(null_counts ?? []), 1e-9);
  const y = (count) => H - bottom - (count / most) * (H - bottom - top);
  const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" });
  counts.forEach((count, i) => {
    const [from, to] = [x(edges[i]), x(edges[i + 1])];
    svg.append(make("rect", { class: "bar", x: from, y: y(count), width: Math.max(0.5, to - from - 0.5), height: H - bottom - y(count) }));
  });
  if (null_counts) {
    const steps = null_counts.map((count, i) => `L${x(edges[i])},${y(count)}L${x(edges[i + 1])},${y(count)}`).join("");
    svg.append(make("path", { class: "null", d: `M${x(low)},${y(0)}${steps}L${x(last)},${y(0)}` }));
  }
  svg.append(make("line", { class: "axis", x1: left, x2: W - left, y1: H - bottom, y2: H - bottom }));
  const anchors = ["start", "middle", "end"];
  ticks.forEach((at, i) => svg.append(make("text", { x: x(at), y: H - bottom + 13, "text-anchor": anchors[i] }, String(at))));
  svg.append(make("text", { class: "name", x: W / 2, y: H - 4, "text-anchor": "middle" }, title));
  const places = marks.map((mark) => Math.min(Math.max(mark, low), last));
  for (const at of places) svg.append(make("line", { class: "mark", x1: x(at), x2: x(at), y1: 6, y2: H - bottom }));
  const anchor = places[places.length - 1] > (low + last) / 2 ? "end" : "start";
  const at = anchor === "end" ? places[0] : places[places.length - 1]; // beside the marks, not between them
  svg.append(make("text", { class: "mark-text", x: x(at) + (anchor === "end" ? -4 : 4), y: 15, "text-anchor": anchor }, mark_text));
  const told = `Histogram of ${title} with the threshold ${mark_text}` + (null_counts ? "; bars: image, line: null images" : "");
  svg.setAttribute("aria-label", told);
  return make("figure", {}, svg, make("figcaption", {}, bars));
}

// ---- table ----------------------------------------------------------------------------------------------------------

function drawTable(node, model) {
  const [rows, titles] = [model.get("rows"), model.get("titles")];
  const noisy = rows.scores.noise_left !== undefined;
  const heads = ["map", "patches kept", "score kept", ...(noisy ? ["noise left", "suppression D", "sensitivity", "specificity"] : [])];
  const body = Object.entries(rows).map(([name, row]) => {
    const cells = [row.patches, percent(row.score_kept)];
    if (noisy) {
      const [two, left] = [(value) => value.toFixed(2), row.noise_left ? percent(row.noise_left) : "gone"];
      cells.push(left, orDash(row.D, two), orDash(row.sensitivity, two), orDash(row.specificity, two));
    }
    return make("tr", {}, make("th", { scope: "row" }, titles[name]), ...cells.map((cell) => make("td", {}, String(cell))));
  });
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  node.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

// ---- files and code -------------------------------------------------------------------------------------------------

async function copy(text, pre) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // no clipboard without https: select the text, so that the keyboard can copy it
    getSelection().selectAllChildren(pre);
    return "selected; press Ctrl+C";
  }
  return "copied";
}

function save(message, buffers) {
  if (message.kind !== "file") return;
  const url = URL.createObjectURL(new Blob(buffers, { type: message.type }));
  make("a", { href: url, download: message.name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

function makeExports(model) {
  const pre = make("pre", { tabindex: 0, "aria-label": "The lines of code that repeat this view" });
  const copied = make("span", { class: "copied", role: "status" });
  const button = (label, act) => {
    const node = make("button", { type: "button" }, label);
    node.addEventListener("click", act);
    return node;
  };
  const buttons = make(
    "div", { class: "exports" },
    button("Save figure (PNG)", () => model.send({ kind: "export", what: "png" })),
    button("Save arrays (npz)", () => model.send({ kind: "export", what: "npz" })),
    button("Copy code", async () => (copied.textContent = await copy(model.get("code"), pre))), copied,
  );
  const draw = () => {
    pre.textContent = model.get("code");
    copied.textContent = "";
  };
  return { nodes: [buttons, pre], draw };
}

// ---- the page -------------------------------------------------------------------------------------------------------

function makeMessages(model) {
  const told = make("div", { class: "status", role: "status", "aria-live": "polite" });
  const failed = make("div", { class: "failed", role: "alert" });
  const draw = () => {
    const error = model.get("error");
    told.textContent = model.get("status");
    failed.textContent = error ? `Error: ${error}` : "";
    failed.hidden = !error;
  };
  return { nodes: [told, failed], draw };
}

function nameSliders(el) {
  // ipywidgets leaves the handles of its sliders without a name that a screen reader could say
  for (const slider of el.closest(".attnbootreg-explorer")?.querySelectorAll(".widget-slider") ?? []) {
    const label = slider.querySelector("label");
    label.id ||= `attnbootreg-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
    slider.querySelector(".noUi-handle")?.setAttribute("aria-labelledby", label.id);
  }
}

function render({ model, el }) {
  let state = null;
  const messages = makeMessages(model);
  const toolbar = makeToolbar(model);
  const panels = makePanels(model);
  const pointer = makePointer(model, panels.all, () => state);
  const histograms = make("div", { class: "histograms" });
  const table = make("div", { class: "numbers", tabindex: 0, role: "region", "aria-label": "Numbers" });
  const summary = make("p", { class: "summary" });
  const exports = makeExports(model);
  const shown = make("div", { class: "shown" }, toolbar.node, pointer.node, panels.node, histograms, table, summary, ...exports.nodes);
  const root = make("div", { class: "attnbootreg", "data-lm-suppress-shortcuts": "true" }, ...messages.nodes, shown);
  el.append(root);

  function draw() {
    if (!model.get("pixels").byteLength) return;
    state = readState(model, state);
    toolbar.draw(state);
    panels.draw(state);
    histograms.replaceChildren(...model.get("histograms").map(histogram));
    drawTable(table, model);
    summary.textContent = model.get("summary");
    exports.draw();
    pointer.draw(state);
    requestAnimationFrame(() => nameSliders(el)); // when all is in the page
    shown.hidden = false;
    root.dataset.frame = model.get("frame"); // says, to whoever waits for it, that this is drawn
  }

  function style() {
    toolbar.draw(state);
    if (state) panels.drawColors(state);
  }

  const heard = [
    ["change:frame", draw], ["change:status", messages.draw], ["change:error", messages.draw],
    ["change:opacity", style], ["change:colors", style], ["change:diverging", style], ["msg:custom", save],
  ];
  for (const [event, act] of heard) model.on(event, act);
  shown.hidden = true;
  style();
  messages.draw();
  pointer.draw(state);
  draw();
  return () => heard.forEach(([event, act]) => model.off(event, act));
}

export default { render };
