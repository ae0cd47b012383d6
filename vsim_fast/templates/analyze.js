"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const [ROWS, COLUMNS] = data.grid;
  const P = ROWS * COLUMNS;
  const VIRIDIS = bytes(data.viridis);
  const element = (tag, className, parent, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const at = (frame) => `${data.pts[frame].toFixed(2)} s`;
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // ---- pictures and colours

  const buttons = [...document.querySelectorAll("#strip button")];
  const pictured = buttons.map((button) => Number(button.dataset.index));
  const pictureOf = (frame) => {  // the frame's own picture or the nearest one
    let best = 0;
    pictured.forEach((index, k) => { if (Math.abs(index - frame) < Math.abs(pictured[best] - frame)) best = k; });
    return buttons.length ? { src: buttons[best].querySelector("img").src, frame: pictured[best] } : null;
  };
  const aspect = buttons.length ? buttons[0].querySelector("img") : null;  // all frames have the shape of the first

  /** Paint values (Float32Array, row by row) into a canvas of that many pixels. */
  function paint(canvas, values, width, height, low, high) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const gain = high > low ? 256 / (high - low) : 0;
    for (let i = 0; i < width * height; i++) {
      const k = 3 * clamp(Math.floor((values[i] - low) * gain), 0, 255);
      image.data[4 * i] = VIRIDIS[k];
      image.data[4 * i + 1] = VIRIDIS[k + 1];
      image.data[4 * i + 2] = VIRIDIS[k + 2];
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  /** Colour bar with the choice of 0 to 1 or the range of the values; `range()` gives the latter. */
  function colourScale(box, range, changed) {
    const low = element("span", "low", box);
    const bar = element("canvas", "", box);
    const high = element("span", "high", box);
    paint(bar, Float32Array.from({ length: 256 }, (_, i) => (i + 0.5) / 256), 256, 1, 0, 1);
    let full = true;
    const choices = [[true, "0 to 1"], [false, "min to max"]].map(([value, text]) => {
      const button = element("button", "", box, text);
      button.type = "button";
      button.addEventListener("click", () => { full = value; changed(); });
      return [value, button];
    });
    return () => {
      const limits = full ? [0, 1] : range();
      low.textContent = limits[0].toFixed(2);
      high.textContent = limits[1].toFixed(2);
      for (const [value, button] of choices) button.setAttribute("aria-pressed", String(value === full));
      return limits;
    };
  }
  const extent = (values) => {
    let low = Infinity, high = -Infinity;
    for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
    return [low, high];
  };

  /** A picture with a patch map over it. */
  function mapFrame(box, frame) {
    box.style.setProperty("--ratio", aspect && aspect.naturalHeight ? aspect.naturalWidth / aspect.naturalHeight : COLUMNS / ROWS);
    const image = element("img", "", box);
    image.alt = "";
    const show = (index) => {
      const picture = pictureOf(index);
      image.hidden = !picture || picture.frame !== index;
      if (!image.hidden) image.src = picture.src;
    };
    show(frame);
    const canvas = element("canvas", "", box);
    const place = (cell, p) => {
      cell.hidden = p === null;
      if (p === null) return;
      cell.style.left = `${(100 * (p % COLUMNS)) / COLUMNS}%`;
      cell.style.top = `${(100 * Math.floor(p / COLUMNS)) / ROWS}%`;
      cell.style.width = `${100 / COLUMNS}%`;
      cell.style.height = `${100 / ROWS}%`;
    };
    const selected = element("div", "cell", box);
    const hovered = element("div", "cell hover", box);
    place(selected, null);
    place(hovered, null);
    return {
      box, canvas, show,
      select: (p) => place(selected, p), hover: (p) => place(hovered, p),
      draw: (values, low, high) => paint(canvas, values, COLUMNS, ROWS, low, high),
      patchAt: (event) => {
        const area = box.getBoundingClientRect();
        const column = clamp(Math.floor(((event.clientX - area.left) / area.width) * COLUMNS), 0, COLUMNS - 1);
        const row = clamp(Math.floor(((event.clientY - area.top) / area.height) * ROWS), 0, ROWS - 1);
        return row * COLUMNS + column;
      },
    };
  }
  const patchName = (p) => `row ${Math.floor(p / COLUMNS)}, col ${p % COLUMNS}`;

  /** Mark a frame in the strip and bring it into view, without moving the page. */
  function markInStrip(frames) {
    for (const button of buttons) button.classList.remove("current");
    let target = null;
    for (const frame of frames) {
      const picture = pictureOf(frame);
      if (!picture) return;
      target = buttons[pictured.indexOf(picture.frame)];
      target.classList.add("current");
    }
    const strip = $("strip");
    const item = target.parentElement;
    strip.scrollLeft = item.offsetLeft - strip.offsetLeft - (strip.clientWidth - item.clientWidth) / 2;
  }

  /** Round tick values from `from` to `to`, and the decimals they need. */
  function ticks(from, to, most) {
    const raw = (to - from) / most, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((candidate) => candidate >= raw - 1e-9);
    const found = [];
    for (let k = Math.ceil(from / step - 1e-6); k * step <= to + step * 1e-6; k++) found.push(k * step);
    return [found, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))];
  }

  /** A series over time as SVG. `over(k)` while the pointer is nearest to point k, `over(null)` when it leaves. */
  function lineChart(box, { times, series, low, high, current, title, over, chosen }) {
    const n = times.length;
    const width = Math.max(240, box.clientWidth), height = box.clientHeight || 190;
    const inner = { left: 44, right: width - 8, top: 24, bottom: height - 36 };
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const add = (tag, attributes, text) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      if (text !== undefined) node.textContent = text;
      svg.append(node);
      return node;
    };
    for (const [name, value] of [["viewBox", `0 0 ${width} ${height}`], ["role", "img"], ["aria-label", title]]) svg.setAttribute(name, value);
    if (!(high > low)) high = low + 1e-3;
    const first = times[0], span = times[n - 1] - first || 1;
    const x = (t) => inner.left + ((t - first) / span) * (inner.right - inner.left);
    const y = (v) => inner.bottom - ((v - low) / (high - low)) * (inner.bottom - inner.top);
    add("text", { x: 0, y: 10 }, title);
    const [levels, decimals] = ticks(low, high, 6);
    for (const v of levels) {
      add("line", { class: "grid", x1: inner.left, x2: inner.right, y1: y(v), y2: y(v) });
      add("text", { x: inner.left - 8, y: y(v) + 4, "text-anchor": "end" }, v.toFixed(decimals));
    }
    const [moments, places] = ticks(first, first + span, Math.min(8, width / 70));
    for (const t of moments) {
      add("line", { class: "grid", x1: x(t), x2: x(t), y1: inner.bottom, y2: inner.bottom + 4 });
      add("text", { x: x(t), y: inner.bottom + 17, "text-anchor": "middle" }, t.toFixed(places));
    }
    add("text", { x: inner.right, y: height - 3, "text-anchor": "end" }, "Time (s)");
    const points = series.map((v, k) => [x(times[k]), y(v)]);
    add("polyline", { class: "curve", points: points.map((point) => point.map((c) => c.toFixed(1)).join()).join(" ") });
    const dot = (k, style) => add("circle", { class: style, cx: points[k][0], cy: points[k][1], r: style === "dot" ? 2.5 : 4.5 });
    if (n <= 100) points.forEach((_, k) => dot(k, "dot"));
    if (current !== null) dot(current, "dot current");
    const pointer = dot(0, "dot pointer");
    pointer.setAttribute("visibility", "hidden");
    const nearest = (event) => {
      const at = ((event.clientX - svg.getBoundingClientRect().left) / svg.getBoundingClientRect().width) * width;
      let best = 0;
      points.forEach((point, k) => { if (Math.abs(point[0] - at) < Math.abs(points[best][0] - at)) best = k; });
      return best;
    };
    svg.addEventListener("pointermove", (event) => {
      const k = nearest(event);
      pointer.setAttribute("cx", points[k][0]);
      pointer.setAttribute("cy", points[k][1]);
      pointer.setAttribute("visibility", "visible");
      over(k);
    });
    svg.addEventListener("pointerleave", () => { pointer.setAttribute("visibility", "hidden"); over(null); });
    svg.addEventListener("click", (event) => chosen(nearest(event)));
    box.replaceChildren(svg);
  }

  // ---- frame similarity

  function frameSimilarity() {
    const plot = $("similarity-plot");
    if (!plot) return;
    const frames = data.similarity.frames;
    const n = frames.length;
    const triangle = new Int16Array(bytes(data.similarity.triangle).buffer);
    const values = new Float32Array(n * n);
    for (let i = 0, k = 0; i < n; i++)
      for (let j = i; j < n; j++, k++) values[i * n + j] = values[j * n + i] = triangle[k] / 32767;
    const canvas = element("canvas", "", plot);
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", "Frame similarity map. Arrow keys choose two frames, Enter keeps the pair.");
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((s) => n / s <= 8) || 2000;
    for (let k = 0; k < n; k += step) {
      const place = `${(100 * (k + 0.5)) / n}%`;
      element("span", "tick x", plot, frames[k]).style.left = place;
      element("span", "tick y", plot, frames[k]).style.top = place;
    }
    element("span", "tick x title", plot, "Frame").style.left = "50%";
    element("span", "tick y title", plot, "Frame").style.top = "50%";
    const crosses = ["left", "top"].map((side) => {
      const line = element("div", "cross", plot);
      line.style[side === "left" ? "top" : "left"] = "0";
      line.style[side === "left" ? "height" : "width"] = "100%";
      line.style[side === "left" ? "width" : "height"] = "1px";
      return (k) => { line.style[side] = `${(100 * (k + 0.5)) / n}%`; };
    });
    const figures = ["pair-a", "pair-b"].map((id) => {
      const image = element("img", "", $(id));
      image.alt = "";
      return [image, element("figcaption", "", $(id))];
    });
    let kept = [0, n - 1], pair = kept;
    const show = (i, j) => {  // i: row, j: column
      pair = [i, j];
      crosses[0](j);
      crosses[1](i);
      $("pair-value").textContent = values[i * n + j].toFixed(4);
      pair.forEach((k, side) => {
        const [image, caption] = figures[side];
        const picture = pictureOf(frames[k]);
        image.hidden = !picture;
        if (picture && image.src !== picture.src) image.src = picture.src;
        const near = picture && picture.frame !== frames[k] ? ` (picture: frame ${picture.frame})` : "";
        caption.textContent = `Frame ${frames[k]} at ${at(frames[k])}${near}`;
      });
    };
    const keep = () => { kept = pair; markInStrip(kept.map((k) => frames[k])); };
    const cell = (event) => {
      const area = canvas.getBoundingClientRect();
      return [[event.clientY - area.top, area.height], [event.clientX - area.left, area.width]]
        .map(([offset, length]) => clamp(Math.floor((offset / length) * n), 0, n - 1));
    };
    canvas.addEventListener("pointermove", (event) => show(...cell(event)));
    canvas.addEventListener("pointerleave", () => show(...kept));
    canvas.addEventListener("click", (event) => { show(...cell(event)); keep(); });
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (event.key === "Enter") keep();
      else if (move) { kept = pair.map((k, side) => clamp(k + move[side], 0, n - 1)); show(...kept); }
      else return;
      event.preventDefault();
    });
    const limits = colourScale($("similarity-scale"), () => extent(values), () => draw());
    const steps = Array.from({ length: n - 1 }, (_, k) => values[k * n + k + 1]);
    const draw = () => {
      const [low, high] = limits();
      paint(canvas, values, n, n, low, high);
      lineChart($("steps"), {
        times: frames.slice(1).map((frame) => data.pts[frame]), series: steps, low: Math.min(low, ...steps), high, current: null,
        title: "Similarity of each frame to the one before",
        over: (k) => show(...(k === null ? kept : [k, k + 1])),
        chosen: (k) => { show(k, k + 1); keep(); },
      });
    };
    draw();
    new ResizeObserver(draw).observe($("steps"));
    show(...kept);
  }

  // ---- patch explorer

  /** Cosines of one patch with all patches of the frames shown, from the compressed features. */
  function cosines({ rank, kappa, ...packed }) {
    const codes = new Int8Array(bytes(packed.codes).buffer);
    const scales = new Float32Array(bytes(packed.scales).buffer);
    const count = scales.length;
    const lengths = new Float32Array(count), dropped = new Float32Array(count);
    for (let n = 0; n < count; n++) {
      let sum = 0;
      for (let k = n * rank; k < (n + 1) * rank; k++) sum += codes[k] * codes[k];
      const square = sum * scales[n] * scales[n];
      lengths[n] = Math.sqrt(square);
      dropped[n] = scales[n] > 0 ? Math.sqrt(Math.max(0, 1 - square)) : 0;
    }
    return (query) => {
      const out = new Float32Array(count);
      if (!(scales[query] > 0)) return out;  // a zero patch is similar to nothing
      const vector = Float32Array.from(codes.subarray(query * rank, (query + 1) * rank), (code) => code * scales[query]);
      for (let n = 0, k = 0; n < count; n++) {
        let inner = 0;
        for (let d = 0; d < rank; d++, k++) inner += vector[d] * codes[k];
        inner *= scales[n];
        const cosine = inner / Math.max(1e-12, lengths[query] * lengths[n]);
        const bin = Math.min(kappa.length - 1, Math.floor(kappa.length * Math.sqrt(Math.max(0, 1 - cosine) / 2)));
        out[n] = clamp(inner + dropped[query] * dropped[n] * kappa[bin], -1, 1);
      }
      out[query] = 1;
      return out;
    };
  }

  /** `selected(p)` is told the patch position on every change. */
  function patchExplorer(selected) {
    if (!$("query")) return null;
    const frames = data.explorer.frames;
    const S = frames.length;
    const compare = cosines(data.explorer);
    let s = Math.floor(S / 2), p = Math.floor(ROWS / 2) * COLUMNS + Math.floor(COLUMNS / 2);
    let values = null;
    const part = (k) => values.subarray(k * P, (k + 1) * P);
    const describe = (k, q) => `Frame ${frames[k]} at ${at(frames[k])}, patch ${q} (${patchName(q)})`;
    const query = mapFrame($("query"), frames[s]);
    const tiles = frames.map((frame, k) => {
      const tile = element("div", "tile", $("shown"));
      const map = mapFrame(element("div", "frame", tile), frame);
      const caption = element("p", "", tile);
      element("span", "", caption, at(frame));
      return { tile, map, value: element("span", "", caption), k };
    });
    const read = (k, q) => { $("hover-text").textContent = `${describe(k, q)}: cosine ${part(k)[q].toFixed(3)}`; };
    const hover = (k, q, map) => {
      for (const { map: other } of tiles) if (other !== map) other.hover(null);
      if (map !== query) query.hover(null);
      map.hover(q);
      read(k, q);
    };
    const restore = () => {
      query.hover(null);
      for (const { map } of tiles) map.hover(null);
      const [low, high] = extent(frames.map((_, k) => part(k)[p]));
      $("hover-text").textContent = S > 1 ? `Same position over time: ${low.toFixed(3)} to ${high.toFixed(3)}` : "";
    };
    const limits = colourScale($("explorer-scale"), () => extent(values), () => draw());
    const draw = () => {
      const range = limits();
      query.show(frames[s]);
      query.draw(part(s), ...range);
      query.select(p);
      for (const { tile, map, value, k } of tiles) {
        map.draw(part(k), ...range);
        map.select(p);
        tile.classList.toggle("current", k === s);
        value.textContent = part(k)[p].toFixed(3);
      }
      chart(range);
    };
    const select = (frame, patch) => {
      s = frame;
      p = patch;
      values = compare(s * P + p);
      $("query-text").textContent = describe(s, p);
      draw();
      restore();
      selected(p);
    };
    const bind = (map, frameOf) => {
      map.box.addEventListener("pointermove", (event) => hover(frameOf(), map.patchAt(event), map));
      map.box.addEventListener("pointerleave", restore);
      map.box.addEventListener("click", (event) => select(frameOf(), map.patchAt(event)));
    };
    bind(query, () => s);
    for (const { map, k } of tiles) bind(map, () => k);
    const turn = (by) => select(clamp(s + by, 0, S - 1), p);
    $("previous").addEventListener("click", () => turn(-1));
    $("next").addEventListener("click", () => turn(1));
    query.box.addEventListener("keydown", (event) => {
      const row = Math.floor(p / COLUMNS), column = p % COLUMNS;
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (move) select(s, clamp(row + move[0], 0, ROWS - 1) * COLUMNS + clamp(column + move[1], 0, COLUMNS - 1));
      else if (event.key === "PageUp") turn(-1);
      else if (event.key === "PageDown") turn(1);
      else return;
      event.preventDefault();
    });
    const overlay = () => {
      for (const { canvas } of [query, ...tiles.map(({ map }) => map)]) canvas.style.opacity = $("overlay").value / 100;
    };
    $("overlay").addEventListener("input", overlay);

    function chart([low, high]) {
      if (S === 1) return;
      const series = frames.map((_, k) => part(k)[p]);
      lineChart($("chart"), {
        times: frames.map((frame) => data.pts[frame]), series, low: Math.min(low, ...series), high, current: s,
        title: "Cosine with the selected patch at the same position",
        over: (k) => (k === null ? restore() : read(k, p)),
        chosen: (k) => select(k, p),
      });
    }

    select(s, p);
    overlay();
    if (S > 1) new ResizeObserver(() => chart(limits())).observe($("chart"));
    return {
      selectFrame: (frame) => {
        let best = 0;
        frames.forEach((f, k) => { if (Math.abs(f - frame) < Math.abs(frames[best] - frame)) best = k; });
        select(best, p);
      },
      selectPosition: (q) => select(s, q),
    };
  }

  // ---- stability of positions

  /** `chosen(p)` is told the position that was clicked. */
  function positionMap(chosen) {
    if (!$("position")) return null;
    const values = new Float32Array(bytes(data.position).buffer);
    const map = mapFrame($("position"), pictured[Math.floor(pictured.length / 2)]);
    const limits = colourScale($("position-scale"), () => extent(values), () => draw());
    const draw = () => map.draw(values, ...limits());
    const rest = () => {
      const [low, high] = extent(values);
      map.hover(null);
      $("position-text").textContent = `From ${low.toFixed(3)} at ${patchName(values.indexOf(low))} to ${high.toFixed(3)} at ${patchName(values.indexOf(high))}.`;
    };
    map.canvas.style.opacity = 0.65;
    map.box.addEventListener("pointermove", (event) => {
      const p = map.patchAt(event);
      map.hover(p);
      $("position-text").textContent = `Patch ${p} (${patchName(p)}): ${values[p].toFixed(4)}`;
    });
    map.box.addEventListener("pointerleave", rest);
    map.box.addEventListener("click", (event) => chosen(map.patchAt(event)));
    draw();
    rest();
    return map;
  }

  async function start() {
    if (aspect && aspect.decode) await aspect.decode().catch(() => {});  // its size sets the shape of every map
    frameSimilarity();
    const position = positionMap((p) => explorer && explorer.selectPosition(p));
    const explorer = patchExplorer((p) => position && position.select(p));
    for (const button of buttons) {
      button.addEventListener("click", () => {
        markInStrip([Number(button.dataset.index)]);
        if (explorer) explorer.selectFrame(Number(button.dataset.index));
      });
    }
    document.documentElement.dataset.ready = "true";
  }
  start();
})();
