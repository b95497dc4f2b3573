// The attention explorer: its controls, and the picture of what they choose, from the numbers that explorer_page.py writes.
// This file is both the notebook's widget (`render`) and the saved page. Only the widget has a kernel, which is asked for what needs a policy.

const INK = "#222222", MUTED = "#6b6b6b", GRID = "#e3e3e3", FONT = "system-ui, 'DejaVu Sans', sans-serif";
const PANEL = 350, GAP = 10, BAR = 78, SIDE = 330, HEAD = 70, PLOT = 118, ACROSS = 4;
const ATTENTION = "attention", MEAN = "mean", POINT = "Point at a patch to read its value, or go there with Tab and the arrow keys.";
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const STYLE = `
.refinevla-explorer { font: 14px ${FONT}; color: ${INK}; background: white; max-width: 1130px; padding: 4px; box-sizing: border-box }
.refinevla-controls { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 6px 22px; margin-bottom: 12px }
.refinevla-row { display: flex; align-items: center; gap: 8px; min-width: 0; min-height: 26px }
.refinevla-row > span:first-child { flex: 0 0 62px; text-align: right; color: ${MUTED} }
.refinevla-row input[type=range], .refinevla-row select { flex: 1 1 80px; min-width: 0; width: 80px; margin: 0 }
.refinevla-row select { font: inherit; color: inherit; background: white; padding: 1px 4px }
.refinevla-row button { font: inherit; color: inherit; background: #f2f2f2; border: 1px solid #c4c4c4; border-radius: 3px; padding: 1px 10px; cursor: pointer }
.refinevla-row output { flex: 0 0 96px; color: ${MUTED}; white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
.refinevla-row label { display: flex; align-items: center; gap: 4px; white-space: nowrap }
.refinevla-explorer canvas { max-width: 100%; display: block }
.refinevla-value { font-size: 13px; min-height: 1.5em }
.refinevla-texts { font-size: 13px; line-height: 1.5 }
.refinevla-texts p { margin: 4px 0 }
.refinevla-explorer mark { background: #fff0a8; color: inherit }
.refinevla-explorer footer { color: ${MUTED}; font-size: 12px; margin-top: 8px }`;

// The notebook's widget. `choice` is kept in step with the kernel, so that what a person chose can be read and saved there; nothing waits for that.
function render({ model, el }) {
  const waiting = new Map();
  let questions = 0;
  const mine = Math.random();  // the same explorer may be on show twice
  const kernel = {
    keep(choice) {
      model.set("choice", choice);
      model.save_changes();
    },
    ask: (question) => new Promise((resolve, reject) => {
      const id = `${mine}-${questions++}`;
      waiting.set(id, { resolve, reject });
      model.send({ id, ...question });
    }),
  };
  const answered = ({ id, answer, error }) => {
    if (error === undefined) waiting.get(id)?.resolve(answer);
    else waiting.get(id)?.reject(new Error(error));
    waiting.delete(id);
  };
  const explorer = mountExplorer(el, model.get("state"), model.get("choice"), kernel);
  const chosen = () => explorer.choose(model.get("choice"));
  model.on("msg:custom", answered);
  model.on("change:choice", chosen);
  return () => {
    explorer.stop();
    model.off("msg:custom", answered);
    model.off("change:choice", chosen);
  };
}
export default { render };

