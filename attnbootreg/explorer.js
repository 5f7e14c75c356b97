// The picture of the explorer: panels, read-out, histograms, numbers and code. Python sends arrays as bytes; all that a hand
// moves (pointer, opacity, colours) is drawn here, without asking Python.

const STATS = ["attention", "z", "p", "q", "lfdr"];
const MAPS = ["z", "p", "q", "lfdr", "pi0", "posterior"];
const PANELS = ["image", "attention", ...MAPS];

const floats = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
const number = (value) => (value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : value.toPrecision(3));

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "rect", "path", "line", "text", "g", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// ---- what is drawn --------------------------------------------------------------------------------------------------

function canvasOf(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

function picture(model, grey) {
  const [H, W] = model.get("size");
  const rgb = bytes(model.get("pixels"));
  const data = new ImageData(W, H);
  for (let i = 0; i < H * W; i++) {
    const [r, g, b] = rgb.subarray(3 * i, 3 * i + 3);
    const light = 0.299 * r + 0.587 * g + 0.114 * b;
    data.data.set(grey ? [light, light, light, 255] : [r, g, b, 255], 4 * i);
  }
  const canvas = canvasOf(W, H);
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

function coloured(map, h, w, top, lut) {
  const data = new ImageData(w, h);
  for (let i = 0; i < h * w; i++) {
    if (map[i] === 0) continue; // zero is no colour
    const step = Math.min(255, Math.round((255 * map[i]) / top));
    data.data.set([lut[3 * step], lut[3 * step + 1], lut[3 * step + 2], 255], 4 * i);
  }
  const canvas = canvasOf(w, h);
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

function histogram({ title, edges, ticks, counts, null_counts, bars, mark, mark_text }) {
  const [W, H, left, bottom, top] = [300, 150, 8, 34, 22];
  const low = edges[0];
  const x = (value) => left + ((value - low) / (edges[edges.length - 1] - low)) * (W - 2 * left);
  const most = Math.max(...counts, ...(null_counts ?? []), 1e-9);
  const y = (count) => H - bottom - (count / most) * (H - bottom - top);
  const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" });
  counts.forEach((count, i) => {
    const [from, to] = [x(edges[i]), x(edges[i + 1])];
    svg.append(make("rect", { class: "bar", x: from, y: y(count), width: Math.max(0.5, to - from - 0.5), height: H - bottom - y(count) }));
  });
  if (null_counts) {
    const steps = null_counts.map((count, i) => `L${x(edges[i])},${y(count)}L${x(edges[i + 1])},${y(count)}`).join("");
    svg.append(make("path", { class: "null", d: `M${x(low)},${y(0)}${steps}L${x(edges[edges.length - 1])},${y(0)}` }));
  }
  svg.append(make("line", { class: "axis", x1: left, x2: W - left, y1: H - bottom, y2: H - bottom }));
  const last = edges[edges.length - 1];
  ticks.forEach((at, i) => svg.append(make("text", { x: x(at), y: H - bottom + 13, "text-anchor": ["start", "middle", "end"][i] }, String(at))));
  svg.append(make("text", { class: "name", x: W / 2, y: H - 4, "text-anchor": "middle" }, title));
  const at = Math.min(Math.max(mark, low), last);
  const anchor = at > (low + last) / 2 ? "end" : "start";
  svg.append(make("line", { class: "mark", x1: x(at), x2: x(at), y1: 6, y2: H - bottom }));
  svg.append(make("text", { class: "mark-text", x: x(at) + (anchor === "end" ? -4 : 4), y: 15, "text-anchor": anchor }, mark_text));
  const told = `Histogram of ${title} with the threshold ${mark_text}` + (null_counts ? "; bars: image, line: null images" : "");
  svg.setAttribute("aria-label", told);
  return make("figure", {}, svg, make("figcaption", {}, bars));
}

// ---- the parts of the page ------------------------------------------------------------------------------------------

function panel(name) {
  const canvas = make("canvas", { role: "img" });
  const title = make("div", { class: "panel-title" });
  const note = make("div", { class: "panel-note" });
  const square = make("div", { class: "square", hidden: "" });
  const cursor = make("div", { class: "cursor", hidden: "" });
  const frame = make("div", { class: "frame" }, canvas, square, cursor);
  return { name, canvas, title, note, square, cursor, frame, node: make("div", { class: "panel", "data-panel": name }, title, frame, note) };
}

function place(node, [top, left, height, width]) {
  Object.assign(node.style, { top: `${100 * top}%`, left: `${100 * left}%`, height: `${100 * height}%`, width: `${100 * width}%` });
  node.hidden = false;
}

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

function render({ model, el }) {
  const told = make("div", { class: "status", role: "status", "aria-live": "polite" });
  const failed = make("div", { class: "failed", role: "alert" });
  const opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05 });
  const colours = make("select");
  const bar = make("canvas", { width: 256, height: 1, role: "img" });
  const most = make("span", { class: "top" });
  const scale = make("div", { class: "scale" }, make("span", {}, "0 (no colour)"), bar, most);
  const toolbar = make(
    "div", { class: "toolbar" },
    make("label", {}, "Overlay opacity", opacity), make("label", {}, "Colours", colours), make("div", { class: "bar-box" }, "Attention", scale),
  );
  const readout = make("div", { class: "readout", "aria-live": "polite" });
  const panels = Object.fromEntries(PANELS.map((name) => [name, panel(name)]));
  const grid = make("div", { class: "panels" }, ...PANELS.map((name) => panels[name].node));
  const pi0 = make("p", { class: "pi0" });
  const histograms = make("div", { class: "histograms" });
  const table = make("div", { class: "numbers", tabindex: 0, role: "region", "aria-label": "Numbers" });
  const pre = make("pre", { tabindex: 0, "aria-label": "The lines of code that repeat this view" });
  const button = (label, act) => {
    const node = make("button", { type: "button" }, label);
    node.addEventListener("click", act);
    return node;
  };
  const copied = make("span", { class: "copied", role: "status" });
  const exports = make(
    "div", { class: "exports" },
    button("Save figure (PNG)", () => model.send({ kind: "export", what: "png" })),
    button("Save arrays (npz)", () => model.send({ kind: "export", what: "npz" })),
    button("Copy code", async () => (copied.textContent = await copy(model.get("code"), pre))), copied,
  );
  const shown = make("div", { class: "shown" }, toolbar, readout, grid, histograms, table, pi0, exports, pre);
  const root = make("div", { class: "attnbootreg", "data-lm-suppress-shortcuts": "true" }, told, failed, shown);
  el.append(root);

  let state = null; // arrays of what is shown
  let pointer = null; // row and column of the patch in question

  for (const name of model.get("lut_names")) colours.append(make("option", { value: name }, name));
  const lut = () => bytes(model.get("luts")).subarray(768 * model.get("lut_names").indexOf(colours.value)).subarray(0, 768);

  function read() {
    const [h, w] = model.get("grid");
    const [n, stats, maps] = [h * w, floats(model.get("stats")), floats(model.get("maps"))];
    const part = (all, i) => all.subarray(i * n, (i + 1) * n);
    const old = state;
    state = { h, w, stats: Object.fromEntries(STATS.map((name, i) => [name, part(stats, i)])) };
    state.maps = Object.fromEntries(MAPS.map((name, i) => [name, part(maps, i)]));
    state.maps.attention = state.stats.attention;
    state.top = state.stats.attention.reduce((a, b) => Math.max(a, b), 0);
    state.source = model.get("pixels");
    const same = old && old.source === state.source;
    [state.colour, state.grey] = same ? [old.colour, old.grey] : [picture(model, false), picture(model, true)];
  }

  function drawPanels() {
    const [H, W] = model.get("size");
    const zoom = Math.max(1, Math.round(512 / Math.max(H, W)));
    for (const name of PANELS) {
      const { canvas } = panels[name];
      if (canvas.width !== W * zoom || canvas.height !== H * zoom) Object.assign(canvas, { width: W * zoom, height: H * zoom });
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.globalAlpha = 1;
      context.drawImage(name === "image" ? state.colour : state.grey, 0, 0, canvas.width, canvas.height);
      if (name === "image") continue;
      context.globalAlpha = Number(opacity.value);
      context.drawImage(coloured(state.maps[name], state.h, state.w, state.top, lut()), 0, 0, canvas.width, canvas.height);
    }
    const ramp = new ImageData(256, 1);
    const now = lut();
    for (let i = 0; i < 256; i++) ramp.data.set([now[3 * i], now[3 * i + 1], now[3 * i + 2], 255], 4 * i);
    bar.getContext("2d").putImageData(ramp, 0, 0);
    bar.setAttribute("aria-label", `Colour bar: attention from above 0 to ${number(state.top)}; zero has no colour`);
    most.textContent = number(state.top);
  }

  function drawNotes() {
    const rows = model.get("rows");
    const titles = model.get("titles");
    const [H, W] = model.get("size");
    const square = model.get("square");
    for (const name of PANELS) {
      const { canvas, title, note, square: box } = panels[name];
      title.textContent = name === "image" ? "image" : titles[name];
      const row = rows[name];
      const patches = state.h * state.w;
      note.textContent = row ? `${row.patches} of ${patches} patches, ${percent(row.attention)} of attention` : `${W} × ${H} px, ${state.w} × ${state.h} patches`;
      if (row && row.noise_left !== undefined) note.append(make("br"), row.noise_left ? `noise: ${percent(row.noise_left)} left` : "noise: gone");
      canvas.setAttribute("aria-label", name === "image" ? "The image as the model sees it" : `Map ${titles[name]}: ${note.textContent}`);
      box.hidden = true;
      if (square.length) place(box, [square[0] / H, square[1] / W, square[2] / H, square[2] / W]);
    }
    pi0.textContent = model.get("summary");
    pre.textContent = model.get("code");
    copied.textContent = "";
  }

  function drawTable() {
    const rows = model.get("rows");
    const titles = model.get("titles");
    const noisy = rows.attention.noise_left !== undefined;
    const heads = ["map", "patches kept", "attention kept", ...(noisy ? ["noise left", "suppression D", "sensitivity", "specificity"] : [])];
    const body = Object.entries(rows).map(([name, row]) => {
      const cells = [row.patches, percent(row.attention)];
      if (noisy) {
        const left = row.noise_left ? percent(row.noise_left) : "gone";
        cells.push(left, row.D === null ? "–" : row.D.toFixed(2), row.sensitivity.toFixed(2), row.specificity.toFixed(2));
      }
      return make("tr", {}, make("th", { scope: "row" }, titles[name]), ...cells.map((cell) => make("td", {}, String(cell))));
    });
    const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
    table.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  }

  function drawPointer() {
    for (const { cursor } of Object.values(panels)) cursor.hidden = true;
    if (pointer === null || state === null || pointer[0] >= state.h || pointer[1] >= state.w) {
      readout.replaceChildren(make("span", {}, "Point at a patch to read its numbers; click, or press Enter, to put a square of noise there."));
      return;
    }
    const [row, column] = pointer;
    const i = row * state.w + column;
    for (const { cursor } of Object.values(panels)) place(cursor, [row / state.h, column / state.w, 1 / state.h, 1 / state.w]);
    const kept = MAPS.filter((name) => state.maps[name][i] > 0).map((name) => (name === "pi0" ? "π₀" : name));
    readout.replaceChildren(
      make("b", {}, `row ${row + 1}, column ${column + 1}`),
      ...STATS.map((name) => make("span", { "data-stat": name }, `${name} ${number(state.stats[name][i])}`)),
      make("span", {}, kept.length ? `kept by ${kept.join(", ")}` : "kept by no map"),
    );
  }

  function nameSliders() {
    // ipywidgets leaves the handles of its sliders without a name that a screen reader could say
    for (const slider of el.closest(".attnbootreg-explorer")?.querySelectorAll(".widget-slider") ?? [])
      slider.querySelector(".noUi-handle")?.setAttribute("aria-label", slider.querySelector("label").textContent);
  }

  function draw() {
    if (!model.get("pixels").byteLength) return;
    read();
    drawPanels();
    drawNotes();
    drawTable();
    histograms.replaceChildren(...model.get("histograms").map(histogram));
    drawPointer();
    requestAnimationFrame(nameSliders); // when all is in the page
    shown.hidden = false;
    root.dataset.frame = model.get("frame"); // says, to whoever waits for it, that this is drawn
  }

  function say() {
    const error = model.get("error");
    told.textContent = model.get("status");
    failed.textContent = error ? `Error: ${error}` : "";
    failed.hidden = !error;
  }

  function style() {
    opacity.value = model.get("opacity");
    colours.value = model.get("colours");
    if (state) drawPanels();
  }

  function look() {
    model.set({ opacity: Number(opacity.value), colours: colours.value });
    model.save_changes();
  }

  const patchAt = (event, { frame }) => {
    const box = frame.getBoundingClientRect();
    const part = (at, from, length, n) => Math.min(n - 1, Math.max(0, Math.floor((n * (at - from)) / length)));
    return [part(event.clientY, box.top, box.height, state.h), part(event.clientX, box.left, box.width, state.w)];
  };
  const point = (to) => {
    pointer = to;
    drawPointer();
  };
  const addNoise = (y, x) => model.send({ kind: "noise", y, x });
  for (const one of Object.values(panels)) {
    one.frame.addEventListener("pointermove", (event) => state && point(patchAt(event, one)));
    one.frame.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && point(null));
    one.frame.addEventListener("click", (event) => {
      const box = one.frame.getBoundingClientRect();
      if (state) addNoise((event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width);
    });
  }
  const first = panels.image.frame;
  first.tabIndex = 0;
  first.setAttribute("role", "application");
  first.setAttribute("aria-label", "Image: the arrow keys choose a patch, Enter puts a square of noise there");
  first.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Enter: [0, 0] }[event.key];
    if (!step || !state) return;
    event.preventDefault();
    event.stopPropagation();
    const [row, column] = pointer ?? [Math.floor(state.h / 2), Math.floor(state.w / 2)];
    if (event.key === "Enter") return addNoise((row + 0.5) / state.h, (column + 0.5) / state.w);
    point([Math.min(state.h - 1, Math.max(0, row + step[0])), Math.min(state.w - 1, Math.max(0, column + step[1]))]);
  });

  function save(message, buffers) {
    if (message.kind !== "file") return;
    const url = URL.createObjectURL(new Blob(buffers, { type: message.type }));
    make("a", { href: url, download: message.name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  }

  opacity.addEventListener("input", look);
  colours.addEventListener("change", look);
  const heard = [["change:frame", draw], ["change:status", say], ["change:error", say], ["change:opacity", style], ["change:colours", style], ["msg:custom", save]];
  for (const [event, act] of heard) model.on(event, act);
  shown.hidden = true;
  style();
  say();
  draw();
  return () => heard.forEach(([event, act]) => model.off(event, act));
}

export default { render };
