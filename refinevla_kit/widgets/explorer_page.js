
// The exported page: its own controls, and the view of a choice from the numbers in the page (as exploration.py makes it from captures).
const store = JSON.parse(document.getElementById("store").textContent), picture = mount(document.getElementById("picture"));
const episodes = [...new Set(store.frames.map((frame) => frame.episode))], unpacked = new Map();
const choice = { episode: episodes[0], step: 0, kind: null, query: null, layer: store.layer, head: -1, opacity: 0.9, outlines: true };

const inEpisode = (episode) => store.frames.filter((frame) => frame.episode === episode);
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;

function asked(frame, policy) {
  return Object.fromEntries(frame.seen[policy.key].asked.map(([key, kind, label, said, rows, span]) => [key, { key, kind, label, said, rows, span }]));
}

function queries(frame) {
  const found = {};
  for (const policy of store.policies) for (const one of Object.values(asked(frame, policy))) found[one.key] ??= one;
  const kinds = Object.keys(store.kinds);
  return Object.values(found).sort((a, b) => kinds.indexOf(a.kind) - kinds.indexOf(b.kind));
}

function attention(frame, policy, chosen) {  // one number a patch
  const seen = frame.seen[policy.key], one = asked(frame, policy)[chosen.query], patches = store.rows * store.columns;
  if (!one) return null;
  if (!unpacked.has(seen)) unpacked.set(seen, [new Float32Array(bytes(seen.largest)), new Uint16Array(bytes(seen.values))]);
  const [largest, values] = unpacked.get(seen), sum = new Float64Array(patches);
  const heads = chosen.head < 0 ? [...Array(store.heads).keys()] : [chosen.head];
  for (const head of heads) for (const query of one.rows) {
    const row = (chosen.layer * store.heads + head) * seen.count + query;
    for (let i = 0; i < patches; i++) sum[i] += values[row * patches + i] / 65535 * largest[row];
  }
  return sum.map((each) => each / heads.length / one.rows.length);
}

function parts(frame, map) {  // thing -> share of the map
  const total = map.reduce((a, b) => a + b, 0);
  return Object.fromEntries(Object.entries(frame.cover).map(([thing, { part }]) => [thing, map.reduce((sum, each, i) => sum + each * part[i], 0) / total]));
}

function viewOf(chosen) {
  const mine = inEpisode(chosen.episode), frame = mine[chosen.step], what = queries(frame).find((one) => one.key === chosen.query);
  const maps = store.policies.map((policy) => attention(frame, policy, chosen)), without = store.policies.filter((_, i) => !maps[i]);
  if (without.length) throw new Error(`${without[0].name}: there is no ${chosen.query.replaceAll(":", " ")} to look from here; choose what every policy has`);
  const heats = maps.map((map) => { const mean = map.reduce((a, b) => a + b, 0) / map.length; return [...map].map((each) => each / mean); });
  const sorted = heats.flat().sort((a, b) => a - b), high = sorted[Math.ceil(0.98 * (sorted.length - 1))];
  const panels = store.policies.map(({ name, colour }, i) => panelOf(frame, name, colour, heats[i]));
  const found = maps.map((map) => parts(frame, map)), things = Object.keys(store.things).filter((thing) => thing in frame.cover);
  const rows = things.map((thing) => ({ ...store.things[thing], area: frame.cover[thing].area, values: found.map((one) => one[thing]) }));
  const heads = chosen.head < 0 ? "mean of heads" : `head ${chosen.head + 1}`;
  return {
    title: frame.title, detail: `from ${what.said}; layer ${chosen.layer + 1}, ${heads}`, unit: store.unit, whole: store.whole,
    height: frame.height, width: frame.width, image: frame.image, outlines: chosen.outlines ? frame.outlines : [], opacity: chosen.opacity,
    top: 2 ** Math.ceil(Math.log2(Math.max(store.least, high))), panels,
    shares: { things: rows, end: endOf(rows.flatMap((row) => [row.area, ...row.values])),
              rest: things.length ? found.map((one) => 1 - Object.values(one).reduce((a, b) => a + b, 0)) : [] },
    plots: mine.length > 1 ? overTime(mine, chosen) : [], steps: mine.map((each) => each.step), now: chosen.step,
    texts: once(store.policies.map((policy) => textOf(frame, policy, chosen)).filter(Boolean)),
  };
}

function panelOf(frame, name, colour, heat) {
  const best = heat.indexOf(Math.max(...heat)), times = heat[best].toFixed(1);
  const covered = Object.entries(store.things).map(([thing, { label }]) => [label, frame.cover[thing]?.part[best] ?? 0]).filter(([, part]) => part >= 0.005);
  const on = covered.map(([label, part]) => `${(100 * part).toFixed(0)}% ${label}`).join(", ") || "none of the objects on it";
  const note = `brightest patch: ${times} × even${Object.keys(frame.cover).length ? `; ${on}` : ""}`;
  return { name, colour, rows: store.rows, columns: store.columns, heat, peak: [Math.floor(best / store.columns), best % store.columns], note };
}

function overTime(mine, chosen) {
  if (!mine.some((frame) => Object.keys(frame.cover).length)) return [];
  const found = store.policies.map((policy) => mine.map((frame) => { const map = attention(frame, policy, chosen); return map && parts(frame, map); }));
  const plots = Object.entries(store.things).map(([thing, { label, colour }]) => ({
    title: label, colour, low: 0, share: true, lines: [
      { label: "area", colour: INK, dashed: true, steps: false, values: mine.map((frame) => frame.cover[thing]?.area ?? null) },
      ...store.policies.map((policy, i) => ({ label: policy.name, colour: policy.colour, dashed: false, steps: false,
                                              values: found[i].map((one) => one?.[thing] ?? null) }))],
  }));
  const high = endOf(plots.flatMap((plot) => plot.lines.flatMap((each) => each.values)));
  return plots.map((plot) => ({ ...plot, high }));
}