// Shows `first` of `state` in `root`. `kernel` is null in a saved page. Returns what tests and the widget call.
export function mountExplorer(root, state, first, kernel = null) {
  root.innerHTML = `<style>${STYLE}</style><div class="refinevla-controls"></div><div></div><footer></footer>`;
  root.classList.add("refinevla-explorer");
  root.addEventListener("keydown", (event) => {  // JupyterLab would take single keys and arrows for its cells
    if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
  });
  const [, controls, shown, footer] = root.children;
  const choice = { ...first }, moments = readMoments(state), picture = mountPicture(shown);
  const now = () => moments.inEpisode(choice.episode)[choice.step];
  const offered = () => moments.groups(now()).filter(({ kind }) => kind === kindOf(choice));
  let turn = 0, playing = null, written = false;
  footer.textContent = state.footer;

  async function refresh() {
    const mine = ++turn;
    settle();
    tellAll();
    try {
      if (!moments.has(choice)) {
        const question = { ...choice };
        picture.say("asking the kernel …");
        moments.take(question, await kernel.ask({ ask: choice.method === ATTENTION ? "layer" : "map", choice: question }));
      }
      if (written && !now().text) {
        picture.say("the policy is writing …");
        const frame = now();
        frame.text = await kernel.ask({ ask: "text", index: frame.index });
      }
      if (mine === turn) await picture.show(moments.viewOf(choice));
    } catch (error) {
      if (mine === turn) picture.say(error.message);
    }
  }

  // Another episode may be shorter, and another frame's rationale has other words: the nearest there is.
  function settle() {
    if (!moments.episodes.includes(choice.episode)) [choice.episode] = moments.episodes;
    choice.step = Math.min(choice.step, moments.inEpisode(choice.episode).length - 1);
    const all = moments.groups(now());
    if (all.length && !all.some(({ key }) => key === choice.query)) choice.query = (offered()[0] ?? all[0]).key;
  }

  function set(change) {
    Object.assign(choice, change);
    settle();
    kernel?.keep({ ...choice });
    return refresh();
  }

  function choose(other) {
    if (JSON.stringify(other) === JSON.stringify(choice)) return null;
    Object.assign(choice, other);
    return refresh();
  }

  const tell = [];  // what brings each control in step with the choice
  const tellAll = () => tell.forEach((each) => each());

  function row(name, ...parts) {
    const all = make("div", { className: "refinevla-row" });
    all.append(make("span", { textContent: name }), ...parts);
    controls.append(all);
    return all;
  }

  function slider(name, { least = 0, step = 1, most, get, pick, words }, ...beside) {
    const input = make("input", { type: "range", name, min: least, step, ariaLabel: name }), output = make("output");
    input.addEventListener("input", () => set(pick(+input.value)));
    tell.push(() => {
      Object.assign(input, { max: most(), value: get() });
      output.textContent = output.title = words();
    });
    return row(name, input, output, ...beside);
  }

  function picker(name, { options, get, pick }) {
    const select = make("select", { name, ariaLabel: name });
    select.addEventListener("change", () => set(pick(select.value)));
    tell.push(() => {
      const wanted = options();
      const before = [...select.options].map(({ value, text }) => [value, text]);
      if (JSON.stringify(before) !== JSON.stringify(wanted)) select.replaceChildren(...wanted.map(([value, text]) => new Option(text, value)));
      select.value = get();
    });
    return row(name, select);
  }

  function box(name, checked, pick) {
    const label = make("label"), input = make("input", { type: "checkbox", name });
    input.addEventListener("change", () => pick(input.checked));
    tell.push(() => { input.checked = checked(); });
    label.append(input, name);
    return label;
  }

  function button(name, click) {
    const made = make("button", { type: "button", textContent: name });
    made.addEventListener("click", click);
    return made;
  }

  const play = button("play", () => {
    if (playing !== null) return stop();
    playing = setInterval(() => set({ step: (choice.step + 1) % moments.inEpisode(choice.episode).length }), 300);
    play.textContent = "stop";
    return null;
  });

  function stop() {
    clearInterval(playing);
    playing = null;
    play.textContent = "play";
  }

  async function save() {
    if (kernel) {
      const form = controls.querySelector("[name=form]").value;
      picture.say("saving …");
      picture.say(await kernel.ask({ ask: "save", form }).then((path) => `saved ${path}`, (error) => error.message));
      return;
    }
    picture.canvas.toBlob((blob) => {
      const link = make("a", { href: URL.createObjectURL(blob), download: "explorer.png" });
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }

  function addControls() {
    const heads = kernel || state.held === "heads" ? state.heads : 0, token = () => offered().findIndex(({ key }) => key === choice.query);
    if (moments.episodes.length > 1) {
      picker("episode", { options: () => moments.episodes.map((each) => [String(each), String(each)]), get: () => String(choice.episode),
                          pick: (value) => ({ episode: +value }) });
    }
    slider("frame", { most: () => moments.inEpisode(choice.episode).length - 1, get: () => choice.step, pick: (step) => ({ step }),
                      words: () => `${choice.step} (step ${now().step})` }, play);
    if (state.policies.length) {
      picker("from", { options: () => moments.kinds(now()), get: () => kindOf(choice),
                       pick: (kind) => ({ query: moments.groups(now()).find((group) => group.kind === kind).key }) });
      slider("token", { most: () => offered().length - 1, get: token, pick: (i) => ({ query: offered()[i].key }),
                        words: () => offered()[token()]?.label ?? "" });
      if (kernel && state.methods.length > 1) {
        picker("method", { options: () => state.methods.map((each) => [each, each]), get: () => choice.method, pick: (method) => ({ method }) });
      }
      slider("layer", { least: 1, most: () => state.layers, get: () => choice.layer, pick: (layer) => ({ layer }),
                        words: () => `${choice.layer} of ${state.layers}` });
      slider("head", { most: () => heads, get: () => choice.head === MEAN ? 0 : choice.head, pick: (head) => ({ head: head || MEAN }),
                       words: () => choice.head === MEAN ? MEAN : `${choice.head} of ${state.heads}` });
      slider("opacity", { step: 0.05, most: () => 1, get: () => choice.opacity, pick: (opacity) => ({ opacity }), words: () => choice.opacity.toFixed(2) });
    }
    const parts = [box("outlines", () => choice.outlines, (outlines) => set({ outlines }))];
    if (kernel && state.writes) parts.push(box("rationale", () => written, (value) => { written = value; refresh(); }));
    const form = make("select", { name: "form", ariaLabel: "form of the file" });
    form.append(...state.forms.map((each) => new Option(each, each)));
    if (!kernel) parts.push(button("save PNG", save));
    row("", ...parts);
    if (kernel) row("save as", form, button("save", save));
  }

  addControls();
  const ready = refresh();
  return { choose, stop, ready, state, choice, picture, places, viewOf: moments.viewOf };
}

function make(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

function kindOf({ query }) {
  return query.split(":")[0];
}

// What `state` holds, and the view of a choice: the numbers that `Exploration.view` gives, and some words.
function readMoments(state) {
  const unpacked = new Map(), named = new Map(), answers = new Map(), layers = new Map();
  const episodes = [...new Set(state.frames.map(({ episode }) => episode))];
  const inEpisode = (episode) => state.frames.filter((frame) => frame.episode === episode);
  const question = ({ method, query, layer, head }, frame) => JSON.stringify([method, query, layer, head, frame.index]);

  function groupsOf(frame, policy) {
    const seen = frame.seen[policy.key];
    if (!named.has(seen)) named.set(seen, Object.fromEntries(seen.groups.map((group) => [group.key, group])));
    return named.get(seen);
  }

  function groups(frame) {  // what any policy can be asked about, the first one's words
    const all = Object.assign({}, ...[...state.policies].reverse().map((policy) => groupsOf(frame, policy)));
    const order = Object.keys(state.kinds);
    return Object.values(all).sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
  }

  function kinds(frame) {
    return [...new Set(groups(frame).map(({ kind }) => kind))].map((kind) => [kind, state.kinds[kind]]);
  }

  const inPage = ({ method, head }) => method === ATTENTION && (state.held === "heads" || (state.held === MEAN && head === MEAN));
  const layerKey = (frame, policy, { layer }) => JSON.stringify([frame.index, policy.key, layer]);

  function has(choice) {
    const frame = inEpisode(choice.episode)[choice.step], { policies } = state;
    if (!policies.length || inPage(choice)) return true;
    return choice.method === ATTENTION ? layers.has(layerKey(frame, policies[0], choice)) : answers.has(question(choice, frame));
  }

  // What the kernel answered, number of a frame -> policy -> a number a patch; of attention a layer of the whole episode, as it is packed in the page.
  function take(choice, answer) {
    for (const frame of state.frames.filter(({ index }) => answer[index])) {
      if (choice.method !== ATTENTION) answers.set(question(choice, frame), answer[frame.index]);
      else for (const policy of state.policies) layers.set(layerKey(frame, policy, choice), unpack(answer[frame.index][policy.key]));
    }
  }

  function mapOf(frame, policy, choice) {  // a number a patch, null where there is nothing to look from
    const seen = frame.seen[policy.key], group = groupsOf(frame, policy)[choice.query], whole = inPage(choice);
    if (!group) return null;
    if (choice.method !== ATTENTION) return answers.get(question(choice, frame))?.[policy.key] ?? null;
    if (whole && !unpacked.has(seen)) unpacked.set(seen, unpack(seen));
    const [largest, values] = whole ? unpacked.get(seen) : layers.get(layerKey(frame, policy, choice));
    const kept = whole && state.held === MEAN ? 1 : state.heads, first = whole ? (choice.layer - 1) * kept : 0;
    const heads = choice.head === MEAN ? [...Array(kept).keys()] : [choice.head - 1];
    const patches = state.rows * state.columns, sum = Array(patches).fill(0);
    for (const head of heads) for (const query of group.rows) {
      const row = (first + head) * seen.count + query;
      for (let i = 0; i < patches; i++) sum[i] += values[row * patches + i] / 65535 * largest[row];
    }
    return sum.map((each) => each / heads.length / group.rows.length);
  }

  function viewOf(choice) {
    const frames = inEpisode(choice.episode), frame = frames[choice.step], { policies } = state;
    if (frame.error) throw new Error(frame.error);
    const maps = policies.map((policy) => mapOf(frame, policy, choice)), without = policies.find((_, i) => !maps[i]);
    if (without) throw new Error(`${without.name}: there is no ${choice.query.replaceAll(":", " ")} to look from here; choose what every policy has`);
    const heats = maps.map((map) => map.map((each) => each / Math.max(total(map) / map.length, 1e-12)));
    const sorted = heats.flat().sort((a, b) => a - b), high = sorted[Math.ceil(0.98 * (sorted.length - 1))] ?? 0;
    const shares = maps.map((map) => sharesOf(frame, map)), attention = choice.method === ATTENTION;
    const things = policies.length ? Object.keys(state.things).filter((thing) => thing in frame.cover) : [];
    const rows = things.map((thing) => ({ ...state.things[thing], area: frame.cover[thing].area, values: shares.map((each) => each[thing]) }));
    return {
      title: frame.title, detail: [frame.note, policies.length ? detail(frame, choice) : ""].filter(Boolean).join("; "),
      unit: attention ? state.unit : `${choice.method} of a patch (1 = spread evenly)`,
      whole: attention ? "the attention to the picture" : `${choice.method} of the picture`,
      height: frame.height, width: frame.width, image: frame.image, outlines: choice.outlines ? frame.outlines : [], opacity: choice.opacity,
      top: 2 ** Math.ceil(Math.log2(Math.max(state.least, high))), heat: state.heat,
      panels: policies.map((policy, i) => panelOf(frame, policy, heats[i])),
      shares: { things: rows, end: endOf(rows.flatMap((row) => [row.area, ...row.values])), rest: things.length ? shares.map((each) => 1 - total(Object.values(each))) : [] },
      plots: [...state.plots, ...(attention && frames.length > 1 ? overTime(frames, choice) : [])],
      steps: frames.map(({ step }) => step), now: choice.step, texts: textsOf(frame, choice),
    };
  }

  function detail(frame, choice) {
    const what = groups(frame).find(({ key }) => key === choice.query).description;
    const head = choice.head === MEAN ? "mean of heads" : `head ${choice.head}`;
    return `from ${what}; ${choice.method === ATTENTION ? `layer ${choice.layer}, ${head}` : choice.method}`;
  }

  function sharesOf(frame, map) {  // thing -> share of the map
    const whole = Math.max(total(map), 1e-12), share = ({ part }) => total(map.map((each, i) => each * part[i])) / whole;
    return Object.fromEntries(Object.entries(frame.cover ?? {}).map(([thing, cover]) => [thing, share(cover)]));
  }

  function panelOf(frame, { name, colour }, heat) {
    const best = heat.indexOf(Math.max(...heat)), cover = (thing) => frame.cover[thing]?.part[best] ?? 0;
    const covering = Object.keys(state.things).filter((thing) => cover(thing) >= 0.005);
    const on = covering.map((thing) => `${(100 * cover(thing)).toFixed(0)}% ${state.things[thing].label}`).join(", ") || "none of the objects on it";
    const note = `brightest patch: ${heat[best].toFixed(1)} × even${Object.keys(frame.cover).length ? `; ${on}` : ""}`;
    return { name, colour, rows: state.rows, columns: state.columns, heat, peak: [Math.floor(best / state.columns), best % state.columns], note };
  }

  function overTime(frames, choice) {  // a plot a thing: each policy's share of it, and its share of the area
    if (!frames.some(({ cover }) => Object.keys(cover ?? {}).length)) return [];
    const shares = state.policies.map((policy) => frames.map((frame) => {
      const map = mapOf(frame, policy, choice);
      return map && sharesOf(frame, map);
    }));
    const plots = Object.entries(state.things).map(([thing, { label, colour }]) => ({
      title: label, colour, low: 0, share: true, lines: [
        { label: "area", colour: INK, dashed: true, steps: false, values: frames.map(({ cover }) => cover?.[thing]?.area ?? null) },
        ...state.policies.map((policy, i) => ({ label: policy.name, colour: policy.colour, dashed: false, steps: false,
                                                values: shares[i].map((each) => each?.[thing] ?? null) }))],
    }));
    const high = endOf(plots.flatMap(({ lines }) => lines.flatMap(({ values }) => values)));
    return plots.map((plot) => ({ ...plot, high }));
  }

  function textsOf(frame, choice) {
    if (frame.text) return [{ ...state.speaker, before: "", marked: "", after: frame.text }];
    const texts = state.policies.filter(({ key }) => frame.seen[key].text).map((policy) => {
      const letters = [...frame.seen[policy.key].text];  // as Python counts them
      const [start, end] = groupsOf(frame, policy)[choice.query]?.span ?? [0, 0], part = (from, to) => letters.slice(from, to).join("");
      return { name: policy.name, colour: policy.colour, before: part(0, start), marked: part(start, end), after: part(end) };
    });
    const same = texts.length > 1 && new Set(texts.map(({ before, marked, after }) => JSON.stringify([before, marked, after]))).size === 1;
    return same ? [{ ...texts[0], name: state.fedAll, colour: INK }] : texts;  // what all were fed says nothing about who would have written it
  }

  const endOf = (values) => state.ends.find((end) => Math.max(0, ...values.filter((each) => each !== null)) <= end + 1e-9);
  return { episodes, inEpisode, groups, kinds, has, take, viewOf };
}

function unpack({ largest, values }) {  // what `packed` of explorer_page.py packs
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  return [new Float32Array(bytes(largest)), new Uint16Array(bytes(values))];
}

function total(values) {
  return values.reduce((sum, each) => sum + each, 0);
}

// Draws views on a canvas: overlays on one scale, shares by object, curves over the episode; below it the value pointed at, and texts.
function mountPicture(element) {
  element.innerHTML = "<canvas tabindex=0></canvas><div class='refinevla-value' aria-live='polite'></div><div class='refinevla-texts'></div>";
  const [canvas, value, texts] = element.children, pictures = new Map();
  let shown = null, drawn = null, spot = null, turn = 0;  // `spot`: panel, row and column that the keys have reached
  const say = (text) => { value.textContent = text; };
  const invite = () => say(shown.panels.length ? POINT : "");

  async function layersOf(uri) {
    if (!pictures.has(uri)) {
      const image = make("img", { src: uri });
      await image.decode();
      if (pictures.size > 200) pictures.clear();
      pictures.set(uri, [image, greyed(image)]);
    }
    return pictures.get(uri);
  }

  async function show(view) {
    const mine = ++turn, layers = await layersOf(view.image);
    if (mine !== turn) return;  // a later view has come meanwhile
    [shown, drawn] = [view, layers];
    texts.replaceChildren(...view.texts.map(paragraph));
    redraw();
  }

  function redraw() {
    draw(canvas, shown, drawn);
    const panel = spot && shown.panels[spot[0]];
    if (!panel) return invite();
    outlinePatch(canvas, shown, spot);
    return say(patchWords(shown, ...spot));
  }

  canvas.addEventListener("keydown", (event) => {
    if (!ARROWS[event.key] || !shown?.panels.length) return;
    event.preventDefault();  // or the page scrolls
    spot = spot ? nextPatch(shown.panels, spot, ARROWS[event.key]) : [0, 0, 0];
    redraw();
  });
  canvas.addEventListener("blur", () => {
    spot = null;
    if (shown) redraw();
  });
  canvas.addEventListener("mousemove", (event) => {
    if (!shown) return;
    const box = canvas.getBoundingClientRect(), scale = places(shown).width / box.width;
    const words = patchAt(shown, (event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
    if (words) say(words);
    else invite();
  });
  return { show, say, canvas };
}

function places(view) {
  const count = Math.max(view.panels.length, 1), tall = PANEL * view.height / view.width, heat = view.panels.length > 0;
  const right = count * (PANEL + GAP), width = Math.max(right + (heat ? BAR + SIDE : 0), view.plots.length ? 1120 : 0);
  const below = HEAD + Math.max(tall, heat ? 215 : 0) + (heat ? 42 : 12), rows = Math.ceil(view.plots.length / ACROSS);
  return { tall, right, width, below, height: below + rows * (PLOT + 52) };
}

function patchAt(view, x, y) {
  const { tall } = places(view), row = (y - HEAD) / tall, number = Math.floor(x / (PANEL + GAP)), column = (x - number * (PANEL + GAP)) / PANEL;
  const panel = view.panels[number];
  if (!panel || row < 0 || row >= 1 || column < 0 || column >= 1) return null;
  return patchWords(view, number, Math.floor(row * panel.rows), Math.floor(column * panel.columns));
}

function patchWords(view, number, r, c) {
  const panel = view.panels[number], times = panel.heat[r * panel.columns + c], part = 100 * times / (panel.rows * panel.columns);
  return `${panel.name}, row ${r + 1}, column ${c + 1}: ${times.toFixed(2)} × even (${part.toFixed(2)} % of ${view.whole})`;
}

// The patch beside this one; to the right of a panel's last column is the next panel.
function nextPatch(panels, [number, row, column], [down, right]) {
  const { rows, columns } = panels[number], beyond = column + right;
  if (beyond < 0) return number ? [number - 1, row, panels[number - 1].columns - 1] : [number, row, column];
  if (beyond >= columns) return number + 1 < panels.length ? [number + 1, row, 0] : [number, row, column];
  return [number, Math.min(Math.max(row + down, 0), rows - 1), beyond];
}

function outlinePatch(canvas, view, [number, row, column]) {
  const panel = view.panels[number], wide = PANEL / panel.columns, tall = places(view).tall / panel.rows, pen = canvas.getContext("2d");
  pen.lineWidth = 2;
  for (const [colour, dash] of [["white", []], [INK, [4, 4]]]) {
    pen.strokeStyle = colour;
    pen.setLineDash(dash);
    pen.strokeRect(number * (PANEL + GAP) + column * wide, HEAD + row * tall, wide, tall);
  }
  pen.setLineDash([]);
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
      pen.fillStyle = colour(view, strength);
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
  panel.note.split("; ").forEach((words, i) => write(pen, words, 0, tall + 16 + 15 * i, 11.5, MUTED, "left", "", PANEL));
}

function colour(view, strength) {
  const i = 3 * Math.round(255 * Math.max(0, Math.min(strength, 1)));
  return `rgb(${view.heat[i]},${view.heat[i + 1]},${view.heat[i + 2]})`;
}

function scale(pen, view, { tall, right }) {
  const x = right + 4, wide = 11;
  for (let i = 0; i < tall; i++) {
    pen.fillStyle = colour(view, 1 - i / tall);
    pen.fillRect(x, HEAD + i, wide, 1.5);
  }
  pen.fillStyle = colour(view, 1);  // what is beyond the scale
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
  const all = make("p"), name = make("b", { textContent: `${text.name}: ` }), marked = make("mark", { textContent: text.marked });
  name.style.color = text.colour;
  all.append(name, text.before, marked, text.after);
  return all;
}
