"use strict";

// The viewer. Volumes are codes of 8 bits on a grid along the patient's axes x, y, z (LPS): 0 is "no value", 1 to 255 go
// from `low` to `high`. A plane's picture has one pixel a voxel; the browser scales it. Lines are drawn on a canvas of
// the screen's own resolution above it.

(() => {
  const source = document.getElementById("viewer-data");
  if (!source) return;
  const { pairs, planes, colours } = JSON.parse(source.textContent);
  const byId = (id) => document.getElementById(id);
  const section = byId("viewer");
  section.hidden = false;

  const MODES = ["fixed", "moving", "warped", "checkerboard", "difference", "displacement", "jacobian", "error"];
  const FOLDED = 1;
  const OPAQUE = 0xff000000, HAZARD = [0xff000000, 0xff00e0ff]; // black and yellow, as 0xAABBGGRR
  const WINDOWS = { lung: [-600, 1500], soft: [40, 400] };
  const MASK_COLOURS = ["#e69f00", "#f0e442", "#56b4e9", "#009e73"].map((text) => ({ text,
    value: (OPAQUE | (parseInt(text.slice(5), 16) << 16) | (parseInt(text.slice(3, 5), 16) << 8) | parseInt(text.slice(1, 3), 16)) >>> 0 }));
  const BEFORE = -1; // the "method" that leaves everything where it is
  const palettes = Object.fromEntries(Object.entries(colours).map(([name, text]) => [name, palette(bytesOf(text))]));

  const state = {
    pair: 0, method: BEFORE, mode: "warped", layout: "planes", at: [0, 0, 0], window: "auto", level: 0, width: 1,
    ranges: {}, opacity: 0.6, tile: 24, crosshair: true, landmarks: true, masks: true, slab: 4, flipped: null, plane: 0,
  };
  let volumes = new Map(); // of the pair that is shown, by name; a promise while it is decoded
  let panels = [];

  // Decoding

  function bytesOf(base64) {
    const binary = atob(base64.trim()), bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  }

  function palette(bytes) {
    const entries = new Uint32Array(256);
    for (let i = 0; i < 256; i++) entries[i] = OPAQUE | (bytes[3 * i + 2] << 16) | (bytes[3 * i + 1] << 8) | bytes[3 * i];
    return entries;
  }

  async function inflate(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // Each voxel is stored less the median of three predictions from its neighbours before it (0 outside the volume).
  function unpredict(rest, [nx, ny, nz]) {
    const sy = nx + 1, sz = sy * (ny + 1), padded = new Uint8Array(sz * (nz + 1)), codes = new Uint8Array(nx * ny * nz);
    let from = 0;
    for (let k = 1; k <= nz; k++) {
      for (let j = 1; j <= ny; j++) {
        let p = k * sz + j * sy + 1;
        const row = p;
        for (let i = 0; i < nx; i++, p++) {
          const x = padded[p - 1], y = padded[p - sy], z = padded[p - sz];
          const a = x + y - padded[p - 1 - sy], b = x + z - padded[p - 1 - sz], c = y + z - padded[p - sy - sz];
          const low = a < b ? a : b, high = a < b ? b : a;
          padded[p] = rest[from + i] + (c < low ? low : c > high ? high : c);
        }
        codes.set(padded.subarray(row, row + nx), from);
        from += nx;
      }
    }
    return codes;
  }

  // A volume if it is there; else it is decoded, and all is drawn again when it is.
  function volume(name) {
    const found = volumes.get(name);
    if (found && !found.then) return found;
    if (!found) {
      const pair = pairs[state.pair], store = volumes, head = pair.volumes[name];
      const text = byId(`pair-${state.pair}-${name}`).textContent;
      volumes.set(name, inflate(bytesOf(text)).then((rest) => {
        const values = new Float64Array(256);
        for (let c = 1; c < 256; c++) values[c] = head.low + ((c - 1) * (head.high - head.low)) / 254;
        store.set(name, { ...head, codes: unpredict(rest, pair.size), values });
        if (store === volumes) draw();
      }).catch((error) => { byId("fine").textContent = `The image cannot be decoded: ${error.message}`; }));
    }
    return null;
  }

  // Geometry

  const pair = () => pairs[state.pair];
  const millimetres = (axis, index) => pair().origin[axis] + index * pair().spacing;
  const methodName = (method) => (method === BEFORE ? "no registration" : pair().methods[method].name);

  // Index of the first pixel of a plane's picture and the steps to the next column and row.
  function walk(plane) {
    const [nx, ny] = pair().size, steps = [1, nx, nx * ny];
    const width = pair().size[plane.right], height = pair().size[plane.down];
    const first = state.at[plane.across] * steps[plane.across];
    return plane.sign > 0
      ? { width, height, start: first, column: steps[plane.right], row: steps[plane.down] }
      : { width, height, start: first + (height - 1) * steps[plane.down], column: steps[plane.right], row: -steps[plane.down] };
  }

  // Where a point (x, y, z in mm) lies in a plane's picture, in voxels from its corner.
  function place(plane, point) {
    const { size, origin, spacing } = pair();
    const u = (point[plane.right] - origin[plane.right]) / spacing + 0.5;
    const v = (point[plane.down] - origin[plane.down]) / spacing + 0.5;
    return [u, plane.sign > 0 ? v : size[plane.down] - v];
  }

  // Colours

  function percentiles(image) {
    if (!image.auto) {
      const counts = new Float64Array(256);
      for (let i = 0; i < image.codes.length; i += 7) counts[image.codes[i]]++;
      const total = counts.subarray(1).reduce((sum, n) => sum + n, 0);
      let sum = 0, low = 1, high = 255;
      for (let c = 1; c < 256; c++) {
        sum += counts[c];
        if (sum <= 0.01 * total) low = c;
        if (sum < 0.99 * total) high = c;
      }
      const [a, b] = [image.values[low], image.values[Math.max(low + 1, high)] ?? image.high];
      image.auto = [(a + b) / 2, Math.max(b - a, 1e-6)];
    }
    return image.auto;
  }

  // Level and width for a role: without a common unit, the moving image has an automatic window of its own.
  function windowOf(role) {
    if (state.window !== "auto") return [state.level, state.width];
    const image = volume(pair().unit || role === "fixed" ? "fixed" : "moving");
    return image ? percentiles(image) : [0, 1];
  }

  function greys(image, [level, width]) {
    const table = new Uint32Array(256);
    for (let c = 1; c < 256; c++) {
      const grey = Math.max(0, Math.min(255, Math.round(((image.values[c] - level) / width + 0.5) * 255)));
      table[c] = OPAQUE | (grey << 16) | (grey << 8) | grey;
    }
    return table;
  }

  function tinted(image, low, high, entries) {
    const table = new Uint32Array(256);
    for (let c = 1; c < 256; c++) {
      table[c] = entries[Math.max(0, Math.min(255, Math.round(((image.values[c] - low) / (high - low)) * 255)))];
    }
    return table;
  }

  // A colour in the brightness of the grey below it; so its hue stays that of the colour bar.
  function shaded(colour, grey, opacity) {
    const share = opacity + ((1 - opacity) * (grey & 255)) / 255;
    let mixed = OPAQUE;
    for (let shift = 0; shift < 24; shift += 8) mixed |= Math.round(((colour >>> shift) & 255) * share) << shift;
    return mixed >>> 0;
  }

  // What is shown: the names of the volumes that a mode needs, then one painter a mode

  const KINDS = ["displacement", "jacobian", "error"];
  const FAR_OFF = 3; // mm of expected error: what is farther off has the brightest colour at first
  const part = (method, kind) => {
    const name = method === BEFORE && kind === "warped" ? "moving" : `${method}-${kind}`;
    return name in pair().volumes ? name : null;
  };

  function needed(mode, method) {
    if (mode === "fixed" || mode === "moving") return [mode];
    if (mode === "warped") return [part(method, "warped")];
    if (mode === "checkerboard" || mode === "difference") return ["fixed", part(method, "warped")];
    return ["fixed", part(method, mode)].filter(Boolean);
  }

  const painters = {
    fixed: (images) => one(images[0], greys(images[0], windowOf("fixed"))),
    moving: (images) => one(images[0], greys(images[0], windowOf("moving"))),
    warped: (images) => one(images[0], greys(images[0], windowOf("moving"))),
    checkerboard([fixed, warped]) {
      const tables = [greys(fixed, windowOf("fixed")), greys(warped, windowOf("moving"))];
      const edge = Math.max(1, state.tile / pair().spacing);
      return (i, column, row) =>
        (Math.floor(column / edge) + Math.floor(row / edge)) % 2 ? tables[1][warped.codes[i]] : tables[0][fixed.codes[i]];
    },
    difference([fixed, warped]) {
      const range = state.ranges.difference, entries = palettes.difference;
      return (i) => {
        const a = fixed.codes[i], b = warped.codes[i];
        if (!a || !b) return 0;
        const share = ((fixed.values[a] - warped.values[b]) / range + 1) / 2;
        return entries[Math.max(0, Math.min(255, Math.round(share * 255)))];
      };
    },
    displacement: ([fixed, length]) => over(fixed, length, 0, state.ranges.displacement, palettes.displacement),
    error: ([fixed, expected]) => over(fixed, expected, 0, state.ranges.error, palettes.error),
    jacobian([fixed, determinant]) {
      const paint = over(fixed, determinant, -state.ranges.jacobian, state.ranges.jacobian, palettes.jacobian);
      return (i, column, row) => (determinant?.codes[i] === FOLDED ? HAZARD[(column + row) & 1] : paint(i));
    },
  };

  const one = (image, table) => (i) => table[image.codes[i]];

  // Colours over the fixed image; before any registration there is nothing to colour.
  function over(fixed, image, low, high, entries) {
    const under = greys(fixed, windowOf("fixed"));
    if (!image) return one(fixed, under);
    const table = tinted(image, low, high, entries);
    return (i) => (image.codes[i] ? shaded(table[image.codes[i]], under[fixed.codes[i]], state.opacity) : under[fixed.codes[i]]);
  }

  // Panels

  function panelsOf() {
    if (state.layout === "planes") return planes.map((plane, n) => ({ plane, number: n, title: plane.name }));
    const number = planes.findIndex((plane) => plane.name === state.layout), plane = planes[number];
    const methods = [BEFORE, ...pair().methods.keys()];
    return [{ plane, number, title: "fixed", mode: "fixed" },
      ...methods.map((method) => ({ plane, number, title: methodName(method), method }))];
  }

  function build() {
    panels = panelsOf();
    byId("panels").replaceChildren(...panels.map((panel) => element(panel)));
    fit();
  }

  function element(panel) {
    const figure = make("figure", "panel"), caption = make("figcaption"), stage = make("div", "stage");
    panel.place = make("output");
    caption.append(Object.assign(make("b"), { textContent: panel.title }), panel.place);
    panel.image = Object.assign(make("canvas", "image"), { tabIndex: 0 });
    panel.image.setAttribute("role", "img");
    panel.overlay = make("canvas", "overlay");
    panel.overlay.setAttribute("aria-hidden", "true");
    const letters = ["left", "right", "top", "bottom"].map((side, n) =>
      Object.assign(make("span", `edge ${side}`), { textContent: panel.plane.letters[n] }));
    stage.append(panel.image, panel.overlay, ...letters);
    panel.slider = Object.assign(make("input"), { type: "range", min: 0, max: pair().size[panel.plane.across] - 1 });
    panel.slider.setAttribute("aria-label", `${panel.plane.name} slice, ${panel.title}`);
    figure.append(caption, stage, panel.slider);
    Object.assign(panel, { figure, stage });
    listen(panel);
    return figure;
  }

  function make(tag, kind = "") {
    const node = document.createElement(tag);
    node.className = kind;
    return node;
  }

  // All panels have one scale; it is as large as the room allows.
  function fit() {
    const { size } = pair(), room = byId("panels").clientWidth, gap = 10;
    const widths = panels.map(({ plane }) => size[plane.right]), heights = panels.map(({ plane }) => size[plane.down]);
    const tallest = Math.max(...heights), tall = 0.78 * window.innerHeight;
    let scale = 0;
    for (let columns = panels.length; columns >= 1; columns--) { // the number that makes the largest pictures
      let widest = 0;
      for (let n = 0; n < panels.length; n += columns) {
        widest = Math.max(widest, widths.slice(n, n + columns).reduce((sum, w) => sum + w, 0));
      }
      const high = Math.max(tall / Math.ceil(panels.length / columns) - 50, 280); // without caption and slider
      const possible = Math.min((room - gap * (columns - 1) - 1) / widest, high / tallest);
      if (possible > 1.25 * scale) scale = possible; // more rows only for pictures that are much larger
    }
    panels.forEach((panel, n) => {
      panel.figure.style.width = `${Math.floor(widths[n] * scale)}px`;
      panel.figure.style.setProperty("--share", widths[n]);
      panel.stage.style.aspectRatio = `${widths[n]} / ${heights[n]}`;
    });
    draw();
  }

  let waiting = false;
  function draw() {
    if (waiting) return;
    waiting = true;
    section.dataset.state = "loading";
    requestAnimationFrame(() => {
      waiting = false;
      const done = panels.map(paint).every(Boolean);
      tell();
      section.dataset.state = done && !waiting ? "ready" : "loading";
      if (done) needed("checkerboard", state.method).concat(KINDS.map((kind) => part(state.method, kind))).filter(Boolean).forEach(volume);
    });
  }

  function paint(panel) {
    const mode = state.flipped !== null ? "fixed" : panel.mode ?? modeOf(panel);
    const method = panel.method ?? state.method, { plane } = panel;
    const images = needed(mode, method).map(volume), place = millimetres(plane.across, state.at[plane.across]);
    panel.slider.value = state.at[plane.across];
    panel.place.textContent = `${"xyz"[plane.across]} ${signed(place)} mm`;
    panel.slider.setAttribute("aria-valuetext", panel.place.textContent);
    panel.image.setAttribute("aria-label", `${plane.name} plane at ${panel.place.textContent}: ${describe(mode, method)}`);
    panel.figure.ariaBusy = images.every(Boolean) ? "false" : "true";
    if (images.every(Boolean) && (state.window !== "auto" || volume("fixed") && (pair().unit || volume("moving")))) {
      const { width, height, start, column, row } = walk(plane);
      const pixel = outlined(painters[mode](images), mode === "moving" ? BEFORE : method, column, row);
      const picture = new ImageData(width, height), pixels = new Uint32Array(picture.data.buffer);
      for (let r = 0, n = 0; r < height; r++) {
        for (let c = 0, i = start + r * row; c < width; c++, i += column) pixels[n++] = pixel(i, c, r);
      }
      Object.assign(panel.image, { width, height });
      panel.image.getContext("2d").putImageData(picture, 0, 0);
      overlay(panel, mode === "moving" ? BEFORE : method);
      return true;
    }
    return false;
  }

  // Outlines of the masks, each in its colour: where a voxel is in a mask and one beside it is not.
  function outlined(pixel, method, column, row) {
    const name = state.masks ? part(method, "masks") : null, masks = name ? volume(name) : null;
    if (!masks) return pixel;
    const { codes } = masks;
    return (i, c, r) => {
      const here = codes[i];
      if (here) {
        const inner = (codes[i - column] ?? 0) & (codes[i + column] ?? 0) & (codes[i - row] ?? 0) & (codes[i + row] ?? 0);
        const rim = here & ~inner;
        if (rim) return MASK_COLOURS[31 - Math.clz32(rim & -rim)].value;
      }
      return pixel(i, c, r);
    };
  }

  // In the layout of all methods, the images that belong to none are next to the first panel's already.
  function modeOf(panel) {
    return panel.method !== undefined && (state.mode === "fixed" || state.mode === "moving") ? "warped" : state.mode;
  }

  function describe(mode, method) {
    const by = methodName(method);
    return { fixed: "fixed image", moving: "moving image without registration", warped: `moving image warped by ${by}`,
      checkerboard: `checkerboard of the fixed image and the one warped by ${by}`,
      difference: `fixed less warped image, ${by}`, displacement: `length of the displacement, ${by}`,
      jacobian: `log det J, ${by}`, error: `expected error, ${by}` }[mode];
  }

  // Lines

  function overlay(panel, method) {
    const { plane } = panel, ratio = window.devicePixelRatio || 1, box = panel.stage;
    const width = box.clientWidth, height = box.clientHeight, scale = width / pair().size[plane.right];
    Object.assign(panel.overlay, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    const pen = panel.overlay.getContext("2d");
    pen.scale(ratio, ratio);
    if (state.crosshair) {
      const [x, y] = place(plane, state.at.map((index, axis) => millimetres(axis, index))).map((v) => v * scale);
      stroke(pen, [[x, 0, x, y - 9], [x, y + 9, x, height], [0, y, x - 9, y], [x + 9, y, width, y]], "#ffd75ea0", 1);
    }
    if (state.landmarks && pair().landmarks) {
      const here = millimetres(plane.across, state.at[plane.across]), residuals = residualsOf(method);
      const style = getComputedStyle(section), colours = ["--to", "--at"].map((name) => style.getPropertyValue(name));
      pair().landmarks.forEach((point, n) => {
        const off = Math.abs(point[plane.across] - here);
        if (off <= state.slab) {
          pen.globalAlpha = 1 - 0.6 * (off / state.slab);
          landmark(pen, place(plane, point), place(plane, point.map((v, axis) => v + residuals[n][axis])), scale, colours);
        }
      });
    }
  }

  const residualsOf = (method) => (method === BEFORE ? pair().before : pair().methods[method].residuals);

  function stroke(pen, lines, colour, width) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.beginPath();
    for (const [x0, y0, x1, y1] of lines) {
      pen.moveTo(x0, y0);
      pen.lineTo(x1, y1);
    }
    pen.stroke();
  }

  // The fixed landmark is a cross, the moving one a circle at the end of the residual y - T(x).
  function landmark(pen, at, to, scale, colours) {
    const [x, y] = at.map((v) => v * scale), [u, v] = to.map((w) => w * scale);
    for (const [[line, cross], wide] of [[["#000c", "#000c"], 3.5], [colours, 1.6]]) { // a dark rim, then the colours
      stroke(pen, [[x, y, u, v]], line, wide);
      pen.beginPath();
      pen.arc(u, v, 4, 0, 2 * Math.PI);
      pen.stroke();
      stroke(pen, [[x - 5, y, x + 5, y], [x, y - 5, x, y + 5]], cross, wide);
    }
  }

  // Words

  const signed = (value) => `${value < 0 ? "−" : ""}${Math.abs(value).toFixed(1)}`;
  const short = (value) => String(Number(value.toPrecision(3))).replace("-", "−");

  function tell() {
    const mode = state.mode, unit = pair().unit, range = state.ranges[mode], bar = byId("bar");
    const coloured = mode in palettes;
    bar.hidden = !coloured;
    if (coloured) {
      paintBar(bar, mode);
      const ends = { difference: [`−${short(range)} ${unit}`, "0", `${short(range)} ${unit}`],
        displacement: ["0 mm", `${short(range / 2)} mm`, `${short(range)} mm`],
        error: ["0 mm", `${short(range / 2)} mm`, `${short(range)} mm or more`],
        jacobian: [`−${short(range)} (× ${short(2 ** -range)})`, "0", `${short(range)} (× ${short(2 ** range)})`] }[mode];
      ends.forEach((text, n) => { bar.querySelectorAll("span")[n].textContent = text; });
    }
    byId("meaning").replaceChildren(...meaning(mode));
    byId("meaning").hidden = !coloured;
    tellErrors();
    tellReadout();
  }

  function paintBar(bar, mode) {
    const pen = bar.querySelector("canvas").getContext("2d"), picture = new ImageData(256, 1);
    new Uint32Array(picture.data.buffer).set(palettes[mode]);
    pen.putImageData(picture, 0, 0);
  }

  function meaning(mode) {
    if (mode === "difference") return ["fixed − warped: red where the fixed image is brighter, blue where it is darker"];
    if (mode === "displacement") return ["|T(x) − x|, the whole displacement from the fixed to the moving image"];
    if (mode === "error") {
      const found = part(state.method, "error");
      return [found ? "expected |T(x) − truth|; grey where nothing can be said" : `no expected error of ${methodName(state.method)} was computed`];
    }
    if (mode !== "jacobian") return [];
    const hazard = make("span", "hazard"), method = pair().methods[state.method];
    const folded = method ? `det J ≤ 0, folding (${method.folded} voxels here)` : "det J ≤ 0, folding";
    return ["log₂ det J: orange where the fixed image is larger than the moving one, purple where it is smaller ", hazard, ` ${folded}`];
  }

  function tellErrors() {
    if (!pair().landmarks) return;
    const lengths = residualsOf(state.method).map((r) => Math.hypot(...r)), n = lengths.length;
    const mean = lengths.reduce((a, b) => a + b, 0) / n;
    const sd = n > 1 ? Math.sqrt(lengths.reduce((a, b) => a + (b - mean) ** 2, 0) / (n - 1)) : 0;
    byId("errors").textContent = `fixed landmark, and the moving one at the end of the error y − T(x); ${n} landmarks, `
      + `error ${mean.toFixed(2)} ± ${sd.toFixed(2)} mm, at most ${Math.max(...lengths).toFixed(2)} mm (${methodName(state.method)})`;
  }

  function tellReadout() {
    const [nx, ny] = pair().size, [x, y, z] = state.at, i = x + nx * (y + ny * z);
    const sides = ["RL", "AP", "FH"], unit = pair().unit ? ` ${pair().unit}` : "";
    const where = state.at.map((index, axis) => {
      const value = millimetres(axis, index);
      return `${Math.abs(value).toFixed(1)} ${sides[axis][value < 0 ? 0 : 1]}`;
    });
    const value = (name) => {
      const image = name ? volumes.get(name) : null;
      return image && !image.then ? (image.codes[i] ? image.values[image.codes[i]] : NaN) : null;
    };
    const texts = [`${where.join(", ")} mm`];
    const add = (label, number, text) => { if (number !== null) texts.push(`${label} ${Number.isNaN(number) ? "outside" : text(number)}`); };
    const grey = (number) => `${Math.abs(number) < 100 && !unit ? short(number) : Math.round(number).toString().replace("-", "−")}${unit}`;
    const fixed = value("fixed"), warped = value(part(state.method, "warped"));
    add("fixed", fixed, grey);
    add(state.method === BEFORE ? "moving" : "warped", warped, grey);
    if (fixed !== null && warped !== null) add("difference", fixed - warped, grey);
    add("|u|", value(part(state.method, "displacement")), (number) => `${number.toFixed(1)} mm`);
    const determinant = volumes.get(part(state.method, "jacobian"));
    add("det J", value(part(state.method, "jacobian")), (number) => (determinant.codes[i] === FOLDED ? "≤ 0" : (2 ** number).toFixed(2)));
    add("expected error", value(part(state.method, "error")), (number) => `${number.toFixed(1)} mm`);
    byId("readout").replaceChildren(...texts.map((text) => Object.assign(make("span"), { textContent: text })));
  }

  // Changes of state

  function setAt(axis, index) {
    state.at[axis] = Math.max(0, Math.min(pair().size[axis] - 1, index));
  }

  function scroll(panel, steps) {
    setAt(panel.plane.across, state.at[panel.plane.across] + steps);
    draw();
  }

  function showMode(mode) {
    state.mode = mode;
    state.flipped = null;
    section.querySelector(`input[name="mode"][value="${mode}"]`).checked = true;
    const coloured = mode in palettes, grey = mode !== "difference";
    show(".for-grey", grey);
    show(".for-checkerboard", mode === "checkerboard");
    show(".for-colour", coloured);
    show(".for-overlay", KINDS.includes(mode));
    if (coloured) {
      byId("range").value = Number(state.ranges[mode].toPrecision(4));
      byId("range").parentElement.firstChild.textContent = mode === "displacement" || mode === "error" ? "Range 0 to " : "Range ± ";
      byId("range-unit").textContent = { difference: pair().unit, displacement: "mm", jacobian: "", error: "mm" }[mode];
    }
    draw();
  }

  function show(selector, visible) {
    for (const node of section.querySelectorAll(selector)) node.hidden = !visible;
  }

  function showMethod(method) {
    state.method = method;
    section.querySelector(`input[name="method"][value="${method}"]`).checked = true;
    listLandmarks();
    listWorst();
    draw();
  }

  // What the reader chooses is shown of the next pair too.
  function chooseMethod(method) {
    state.name = methodName(method);
    showMethod(method);
  }

  function listLandmarks() {
    if (!pair().landmarks) return;
    const order = residualsOf(state.method).map((r, n) => [Math.hypot(...r), n]).sort((a, b) => b[0] - a[0]);
    const first = Object.assign(make("option"), { value: "", textContent: "landmark …" });
    byId("landmark").replaceChildren(first, ...order.map(([length, n]) => Object.assign(make("option"), {
      value: n, textContent: `${pair().names?.[n] || n}: ${length.toFixed(1)} mm` })));
  }

  // The places where the largest errors are expected.
  function listWorst() {
    const places = pair().methods[state.method]?.worst ?? [];
    show(".for-worst", places.length > 0);
    const first = Object.assign(make("option"), { value: "", textContent: "worst place …" });
    byId("worst").replaceChildren(first, ...places.map(({ point, expected_mm: expected }, n) => Object.assign(make("option"), {
      value: n, textContent: `${expected.toFixed(1)} mm at ${point.map((v) => v.toFixed(0)).join(", ")}` })));
  }

  function lookAt(point) {
    if (!point) return;
    point.forEach((value, axis) => setAt(axis, Math.round((value - pair().origin[axis]) / pair().spacing)));
    draw();
  }

  function setWindow(level, width) {
    Object.assign(state, { level, width: Math.max(1e-6, width) });
    for (const name of ["level", "width"]) byId(name).value = Number(state[name].toPrecision(4));
  }

  function chooseWindow(name) {
    state.window = name;
    byId("window").value = name;
    if (WINDOWS[name]) setWindow(...WINDOWS[name]);
    if (name === "auto") whenThere("fixed", (fixed) => { if (state.window === "auto") setWindow(...percentiles(fixed)); });
    draw();
  }

  function whenThere(name, then) {
    const found = volume(name), store = volumes;
    if (found) then(found);
    else store.get(name).then(() => { if (store === volumes && volume(name)) then(volume(name)); });
  }

  function showPair(number) {
    state.pair = number;
    volumes = new Map();
    const { size, methods, unit, landmarks, fixed_span: span, shown } = pair();
    state.at = shown.slice();
    state.ranges = { difference: unit ? 500 : nice(span / 3), jacobian: 1, error: FAR_OFF,
      displacement: nice(Math.max(1, ...methods.map((m, n) => pair().volumes[`${n}-displacement`].high))) };
    const kept = methods.findIndex((method) => method.name === state.name);
    const names = [BEFORE, ...methods.keys()];
    byId("methods").replaceChildren(byId("methods").firstElementChild, ...names.map(methodButton));
    show(".for-landmarks", Boolean(landmarks));
    const masks = pair().masks.map((words, bit) => words && Object.assign(make("span", "mask"), { textContent: words,
      style: `border-color: ${MASK_COLOURS[bit].text}` })).filter(Boolean);
    byId("mask-key").replaceChildren(...masks);
    show(".for-masks", masks.length > 0);
    show(".for-error", Object.keys(pair().volumes).some((name) => name.endsWith("-error")));
    for (const option of byId("window").options) option.hidden = option.value in WINDOWS && !unit;
    byId("fine").textContent = pair().remark;
    chooseWindow(unit && state.window !== "auto" ? state.window : "auto");
    build();
    showMethod(kept >= 0 ? kept : methods.length - 1);
    showMode(state.mode);
  }

  const nice = (value) => { // rounded up to two digits
    const digit = 10 ** (Math.floor(Math.log10(value)) - 1);
    return Math.ceil(value / digit - 1e-9) * digit;
  };

  function methodButton(method) {
    const label = make("label"), input = Object.assign(make("input"), { type: "radio", name: "method", value: method });
    input.addEventListener("change", () => chooseMethod(method));
    label.append(input, Object.assign(make("span"), { textContent: methodName(method) }));
    return label;
  }

  // Mouse and keys

  function listen(panel) {
    let turned = 0;
    panel.stage.addEventListener("wheel", (event) => {
      if (event.ctrlKey) return; // zooms the page
      event.preventDefault();
      const notch = event.deltaMode || Math.abs(event.deltaY) >= 50; // of a wheel: one slice; a touch pad sends less
      turned = notch ? Math.sign(event.deltaY) : turned + event.deltaY / 25;
      const steps = Math.trunc(turned);
      turned -= steps;
      if (steps) scroll(panel, -steps);
    }, { passive: false });
    panel.slider.addEventListener("input", () => {
      setAt(panel.plane.across, Number(panel.slider.value));
      draw();
    });
    panel.image.addEventListener("focus", () => { state.plane = panel.number; });
    panel.image.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      panel.image.setPointerCapture(event.pointerId);
      if (!event.shiftKey) goTo(panel, event);
    });
    panel.image.addEventListener("pointermove", (event) => {
      if (!(event.buttons & 1)) return;
      if (event.shiftKey) drag(event);
      else goTo(panel, event);
    });
  }

  function goTo(panel, event) {
    const box = panel.image.getBoundingClientRect(), { plane } = panel, { size } = pair();
    const column = Math.floor(((event.clientX - box.left) / box.width) * size[plane.right]);
    const row = Math.floor(((event.clientY - box.top) / box.height) * size[plane.down]);
    setAt(plane.right, column);
    setAt(plane.down, plane.sign > 0 ? row : size[plane.down] - 1 - row);
    draw();
  }

  function drag(event) {
    const step = Math.max(state.width, 1e-3) / 300;
    setWindow(state.level + event.movementY * step, state.width + event.movementX * step);
    state.window = byId("window").value = "own";
    draw();
  }

  section.addEventListener("keydown", (event) => {
    const { target } = event;
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (target.matches("select, summary, input:not([type='checkbox'])")) return; // they have keys of their own
    const panel = panels.find((p) => p.image === target) ?? panels.find((p) => p.number === state.plane) ?? panels[0];
    const last = pair().size[panel.plane.across], methods = pair().methods.length;
    const steps = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -last, End: last }[event.key];
    if (steps) scroll(panel, steps);
    else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      const next = state.method + (event.key === "ArrowRight" ? 1 : -1);
      if (next >= BEFORE && next < methods) chooseMethod(next);
    } else if (MODES[event.key - 1]) showMode(MODES[event.key - 1]);
    else if (event.key.toLowerCase() === "f") {
      state.flipped = state.flipped === null ? state.mode : null;
      draw();
    } else if (event.key.toLowerCase() === "l") byId("landmarks").click();
    else if (event.key.toLowerCase() === "m") byId("masks").click();
    else return;
    event.preventDefault();
  });

  function onNumber(id, then) {
    byId(id).addEventListener("input", () => {
      const { valueAsNumber: value, validity } = byId(id); // a value between the steps is welcome
      if (Number.isFinite(value) && !validity.rangeUnderflow && !validity.rangeOverflow) then(value);
      draw();
    });
  }

  for (const input of section.querySelectorAll("input[name='mode']")) {
    input.addEventListener("change", () => showMode(input.value));
  }
  byId("pair").append(...pairs.map((entry, n) => Object.assign(make("option"), { value: n, textContent: entry.name })));
  byId("pair-field").hidden = pairs.length < 2;
  byId("pair").addEventListener("change", () => showPair(Number(byId("pair").value)));
  byId("layout").addEventListener("change", () => {
    state.layout = byId("layout").value;
    build();
  });
  byId("window").addEventListener("change", () => chooseWindow(byId("window").value));
  for (const name of ["level", "width"]) {
    onNumber(name, (value) => {
      state[name] = value;
      state.window = byId("window").value = "own";
    });
  }
  onNumber("tile", (value) => { state.tile = value; });
  onNumber("range", (value) => { state.ranges[state.mode] = value; });
  onNumber("opacity", (value) => { state.opacity = value / 100; });
  onNumber("slab", (value) => { state.slab = value; });
  for (const name of ["crosshair", "landmarks", "masks"]) {
    byId(name).addEventListener("change", () => {
      state[name] = byId(name).checked;
      draw();
    });
  }
  byId("landmark").addEventListener("change", () => lookAt(pair().landmarks[byId("landmark").value]));
  byId("worst").addEventListener("change", () => lookAt(pair().methods[state.method].worst[byId("worst").value]?.point));
  new ResizeObserver(() => fit()).observe(byId("panels"));
  state.window = pairs[0].unit ? "lung" : "auto";
  showPair(0);
})();