function textOf(frame, policy, chosen) {
  const { text } = frame.seen[policy.key], [start, end] = asked(frame, policy)[chosen.query]?.span ?? [0, 0];
  if (!text) return null;
  const letters = [...text];  // as Python counts them
  return { name: policy.name, colour: policy.colour, before: letters.slice(0, start).join(""), marked: letters.slice(start, end).join(""),
           after: letters.slice(end).join("") };
}

function once(texts) {  // what all were fed says nothing about who would have written it
  const same = texts.length > 1 && new Set(texts.map(({ before, marked, after }) => JSON.stringify([before, marked, after]))).size === 1;
  return same ? [{ ...texts[0], name: store.fedAll, colour: INK }] : texts;
}

const endOf = (values) => store.ends.find((end) => Math.max(0, ...values.filter((each) => each !== null)) <= end + 1e-9);

function control(name, element, said = () => "") {
  const label = document.createElement("label"), words = document.createElement("span"), output = document.createElement("output");
  words.textContent = name;
  element.id = name;
  label.append(words, element, ...(element.tagName === "SELECT" || element.type === "checkbox" ? [] : [output]));
  document.getElementById("controls").append(label);
  return { element, tell: () => { output.textContent = said(); } };
}

function slider(name, most, set, said, least = 0, step = 1, value = 0) {
  const input = Object.assign(document.createElement("input"), { type: "range", min: least, max: most, step, value });
  input.addEventListener("input", () => { set(+input.value); refresh(); });
  return control(name, input, said);
}

function picker(name, options, set) {
  const select = document.createElement("select");
  fill(select, options);
  select.addEventListener("change", () => { set(select.value); refresh(); });
  return control(name, select);
}

function fill(select, options) {
  if (JSON.stringify([...select.options].map((each) => [each.value, each.text])) === JSON.stringify(options)) return;
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

const now = () => inEpisode(choice.episode)[choice.step];
const pickEpisode = picker("episode", episodes.map((each) => [String(each), String(each)]), (value) => { choice.episode = +value; });
const pickStep = slider("frame", 0, (value) => { choice.step = value; }, () => `${choice.step} (step ${now().step})`);
const play = control("play", Object.assign(document.createElement("button"), { textContent: "play" }));
const pickKind = picker("from", [], (value) => { choice.kind = value; });
const pickQuery = slider("token", 0, (value) => { choice.query = offered()[value].key; }, () => offered().find((one) => one.key === choice.query).label);
const pickOpacity = slider("opacity", 1, (value) => { choice.opacity = value; }, () => choice.opacity.toFixed(2), 0, 0.05, choice.opacity);
const pickLayer = slider("layer", store.layers, (value) => { choice.layer = value - 1; }, () => `${choice.layer + 1} of ${store.layers}`, 1, 1, choice.layer + 1);
const pickHead = slider("head", store.allHeads ? store.heads : 0, (value) => { choice.head = value - 1; },
                        () => choice.head < 0 ? "mean" : `${choice.head + 1} of ${store.heads}`);
const outlined = control("outlines", Object.assign(document.createElement("input"), { type: "checkbox", checked: true }));
const save = control("save", Object.assign(document.createElement("button"), { textContent: "save PNG" }));
const offered = () => queries(now()).filter((one) => one.kind === choice.kind);

outlined.element.addEventListener("change", () => { choice.outlines = outlined.element.checked; refresh(); });
save.element.addEventListener("click", () => picture.canvas.toBlob((blob) => {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: "explorer.png" });
  link.click();
  URL.revokeObjectURL(link.href);
}));
let playing = null;
play.element.addEventListener("click", () => {
  if (playing !== null) { clearInterval(playing); playing = null; } else {
    playing = setInterval(() => { choice.step = (choice.step + 1) % inEpisode(choice.episode).length; refresh(); }, 300);
  }
  play.element.textContent = playing === null ? "play" : "stop";
});

function refresh() {
  const last = inEpisode(choice.episode).length - 1;
  choice.step = Math.min(choice.step, last);
  const all = queries(now()), kinds = [...new Set(all.map((one) => one.kind))];
  if (!kinds.includes(choice.kind)) choice.kind = all.find((one) => one.key === choice.query)?.kind ?? kinds[0];
  fill(pickKind.element, kinds.map((kind) => [kind, store.kinds[kind]]));
  pickKind.element.value = choice.kind;
  if (!offered().some((one) => one.key === choice.query)) choice.query = offered()[0].key;
  Object.assign(pickStep.element, { max: last, value: choice.step });
  Object.assign(pickQuery.element, { max: offered().length - 1, value: offered().findIndex((one) => one.key === choice.query) });
  pickEpisode.element.value = String(choice.episode);
  for (const each of [pickStep, pickQuery, pickLayer, pickHead, pickOpacity]) each.tell();
  try {
    picture.show(viewOf(choice));
  } catch (error) {
    document.querySelector(".refinevla-value").textContent = error.message;
  }
}

document.getElementById("footer").prepend(`${store.policies.map((one) => `${one.name}: checkpoint ${one.hash || "unknown"}`).join(", ")}. `);
choice.query = store.query;
choice.kind = queries(now()).find((one) => one.key === choice.query)?.kind ?? null;
refresh();
