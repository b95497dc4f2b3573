// Draws a view (refinevla_kit/widgets/picture.py says what is in one) on a canvas: overlays on one scale, shares by object, curves over the episode.
// The same code is the picture of the notebook's widgets and of an exported page. LUT holds 256 colours, three bytes each.

const INK = "#222222", MUTED = "#6b6b6b", GRID = "#e3e3e3", FONT = "system-ui, 'DejaVu Sans', sans-serif";
const PANEL = 350, GAP = 10, BAR = 78, SIDE = 330, HEAD = 70, PLOT = 118, ACROSS = 4;

function mount(element) {
  element.innerHTML = "<canvas style='max-width:100%;display:block'></canvas><div class='refinevla-value'></div><div class='refinevla-texts'></div>";
  const [canvas, value, texts] = element.children, pictures = new Map();
  value.style.cssText = `font:13px ${FONT};min-height:1.5em;color:${INK};background:white`;
  texts.style.cssText = `font:13px/1.5 ${FONT};max-width:1110px;color:${INK};background:white`;
  let shown = null, turn = 0;

  async function picture(uri) {
    if (!pictures.has(uri)) {
      const image = new Image();
      image.src = uri;
      await image.decode();
      if (pictures.size > 200) pictures.clear();
      pictures.set(uri, [image, greyed(image)]);
    }
    return pictures.get(uri);
  }

  async function show(view) {
    const mine = ++turn, layers = await picture(view.image);
    if (mine !== turn) return;  // a later view has come meanwhile
    shown = view;
    draw(canvas, view, layers);
    texts.replaceChildren(...view.texts.map(paragraph));
    value.textContent = view.panels.length ? "Point at a patch to read its value." : "";
  }

  canvas.addEventListener("mousemove", (event) => {
    if (!shown) return;
    const box = canvas.getBoundingClientRect(), scale = places(shown).width / box.width;
    const found = patchAt(shown, (event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
    value.textContent = found ?? (shown.panels.length ? "Point at a patch to read its value." : "");
  });
  return { show, canvas };
}

function places(view) {
  const count = Math.max(view.panels.length, 1), tall = PANEL * view.height / view.width, heat = view.panels.length > 0;
  const right = count * (PANEL + GAP), width = Math.max(right + (heat ? BAR + SIDE : 0), view.plots.length ? 900 : 0);
  const below = HEAD + Math.max(tall, heat ? 215 : 0) + (heat ? 42 : 12), rows = Math.ceil(view.plots.length / ACROSS);
  return { tall, right, width, below, height: below + rows * (PLOT + 52) };
}

function patchAt(view, x, y) {
  const { tall } = places(view), row = (y - HEAD) / tall, number = Math.floor(x / (PANEL + GAP)), column = (x - number * (PANEL + GAP)) / PANEL;
  const panel = view.panels[number];
  if (!panel || row < 0 || row >= 1 || column < 0 || column >= 1) return null;
  const r = Math.floor(row * panel.rows), c = Math.floor(column * panel.columns), times = panel.heat[r * panel.columns + c];
  const part = 100 * times / (panel.rows * panel.columns);
  return `${panel.name}, row ${r + 1}, column ${c + 1}: ${times.toFixed(2)} × even (${part.toFixed(2)} % of ${view.whole})`;
}

function greyed(image) {
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height), p = pixels.data;
  for (let i = 0; i < p.length; i += 4) {
    const grey = 0.85 * (0.299 * p[i] + 0.587 * p[i + 1] + 0.114 * p[i + 2]);
    for (let k = i; k < i + 3; k++) p[k] = 0.6 * (0.15 * p[k] + grey);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function draw(canvas, view, [image, grey]) {
  const place = places(view), dense = Math.max(window.devicePixelRatio || 1, 1.5), pen = canvas.getContext("2d");
  [canvas.width, canvas.height] = [Math.round(place.width * dense), Math.round(place.height * dense)];
  canvas.style.width = `${place.width}px`;
  pen.scale(dense, dense);
  pen.fillStyle = "white";
  pen.fillRect(0, 0, place.width, place.height);
  write(pen, view.title, 2, 16, 14, INK, "left", "bold");
  write(pen, view.detail, 2, 35, 12, MUTED, "left", "", place.width - 4);
  for (let i = 0; i < Math.max(view.panels.length, 1); i++) {
    pen.save();
    pen.translate(i * (PANEL + GAP), HEAD);
    overlay(pen, view, view.panels[i], image, grey, place.tall);
    pen.restore();
  }
  if (view.panels.length) {
    scale(pen, view, place);
    if (view.shares.things.length) bars(pen, view, place.right + BAR);
  }
  view.plots.forEach((one, i) => {
    const wide = place.width / Math.min(view.plots.length, ACROSS);
    curves(pen, view, one, (i % ACROSS) * wide + 42, place.below + 20 + Math.floor(i / ACROSS) * (PLOT + 52), wide - 60);
  });
}

function overlay(pen, view, panel, image, grey, tall) {
  pen.drawImage(image, 0, 0, PANEL, tall);
  if (panel) {
    pen.globalAlpha = view.opacity;
    pen.drawImage(grey, 0, 0, PANEL, tall);
    const x = (c) => Math.round(c * PANEL / panel.columns), y = (r) => Math.round(r * tall / panel.rows);
    panel.heat.forEach((times, i) => {
      const r = Math.floor(i / panel.columns), c = i % panel.columns, strength = Math.min(times / view.top, 1);
      pen.globalAlpha = view.opacity * strength;
      pen.fillStyle = colour(strength);
      pen.fillRect(x(c), y(r), x(c + 1) - x(c), y(r + 1) - y(r));
    });
    pen.globalAlpha = 1;
  }
  for (const one of view.outlines) {
    pen.save();
    pen.scale(PANEL / view.width, tall / view.height);
    const path = new Path2D(one.path);
    pen.restore();
    const placed = new Path2D();
    placed.addPath(path, new DOMMatrix([PANEL / view.width, 0, 0, tall / view.height, 0, 0]));
    pen.strokeStyle = one.colour;
    pen.lineWidth = 1.6;
    pen.stroke(placed);
  }
  if (!panel) return;
  const [r, c] = panel.peak, wide = PANEL / panel.columns, high = tall / panel.rows;
  pen.setLineDash([3, 3]);
  pen.strokeStyle = "white";
  pen.lineWidth = 1;
  pen.strokeRect(c * wide + 0.5, r * high + 0.5, wide - 1, high - 1);
  pen.setLineDash([]);
  write(pen, panel.name, 0, -8, 13, panel.colour, "left", "bold");
  write(pen, panel.note, 0, tall + 16, 11.5, MUTED, "left", "", PANEL);
}

function colour(strength) {
  const i = 3 * Math.round(255 * Math.max(0, Math.min(strength, 1)));
  return `rgb(${LUT[i]},${LUT[i + 1]},${LUT[i + 2]})`;
}

function scale(pen, view, { tall, right }) {
  const x = right + 4, wide = 11;
  for (let i = 0; i < tall; i++) {
    pen.fillStyle = colour(1 - i / tall);
    pen.fillRect(x, HEAD + i, wide, 1.5);
  }
  pen.fillStyle = colour(1);  // what is beyond the scale
  pen.beginPath();
  pen.moveTo(x, HEAD);
  pen.lineTo(x + wide / 2, HEAD - 11);
  pen.lineTo(x + wide, HEAD);
  pen.fill();
  for (let i = 0; i <= 4; i++) write(pen, short(view.top * i / 4), x + wide + 4, HEAD + tall * (1 - i / 4) + 4, 11, INK);
  pen.save();
  pen.translate(x + wide + 40, HEAD + tall / 2);
  pen.rotate(-Math.PI / 2);
  write(pen, view.unit, 0, 0, 11, MUTED, "center", "", tall + 40);
  pen.restore();
}

function bars(pen, view, left) {
  const { things, end, rest } = view.shares, x = left + 106, wide = SIDE - 152, step = 46, thick = Math.min(16, 34 / view.panels.length);
  for (let i = 0; i <= 2; i++) {
    const at = x + wide * i / 2;
    line(pen, at, HEAD - 4, at, HEAD + things.length * step, GRID);
    write(pen, `${short(50 * i * end)}%`, at, HEAD + things.length * step + 14, 11, INK, "center");
  }
  things.forEach((thing, row) => {
    const middle = HEAD + row * step + step / 2 - 3;
    write(pen, thing.label, x - 7, middle + 4, 12, thing.colour, "right", "bold");
    thing.values.forEach((part, i) => {
      const y = middle + (i - (thing.values.length - 1) / 2) * (thick + 1.5);
      pen.fillStyle = view.panels[i].colour;
      pen.fillRect(x, y - thick / 2, wide * part / end, thick);
      write(pen, thing.area ? percent(part) : "not visible", x + wide * Math.max(part, thing.area) / end + 6, y + 4, 11, INK);
    });
    line(pen, x + wide * thing.area / end, middle - 20, x + wide * thing.area / end, middle + 20, INK, [2, 2], 1.5);
  });
  const under = HEAD + things.length * step + 31;
  write(pen, `share of ${view.whole} (dotted: area)`, left + SIDE - 4, under, 11, MUTED, "right", "", SIDE - 10);
  write(pen, `everything else: ${rest.map((part) => percent(part)).join(" | ")}`, left + SIDE - 4, under + 15, 11, MUTED, "right");
}

function curves(pen, view, plot, x, y, wide) {
  const last = view.steps.length - 1, span = Math.max(view.steps[last] - view.steps[0], 1);
  const px = (step) => x + wide * (step - view.steps[0]) / span, py = (part) => y + PLOT * (1 - (part - plot.low) / (plot.high - plot.low));
  write(pen, plot.title, x, y - 7, 12, plot.colour, "left", "bold");
  let at = x + pen.measureText(plot.title).width + 10;
  for (const one of plot.share || plot.lines.length < 2 ? [] : plot.lines) {
    write(pen, one.label, at, y - 7, 11, one.colour);
    at += pen.measureText(one.label).width + 8;
  }
  for (let i = 0; i <= 2; i++) {
    const part = plot.low + (plot.high - plot.low) * i / 2;
    line(pen, x, py(part), x + wide, py(part), GRID);
    write(pen, plot.share ? `${short(100 * part)}%` : short(part), x - 4, py(part) + 4, 10.5, INK, "right");
  }
  write(pen, `step ${view.steps[0]}`, x, y + PLOT + 15, 10.5, MUTED);
  write(pen, `${view.steps[last]}`, x + wide, y + PLOT + 15, 10.5, MUTED, "right");
  line(pen, px(view.steps[view.now]), y, px(view.steps[view.now]), y + PLOT, MUTED, [], 1);
  for (const one of plot.lines) {
    pen.beginPath();
    let before = null;
    one.values.forEach((part, i) => {
      if (part === null) { before = null; return; }
      if (before === null) pen.moveTo(px(view.steps[i]), py(part));
      else {
        if (one.steps) pen.lineTo(px(view.steps[i]), py(before));
        pen.lineTo(px(view.steps[i]), py(part));
      }
      before = part;
    });
    pen.setLineDash(one.dashed ? [2, 2] : []);
    pen.strokeStyle = one.colour;
    pen.lineWidth = one.dashed ? 1.2 : 1.6;
    pen.stroke();
    pen.setLineDash([]);
    const here = one.values[view.now];
    if (one.dashed || here === null || here === undefined) continue;
    pen.beginPath();
    pen.arc(px(view.steps[view.now]), py(here), 3, 0, 7);
    pen.fillStyle = one.colour;
    pen.fill();
  }
}

function write(pen, text, x, y, size, colour, align = "left", weight = "", wide = undefined) {
  pen.font = `${weight} ${size}px ${FONT}`;
  pen.fillStyle = colour;
  pen.textAlign = align;
  pen.fillText(text, x, y, wide);
}

function line(pen, x, y, x2, y2, colour, dash = [], wide = 1) {
  pen.setLineDash(dash);
  pen.strokeStyle = colour;
  pen.lineWidth = wide;
  pen.beginPath();
  pen.moveTo(x, y);
  pen.lineTo(x2, y2);
  pen.stroke();
  pen.setLineDash([]);
}

const short = (number) => String(+number.toPrecision(3)), percent = (part) => `${(100 * part).toFixed(1)}%`;

function paragraph(text) {
  const all = document.createElement("p"), name = document.createElement("b"), marked = document.createElement("mark");
  all.style.margin = "4px 0";
  name.style.color = text.colour;
  name.textContent = `${text.name}: `;
  marked.textContent = text.marked;
  all.append(name, text.before, marked, text.after);
  return all;
}
