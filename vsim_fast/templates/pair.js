"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const every = (selector, root = document) => [...root.querySelectorAll(selector)];
  const data = JSON.parse($("data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const { frames, times, worst, shown } = data;
  const N = frames.length;
  const curves = data.curves.map(({ name, values }) => ({ name, values: floats(values) }));
  const expected = data.expected && floats(data.expected);
  const number = (v) => {
    if (!Number.isFinite(v)) return "–";
    if (v && Math.abs(v) < 1e-3) return v.toExponential(1).replace(/e([+-])(\d)$/, "e$10$2");
    return v.toFixed(Math.abs(v) >= 10 ? 2 : 4);
  };
  const at = (row) => `Frame ${frames[row]} at ${times[row].toFixed(2)} s`;

  /** Place of the sorted value nearest to `wanted`. */
  function nearest(sorted, wanted) {
    let low = 0, high = sorted.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (sorted[middle] <= wanted) low = middle;
      else high = middle;
    }
    return wanted - sorted[low] <= sorted[high] - wanted ? low : high;
  }
  const shownFrames = shown.map((row) => frames[row]);
  const pictureOf = (row) => (shown.length ? nearest(shownFrames, frames[row]) : -1);
  const source = (name, s) => `data:image/jpeg;base64,${data.pictures[name][s]}`;

  /** What the page shows: the row under the pointer or else the one kept, and the nearest picture. */
  const view = { row: 0, kept: 0, picture: -1 };

  // ---- the curve

  /** Round tick values from `from` to `to`, and the decimals they need. */
  function ticks(from, to, most) {
    const raw = (to - from) / most, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((candidate) => candidate >= raw - power * 1e-9);
    const found = [];
    for (let k = Math.ceil(from / step - 1e-6); k * step <= to + step * 1e-6; k++) found.push(k * step);
    return [found, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))];
  }

  /** Limits of the axis: from 0 where the values come near it. */
  function limits(series) {
    let low = Infinity, high = -Infinity;
    for (const values of series) for (const v of values) { if (v < low) low = v; if (v > high) high = v; }  // NaN is neither
    if (low > high) return [0, 1];
    if (low >= 0 && low <= 0.5 * high) low = 0;
    if (high - low <= 1e-9 * Math.abs(high)) { low = high > 0 ? high - 0.5 * high : high; high = high > 0 ? 1.5 * high : high + 1; }
    const margin = 0.04 * (high - low);
    return [low ? low - margin : 0, high + margin];
  }

  const chart = (() => {
    const box = $("chart"), LEFT = 56, RIGHT = 12, TOP = 14, BOTTOM = 42;
    const first = times[0], span = times[N - 1] - first || 1;
    let current = 0, zoom = 1, from = first, drawn = "", width = 0, y = () => 0, playhead = null, dot = null;
    const x = (t) => LEFT + (N > 1 ? (t - from) * zoom / span : 0.5) * (width - LEFT - RIGHT);
    const within = (row) => times[row] >= from && times[row] <= from + span / zoom;

    /** Draws anew if something has changed; a zoomed curve follows the kept frame where that leaves it. */
    function draw() {
      const height = box.clientHeight || 260, bottom = height - BOTTOM;
      width = Math.max(240, box.clientWidth);
      if (!within(view.kept)) from = clamp(times[view.kept] - span / zoom / 2, first, first + span - span / zoom);
      const state = [width, height, current, zoom, from].join(" ");
      if (drawn === state) return;
      drawn = state;
      const { values } = curves[current];
      const [low, high] = limits(current === 0 && expected ? [values, expected] : [values]);
      y = (v) => bottom - ((v - low) / (high - low)) * (bottom - TOP);
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const add = (tag, attributes, text, parent = svg) => {
        const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
        for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
        if (text !== undefined) node.textContent = text;
        parent.append(node);
        return node;
      };
      for (const [key, value] of [["viewBox", `0 0 ${width} ${height}`], ["aria-hidden", "true"]]) svg.setAttribute(key, value);
      const [levels, decimals] = ticks(low, high, 5);
      for (const v of levels) {
        add("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v) });
        add("text", { x: LEFT - 8, y: y(v) + 4, "text-anchor": "end" }, decimals > 4 ? v.toExponential(0) : v.toFixed(decimals));
      }
      const [moments, places] = N > 1 ? ticks(from, from + span / zoom, Math.min(12, width / 70)) : [[first], 2];
      for (const t of moments) {
        add("line", { class: "grid", x1: x(t), x2: x(t), y1: bottom, y2: bottom + 9 });
        add("text", { x: x(t), y: bottom + 22, "text-anchor": "middle" }, t.toFixed(places));
      }
      add("text", { x: width - RIGHT, y: height - 4, "text-anchor": "end" }, "Time (s)");
      add("rect", { x: LEFT - 6, y: 0, width: width - LEFT - RIGHT + 12, height }, undefined, add("clipPath", { id: "inside" }));
      const inside = add("g", { "clip-path": "url(#inside)" });
      for (const row of shown) add("line", { class: "pictured", x1: x(times[row]), x2: x(times[row]), y1: bottom + 2, y2: bottom + 6 }, undefined, inside);

      const start = Math.max(0, nearest(times, from) - 2), end = Math.min(N, nearest(times, from + span / zoom) + 3);
      const line = (series, style) => {  // NaN leaves a gap; a lone value is a dot
        let path = "", pen = false;
        for (let row = start; row < end; row++) {
          if (Number.isNaN(series[row])) { pen = false; continue; }
          path += `${pen ? "L" : "M"}${x(times[row]).toFixed(1)} ${y(series[row]).toFixed(1)}${pen ? "" : "h0"}`;
          pen = true;
        }
        if (path) add("path", { class: style, d: path }, undefined, inside);
      };
      if (current === 0 && expected) line(expected, "expected");
      line(values, "curve");
      for (const row of worst)
        if (!Number.isNaN(values[row])) add("circle", { class: "worst", cx: x(times[row]), cy: y(values[row]), r: 4 }, undefined, inside);
      playhead = add("line", { class: "playhead", y1: TOP, y2: bottom }, undefined, inside);
      dot = add("circle", { class: "pointer", r: 5 }, undefined, inside);
      box.replaceChildren(svg);
      mark(view.row);
    }

    function mark(row) {
      const at = x(times[row]), value = curves[current].values[row];
      playhead.setAttribute("x1", at);
      playhead.setAttribute("x2", at);
      dot.setAttribute("visibility", Number.isNaN(value) ? "hidden" : "visible");
      if (Number.isNaN(value)) return;
      dot.setAttribute("cx", at);
      dot.setAttribute("cy", y(value));
    }

    const rowAt = (event) => {
      const part = clamp((event.clientX - box.getBoundingClientRect().left - LEFT) / (width - LEFT - RIGHT), 0, 1);
      return nearest(times, from + (part * span) / zoom);
    };
    box.addEventListener("pointermove", (event) => view.show(rowAt(event)));
    box.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      view.keep(rowAt(event));
      box.setPointerCapture(event.pointerId);
    });
    box.addEventListener("pointerup", (event) => { if (!event.button) view.keep(rowAt(event)); });
    box.addEventListener("pointerleave", () => view.show(view.kept));
    const buttons = every(".choice button[data-curve]");
    const choose = (which) => {
      current = which;
      for (const button of buttons) button.setAttribute("aria-pressed", String(Number(button.dataset.curve) === which));
      for (const node of every(".meaning")) node.hidden = Number(node.dataset.curve) !== which;
      draw();
    };
    for (const button of buttons) button.addEventListener("click", () => choose(Number(button.dataset.curve)));
    const enlarge = (by) => {
      const centre = times[view.kept];
      zoom = clamp(zoom * by, 1, Math.max(1, N / 16));
      from = clamp(centre - span / zoom / 2, first, first + span - span / zoom);
      $("zoom-out").disabled = zoom <= 1;
      $("zoom-in").disabled = zoom >= N / 16;
      draw();
    };
    $("zoom-in").addEventListener("click", () => enlarge(2));
    $("zoom-out").addEventListener("click", () => enlarge(0.5));
    enlarge(1);
    choose(0);
    return { draw, mark, enlarge };
  })();

  // ---- the pictures

  const heat = data.heat && $("heated") && (() => {
    const [ROWS, COLUMNS] = data.heat.grid, P = ROWS * COLUMNS;
    const codes = bytes(data.heat.codes), colours = bytes(data.heat.colours);
    const canvas = $("heated").querySelector("canvas"), context = canvas.getContext("2d");
    canvas.width = COLUMNS;
    canvas.height = ROWS;
    const value = (code) => (code / 255) ** 2 * data.heat.most;
    const colour = (target, k, part) => {  // the hotter, the less of the picture is left
      const c = 3 * Math.round(255 * part);
      for (let channel = 0; channel < 3; channel++) target[4 * k + channel] = colours[c + channel];
    };
    const ramp = $("bar").getContext("2d"), strip = ramp.createImageData(256, 1);
    for (let k = 0; k < 256; k++) { colour(strip.data, k, k / 255); strip.data[4 * k + 3] = 255; }
    ramp.putImageData(strip, 0, 0);

    let whole = true, part = null;
    function draw(s) {
      part = codes.subarray(s * P, (s + 1) * P);
      const most = whole ? data.heat.most : value(part.reduce((a, b) => Math.max(a, b), 0)) || data.heat.most;
      const image = context.createImageData(COLUMNS, ROWS);
      for (let p = 0; p < P; p++) {
        const level = Math.min(1, value(part[p]) / most);
        colour(image.data, p, level);
        image.data[4 * p + 3] = 255 * data.heat.opacity * Math.sqrt(level);
      }
      context.putImageData(image, 0, 0);
      $("high").textContent = number(most);
      for (const button of every("#scale button")) button.setAttribute("aria-pressed", String((button.dataset.range === "all") === whole));
      rest();
    }
    const text = $("heat-text");
    const rest = () => {
      const p = part.indexOf(part.reduce((a, b) => Math.max(a, b), 0));
      text.textContent = part[p] ? `Patch distance: up to ${number(value(part[p]))} at row ${Math.floor(p / COLUMNS)}, col ${p % COLUMNS}` : "Patch distance: 0 everywhere";
    };
    canvas.addEventListener("pointermove", (event) => {
      const area = canvas.getBoundingClientRect();
      const column = clamp(Math.floor(((event.clientX - area.left) / area.width) * COLUMNS), 0, COLUMNS - 1);
      const row = clamp(Math.floor(((event.clientY - area.top) / area.height) * ROWS), 0, ROWS - 1);
      text.textContent = `Patch distance: ${number(value(part[row * COLUMNS + column]))} at row ${row}, col ${column}`;
    });
    canvas.addEventListener("pointerleave", rest);
    for (const button of every("#scale button"))
      button.addEventListener("click", () => { whole = button.dataset.range === "all"; draw(view.picture); });
    const fade = () => { canvas.style.opacity = $("opacity").value / 100; };
    $("opacity").addEventListener("input", fade);
    fade();
    return { draw };
  })();

  const images = every("#panels figure").flatMap((figure) => every("img", figure).map((image) => [image, image.dataset.flip || figure.dataset.picture]));
  for (const [image] of images) image.decoding = "sync";  // old and new picture never mix
  if ($("flipped")) {  // no picture is higher than the window
    const image = $("flipped").querySelector("img");
    image.addEventListener("load", () => $("panels").style.setProperty("--ratio", image.naturalWidth / image.naturalHeight));
  }
  const worstButtons = every("#worst button");

  view.show = (row) => {
    view.row = row;
    chart.mark(row);
    const values = curves.map(({ name, values: series }) => `${name} ${number(series[row])}`);
    $("readout").textContent = `${at(row)}: ${values.join(", ")}`;
    $("chart").setAttribute("aria-valuenow", row);
    $("chart").setAttribute("aria-valuetext", `${at(row)}, ${values[0]}`);
    for (const button of worstButtons) button.classList.toggle("current", Number(button.dataset.row) === row);
    const s = pictureOf(row);
    if (s < 0 || !$("panels")) return;
    $("shown-text").textContent = shown[s] === row ? at(row) : `${at(shown[s])}, the nearest with pictures`;
    if (s === view.picture) return;
    view.picture = s;
    for (const [image, name] of images) image.src = source(name, s);
    if (heat) heat.draw(s);
  };
  view.keep = (row) => {
    view.kept = row;
    chart.draw();
    view.show(row);
  };

  for (const button of worstButtons) {
    const row = Number(button.dataset.row), s = shown.indexOf(row), image = button.querySelector("img");
    if (s >= 0 && data.main) { image.src = source(data.main, s); image.hidden = false; }
    button.addEventListener("click", () => {
      view.keep(row);
      if ($("panels")) $("panels").scrollIntoView({ block: "nearest" });
    });
  }

  // ---- flipping

  const flips = every("button.flip");
  function flip(name) {  // null: the picture itself again
    const figure = $("flipped");
    for (const image of every("img", figure)) image.hidden = (image.dataset.flip || null) !== name;
    figure.classList.toggle("other", name !== null);
    figure.querySelector("figcaption").textContent = figure.dataset.caption;
    if (name !== null) figure.querySelector("figcaption").textContent = every("#panels figure").find((f) => f.dataset.picture === name).dataset.caption;
    for (const button of flips) button.classList.toggle("held", button.dataset.flip === name);
  }
  for (const figure of every("#panels figure")) figure.dataset.caption = figure.querySelector("figcaption").textContent;
  for (const button of flips) {
    button.addEventListener("pointerdown", (event) => { button.setPointerCapture(event.pointerId); flip(button.dataset.flip); });
    for (const end of ["pointerup", "pointercancel", "blur"]) button.addEventListener(end, () => flip(null));
    button.addEventListener("keydown", (event) => { if (event.key === " " || event.key === "Enter") { flip(button.dataset.flip); event.preventDefault(); } });
    button.addEventListener("keyup", () => flip(null));
    button.addEventListener("contextmenu", (event) => event.preventDefault());  // a long touch
  }

  if ($("enlarge"))
    $("enlarge").addEventListener("click", () => $("enlarge").setAttribute("aria-pressed", String($("panels").classList.toggle("large"))));

  // ---- the keyboard

  const along = [...worst].sort((a, b) => a - b);
  /** The next of rising `rows` from the kept one in a direction, or that one itself at the end. */
  function turn(rows, by) {
    const next = by > 0 ? rows.find((row) => row > view.kept) : rows.findLast((row) => row < view.kept);
    view.keep(next === undefined ? view.kept : next);
  }
  const stepOne = (by) => view.keep(clamp(view.kept + by, 0, N - 1));
  const step = (by, fine) => (fine || !shown.length ? stepOne(by) : turn(shown, by));
  if ($("previous")) {
    $("previous").addEventListener("click", () => step(-1));
    $("next").addEventListener("click", () => step(1));
  }
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const other = flips["fg".indexOf(key)];
    if (other) flip(other.dataset.flip);
    else if (key === "ArrowLeft" || key === "ArrowRight") step(key === "ArrowLeft" ? -1 : 1, event.shiftKey);
    else if ((key === "PageUp" || key === "PageDown") && worst.length) turn(along, key === "PageUp" ? -1 : 1);
    else if (key === "+" || key === "=" || key === "-") chart.enlarge(key === "-" ? 0.5 : 2);
    else if (event.target === $("chart") && (key === "Home" || key === "End")) view.keep(key === "Home" ? 0 : N - 1);
    else return;
    event.preventDefault();
  });
  addEventListener("keyup", (event) => { if (flips["fg".indexOf(event.key.toLowerCase())]) flip(null); });
  addEventListener("blur", () => { if (flips.length) flip(null); });

  view.keep(worst.length ? worst[0] : shown.length ? shown[0] : 0);
  new ResizeObserver(chart.draw).observe($("chart"));
  document.documentElement.dataset.ready = "true";
})();
