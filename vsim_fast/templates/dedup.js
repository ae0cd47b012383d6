"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const element = (tag, className, parent, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const every = (selector, root = document) => [...root.querySelectorAll(selector)];
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  const clock = (seconds, decimals = 1) => {
    if (seconds < 60) return `${seconds.toFixed(decimals)} s`;
    const whole = Math.round(seconds), two = (n) => String(n).padStart(2, "0");
    const minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
    return hours ? `${hours}:${two(minutes % 60)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
  };
  const size = (bytes) => {
    const [unit, name] = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([u]) => bytes >= 0.9995 * u) || [1, "bytes"];
    return `${unit === 1 ? bytes : Number((bytes / unit).toPrecision(3))} ${name}`;
  };

  // ---- pictures and strips, drawn when they come near

  function picture(parent, v, frame, ratio) {
    const video = data.videos[v];
    const box = element("span", "picture", parent);
    box.style.aspectRatio = ratio;
    const row = video.pictures[frame];
    if (row === undefined) element("em", "", box, "no picture");
    else {
      const image = element("img", "", box);
      image.decoding = "async";
      image.alt = "";
      image.src = `data:image/jpeg;base64,${data.pictures[row]}`;
    }
    if (video.seconds[frame] !== undefined) element("span", "", box, clock(video.seconds[frame]));
    return box;
  }

  /** One shape for all pictures of a pair, so that rows stay level; the wider video decides, within limits. */
  const shape = (...videos) => clamp(Math.max(...videos.map((v) => data.videos[v].ratio)), 1, 16 / 9);

  function drawFrames(node, pair, strip) {
    const box = node.querySelector(".frames");
    if (!pair.shown.length) return;
    const sides = element("p", "sides", box);
    for (const name of ["This", "Reference"]) element("span", "", sides, name);
    for (const [i, j, similarity] of pair.shown) {
      const figure = element("figure", "", box);
      picture(figure, pair.query, i, shape(pair.query, pair.ref));
      picture(figure, pair.ref, j, shape(pair.query, pair.ref));
      element("figcaption", "", figure, similarity === null ? "not matched" : `similarity ${similarity.toFixed(2)}`);
      if (similarity === null) continue;
      figure.addEventListener("pointerenter", () => { figure.classList.add("over"); strip.mark(i, j); });
      figure.addEventListener("pointerleave", () => { figure.classList.remove("over"); strip.mark(); });
    }
  }

  /** Stretches [from, to] of a video around its matched content frames, each frame reaching half way to the next. */
  function explained(video, frames) {
    const t = video.seconds;
    const gaps = t.slice(1).map((time, k) => time - t[k]).sort((a, b) => a - b);
    const reach = gaps.length ? 0.75 * gaps[gaps.length >> 1] : video.duration;  // farther away lies what was masked
    const stretches = [];
    for (const k of [...new Set(frames)].sort((a, b) => a - b)) {
      const from = Math.max(0, t[k] - (k ? Math.min(reach, (t[k] - t[k - 1]) / 2) : reach));
      const to = Math.min(video.duration, t[k] + (k + 1 < t.length ? Math.min(reach, (t[k + 1] - t[k]) / 2) : reach));
      const last = stretches[stretches.length - 1];
      if (last && from <= last[1] + 1e-3) last[1] = to;
      else stretches.push([from, to]);
    }
    return stretches;
  }

  function ticks(duration, room) {
    const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
    const step = steps.find((s) => duration / s <= room) || 28800;
    const found = [];
    for (let k = 0; k * step <= duration * 1.0001; k++) found.push(k * step);
    return [found, step < 1 ? 1 : 0];
  }

  /** Two axes on one scale of seconds, this video above the reference, and a line for each matched pair of frames. */
  function drawStrip(node, pair) {
    const box = node.querySelector(".drawing"), readout = node.querySelector(".readout");
    const videos = [data.videos[pair.query], data.videos[pair.ref]];
    const longest = Math.max(videos[0].duration, videos[1].duration, 1e-3);
    const similarities = pair.matches.map((match) => match[2]).sort((a, b) => a - b);
    const summary = !pair.matches.length ? "No matched frames."
      : pair.matches.length === 1 ? `One matched pair of frames, similarity ${similarities[0].toFixed(2)}.`
      : `${pair.matches.length} matched pairs of frames, similarity ${similarities[0].toFixed(2)} to ${similarities[similarities.length - 1].toFixed(2)}.`;
    const shown = new Set(pair.shown.map(([i, j]) => `${i} ${j}`));
    const LEFT = 92, RIGHT = 20, BARS = [[18, 26], [74, 82]];
    let lines = [], drawn = 0;

    function draw() {
      const width = Math.max(220, box.clientWidth);
      if (width === drawn) return;
      drawn = width;
      const x = (seconds) => LEFT + (seconds / longest) * (width - LEFT - RIGHT);
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const add = (tag, attributes, text) => {
        const item = document.createElementNS("http://www.w3.org/2000/svg", tag);
        for (const [name, value] of Object.entries(attributes)) item.setAttribute(name, value);
        if (text !== undefined) item.textContent = text;
        svg.append(item);
        return item;
      };
      for (const [name, value] of [["viewBox", `0 0 ${width} 104`], ["role", "img"], ["aria-label", `Alignment of ${clock(videos[0].duration)} of this video with ${clock(videos[1].duration)} of the reference. ${summary}`]]) svg.setAttribute(name, value);
      videos.forEach((video, side) => {
        const [top, bottom] = BARS[side];
        add("rect", { class: "bar", x: LEFT, y: top, width: Math.max(1, x(video.duration) - LEFT), height: bottom - top });
        for (const [from, to] of explained(video, pair.matches.map((match) => match[side])))
          add("rect", { class: "explained", x: x(from), y: top, width: Math.max(1, x(to) - x(from)), height: bottom - top });
        const span = x(video.duration) - LEFT;
        const [moments, decimals] = ticks(video.duration, Math.max(1, span / 56));
        for (const t of moments) {
          add("line", { class: "tick", x1: x(t), x2: x(t), y1: side ? bottom : top - 3, y2: side ? bottom + 3 : top });
          add("text", { x: x(t), y: side ? bottom + 15 : top - 6, "text-anchor": "middle" }, clock(t, decimals));
        }
        const share = pair.coverage[side];
        add("text", { x: 0, y: top + (share === null ? 8 : 1) }, side ? "Reference" : "This");
        if (share !== null) add("text", { x: 0, y: top + 15 }, `${Math.floor(100 * share + (share > 0.99 ? 0 : 0.5))} % found`);
      });
      lines = pair.matches.map(([i, j, similarity]) => {
        const line = add("line", {
          class: shown.has(`${i} ${j}`) ? "match shown" : "match",
          x1: x(videos[0].seconds[i]), y1: BARS[0][1], x2: x(videos[1].seconds[j]), y2: BARS[1][0],
        });
        line.style.stroke = `color-mix(in oklab, var(--high) ${Math.round(100 * similarity)}%, var(--low))`;
        return { line, i, j, similarity };
      });
      svg.addEventListener("pointermove", (event) => {
        const area = svg.getBoundingClientRect();
        const px = ((event.clientX - area.left) / area.width) * width, py = event.clientY - area.top;
        const part = clamp((py - BARS[0][1]) / (BARS[1][0] - BARS[0][1]), 0, 1);
        const along = ({ i, j }) => Math.abs(x(videos[0].seconds[i]) * (1 - part) + x(videos[1].seconds[j]) * part - px);
        const nearest = lines.reduce((best, item) => (!best || along(item) < along(best) ? item : best), null);
        if (nearest) mark(nearest.i, nearest.j);
      });
      svg.addEventListener("pointerleave", () => mark());
      box.replaceChildren(svg);
    }

    function mark(i, j) {
      readout.textContent = summary;
      for (const item of lines) {
        const over = item.i === i && item.j === j;
        item.line.classList.toggle("over", over);
        if (over) readout.textContent = `${clock(videos[0].seconds[i], 2)} is ${clock(videos[1].seconds[j], 2)} of the reference, similarity ${item.similarity.toFixed(2)}`;
      }
    }

    draw();
    mark();
    new ResizeObserver(draw).observe(box);
    return { mark };
  }

  const pending = new Set(every(".group, .related > .pair"));
  function fill(node) {
    if (!pending.delete(node)) return;
    watcher.unobserve(node);
    for (const item of node.matches(".pair") ? [node] : every(".pair", node)) {
      const pair = data.pairs[item.dataset.pair];
      drawFrames(item, pair, drawStrip(item, pair));
    }
    const poster = node.querySelector(".poster");
    const first = poster && data.pairs[node.querySelector(".pair")?.dataset.pair];
    if (first && first.shown.length) picture(poster, first.ref, first.shown[first.shown.length >> 1][1], shape(first.ref));
  }
  const watcher = new IntersectionObserver(
    (entries) => { for (const entry of entries) if (entry.isIntersecting) fill(entry.target); }, { rootMargin: "900px" },
  );
  for (const node of pending) watcher.observe(node);
  const fillAll = () => { for (const node of [...pending]) fill(node); };
  addEventListener("beforeprint", fillAll);

  // ---- marks

  const marks = { rejected: new Set(data.marks.not_duplicates), kept: new Set(data.marks.keep), withdrawn: new Set() };
  const STORE = `vsim-dedup-${data.id}`;
  try {  // a reload keeps the marks; a browser that forbids storage does without
    const stored = JSON.parse(sessionStorage.getItem(STORE));
    for (const name of Object.keys(marks)) if (stored) marks[name] = new Set(stored[name]);
  } catch { /* none */ }
  const listed = () => JSON.stringify(Object.fromEntries(Object.entries(marks).map(([name, set]) => [name, [...set].sort()])));
  const identity = (v) => ({ key: data.videos[v].key, path: data.videos[v].path });
  const inForce = JSON.stringify({ rejected: [...data.marks.not_duplicates].sort(), kept: [...data.marks.keep].sort(), withdrawn: [] });
  let saved = inForce;

  function decisions() {
    const stays = (list) => data.earlier[list].filter((_, k) => !marks.withdrawn.has(`${list} ${k}`));
    return {
      schema_version: data.schema_version,
      not_duplicates: [
        ...stays("not_duplicates"),
        ...[...marks.rejected].sort((a, b) => a - b).map((p) => ({ a: identity(data.pairs[p].query), b: identity(data.pairs[p].ref) })),
      ],
      keep: [...stays("keep"), ...[...marks.kept].sort((a, b) => a - b).map(identity)],
    };
  }

  /** What becomes of each video of a group: [state, whether it stays, whether that is the suggestion]. */
  function outcome(group) {
    const out = new Map();
    const together = [group.medoid];
    for (const p of group.pairs) {
      if (marks.rejected.has(p)) out.set(data.pairs[p].query, ["Stays: not a duplicate", true]);
      else together.push(data.pairs[p].query);
    }
    const chosen = together.filter((v) => marks.kept.has(v));
    const keep = chosen.length ? chosen : together.filter((v) => group.suggested.includes(v));
    for (const v of together) {
      if (together.length === 1) out.set(v, ["Stays: nothing left to compare", true]);
      else if (!keep.length) out.set(v, ["Stays until the next run suggests anew", true]);
      else if (chosen.includes(v)) out.set(v, ["Kept: your mark", true]);
      else if (chosen.length) out.set(v, ["Could go: another is kept", false]);
      else out.set(v, keep.includes(v) ? ["Suggested to keep", true, true] : ["Could go", false, true]);
    }
    for (const p of group.pairs) {
      const v = data.pairs[p].query;
      if (marks.rejected.has(p) && marks.kept.has(v)) out.set(v, ["Kept: your mark, not a duplicate", true]);
    }
    return out;
  }

  const stateNodes = every(".group").map((node) => every(".state", node));
  const indexRows = every(".index tbody tr");
  const freesNodes = every(".group").map((node, g) => [node.querySelector(".frees"), indexRows[g].querySelector(".frees")]);
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  const isMarked = (group) => group.pairs.some((p) => marks.rejected.has(p)) || [group.medoid, ...group.pairs.map((p) => data.pairs[p].query)].some((v) => marks.kept.has(v));
  function show() {
    let files = 0, bytes = 0;
    data.groups.forEach((group, g) => {
      let freed = 0;
      const states = outcome(group);
      for (const node of stateNodes[g]) {
        const [text, stays, suggested] = states.get(Number(node.dataset.video));
        node.textContent = text;
        node.classList.toggle("stays", stays);
        node.nextElementSibling.hidden = !suggested;  // its reason
      }
      for (const [v, [, stays]] of states) if (!stays) { files += 1; freed += data.videos[v].bytes; }
      bytes += freed;
      for (const node of freesNodes[g]) node.textContent = freed ? size(freed) : "–";
      const out = group.pairs.filter((p) => marks.rejected.has(p)).length;
      const kept = [...states].filter(([v]) => marks.kept.has(v)).length;
      indexRows[g].querySelector(".marked").textContent = [out && `${out} not`, kept && `${kept} kept`].filter(Boolean).join(", ") || "–";
    });
    for (const button of every("button.keep")) press(button, marks.kept.has(Number(button.dataset.video)));
    for (const button of every("button.reject")) {
      const on = marks.rejected.has(Number(button.dataset.pair));
      press(button, on);
      button.closest(".pair").classList.toggle("rejected", on);
    }
    for (const button of every("button.withdraw")) {
      const on = marks.withdrawn.has(`${button.dataset.list} ${button.dataset.entry}`);
      press(button, on);
      button.closest("li").classList.toggle("withdrawn", on);
    }
    if (!$("save")) return;
    const due = listed() !== saved;
    const parts = [
      marks.rejected.size && `${marks.rejected.size} not a duplicate`, marks.kept.size && `${marks.kept.size} to keep`,
      marks.withdrawn.size && `${marks.withdrawn.size} withdrawn`,
    ].filter(Boolean);
    $("marks").textContent = (parts.length ? `${parts.join(", ")}.` : "No marks yet.") + (due ? " Not saved." : saved !== inForce ? " Saved: put decisions.json beside this page for the next run." : "");
    $("totals").textContent = data.groups.length ? `${files ? `${counted(files, "file")} could go, ${size(bytes)}` : "No file could go"}.` : "";
    $("save").classList.toggle("due", due);
  }

  function toggle(set, value) {
    if (!set.delete(value)) set.add(value);
    try { sessionStorage.setItem(STORE, listed()); } catch { /* none */ }
    show();
  }

  function save() {
    const link = element("a", "", document.body);
    link.href = URL.createObjectURL(new Blob([`${JSON.stringify(decisions(), null, 1)}\n`], { type: "application/json" }));
    link.download = "decisions.json";
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    saved = listed();
    show();
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.id === "save") save();
    else if (button.matches(".keep")) toggle(marks.kept, Number(button.dataset.video));
    else if (button.matches(".reject")) toggle(marks.rejected, Number(button.dataset.pair));
    else if (button.matches(".withdraw")) toggle(marks.withdrawn, `${button.dataset.list} ${button.dataset.entry}`);
  });
  addEventListener("beforeunload", (event) => { if (listed() !== saved) event.preventDefault(); });

  // ---- the list of groups

  const names = every(".group").map((node) => every("h3", node).map((h) => h.textContent.toLowerCase()));
  function filter() {
    if (!$("filter")) return;
    const text = $("filter").value.trim().toLowerCase(), which = $("which").value;
    let count = 0;
    data.groups.forEach((group, g) => {
      const fits = names[g].some((name) => name.includes(text)) && (which === "all" || isMarked(group) === (which === "marked"));
      count += fits;
      $(`group-${g + 1}`).hidden = !fits;
      indexRows[g].hidden = !fits;
    });
    $("filtered").textContent = count === data.groups.length ? "" : `${count} of ${counted(data.groups.length, "group")} shown.`;
  }
  if ($("filter")) {
    $("filter").addEventListener("input", filter);
    $("which").addEventListener("change", filter);
  }

  show();
  document.documentElement.dataset.ready = "true";
})();
