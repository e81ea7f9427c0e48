// Draws every figure in the colours of the page, and again when these or the width change.
const figures = data.figures;
const canvas = (id) => document.querySelector(`[data-figure="${id}"]`);
const maps = figures.filter((figure) => figure.id.startsWith("map-"));
const narrow = window.matchMedia("(max-width: 40rem)");
const touch = window.matchMedia("(pointer: coarse)");

function draw() {
  // A finger that drags over a figure scrolls the page.
  const more = touch.matches ? { dragmode: false } : {};
  return Promise.all(figures.map((figure) => Plotly.react(
    canvas(figure.id), drawn(figure), { ...themed(figure.layout), ...more },
    { displayModeBar: false, responsive: true, scrollZoom: false }))).then(ring);
}

// A figure in a closed section has no size, so it is fitted when the section is opened.
function fit(inside) {
  for (const figure of inside.querySelectorAll(".canvas.js-plotly-plot")) {
    if (figure.offsetParent) Plotly.Plots.resize(figure);
  }
  hint();
}

// A table that is wider than the page says so until its end is reached.
function hint() {
  for (const box of document.querySelectorAll(".scroll")) {
    box.classList.toggle("cut", box.scrollWidth - box.clientWidth - box.scrollLeft > 1);
  }
}
for (const box of document.querySelectorAll(".scroll")) box.addEventListener("scroll", hint);
window.addEventListener("resize", hint);

// On a narrow page all sections but the first are folded.
const folds = [...document.querySelectorAll("details.fold")];
function unfold() {
  const aim = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const fold = aim && (aim.querySelector("details.fold") || aim.closest("details.fold"));
  if (!fold) return;
  fold.open = true;
  aim.scrollIntoView();
}
if (narrow.matches && !print.matches) for (const fold of folds.slice(1)) fold.open = false;
window.addEventListener("hashchange", unfold);
for (const details of document.querySelectorAll("details")) {
  details.addEventListener("toggle", () => { if (details.open) fit(details); });
}

// --- the maps ------------------------------------------------------------------------------------

const places = new Map(); // the key of a photo: where each map shows it
maps.forEach((figure, number) => {
  for (const trace of figure.traces) {
    trace.customdata.forEach((key, i) => {
      if (!places.has(key)) places.set(key, []);
      places.get(key)[number] = [trace.x[i], trace.y[i]];
    });
  }
});
const photos = [...places.keys()];
let chosen = null;

// Rings the chosen photo in the maps of all models.
function ring() {
  maps.forEach((figure, number) => {
    const own = canvas(figure.id);
    const at = chosen === null ? null : places.get(chosen)[number];
    const rings = [{ type: "scatter", mode: "markers", x: at ? [at[0]] : [], y: at ? [at[1]] : [],
      hoverinfo: "skip", showlegend: false,
      marker: { symbol: "circle-open", size: 20, color: colour("--ink"), line: { width: 3 } } }];
    Plotly.react(own, [...drawn(figure), ...rings], own.layout, own._context);
  });
}

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function face(key) {
  const image = element("img");
  image.src = data.map.faces[key];
  image.alt = `Face of photo ${key}, ${data.map.people[key]}`;
  image.width = image.height = 72;
  return image;
}

function sign(model) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "sign");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.style.setProperty("--own", model.colour);
  svg.style.setProperty("--own-dark", model.dark);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", model.path);
  svg.append(path);
  return svg;
}

function said([score, margin, right], model) {
  const row = element("li");
  const bar = element("span", "", "bar");
  const percent = (value) => `${100 * Math.min(Math.max(value, 0), 1)}%`;
  bar.style.setProperty("--at", percent(score));
  bar.style.setProperty("--cut", percent(score - margin));
  row.append(sign(model), element("span", `${model.name}: similarity `, "unseen"), bar,
    element("span", score.toFixed(3), "number"),
    right ? element("span", "right", "right") : element("span", "wrong", "wrong"));
  return row;
}

// Shows the pairs of a photo below the maps; on a narrow page below the map where it was chosen.
function choose(key, own) {
  chosen = key;
  ring();
  const pairs = data.map.pairs[key] || [];
  const count = data.map.counts[key] || 0;
  const which = count > pairs.length ? `${pairs.length} of its ${count} pairs, those closest to a mistake`
    : count ? `its ${count === 1 ? "pair" : `${count} pairs`}` : "in no pair of the list";
  const head = element("p");
  head.append(face(key), element("span", `Photo ${key}, ${data.map.people[key]}: ${which}`));
  const list = element("ol", undefined, "pairs");
  for (const pair of pairs) {
    const item = element("li");
    item.append(face(key), face(pair.other),
      element("span", pair.same ? "one person" : "two people", "margin"));
    const says = element("ul", undefined, "says");
    says.append(...pair.models.map((one, i) => said(one, data.models[i])));
    item.append(says, element("span", data.map.people[pair.other], "names"));
    list.append(item);
  }
  const panel = document.getElementById("chosen");
  panel.replaceChildren(head, list);
  const plot = (own || canvas(maps[0].id)).closest(".plot");
  (narrow.matches ? plot : plot.parentElement).after(panel);
  panel.scrollIntoView({ block: "nearest" });
}

const tip = document.getElementById("tip");
function point(event) {
  const [at] = event.points;
  if (at.customdata === undefined) return;
  tip.hidden = false;
  const name = `${data.map.people[at.customdata]}, photo ${at.customdata}`;
  tip.replaceChildren(face(at.customdata), element("span", name));
  const { pageX, pageY } = event.event;
  const left = Math.min(pageX + 14, document.documentElement.clientWidth - tip.offsetWidth - 4);
  tip.style.left = `${Math.max(left, 4)}px`;
  tip.style.top = `${pageY + 14}px`;
}

function listen() {
  for (const figure of maps) {
    const own = canvas(figure.id);
    own.on("plotly_hover", point);
    own.on("plotly_unhover", () => { tip.hidden = true; });
    own.on("plotly_click", ({ points: [at] }) => {
      if (at.customdata !== undefined) choose(at.customdata, own);
    });
  }
}
for (const button of document.querySelectorAll("[data-step]")) {
  button.addEventListener("click", () => {
    const step = Number(button.dataset.step);
    const from = chosen === null ? (step > 0 ? -1 : 0) : photos.indexOf(chosen);
    choose(photos[(from + step + photos.length) % photos.length]);
  });
}

// --- all together --------------------------------------------------------------------------------

const ready = draw().then(() => {
  listen();
  hint();
  unfold();
  document.body.dataset.drawn = String(figures.length);
});
dark.addEventListener("change", draw);
print.addEventListener("change", draw);
// On paper nothing can be opened.
let closed = [];
window.addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const details of closed) details.open = true;
  fit(document);
});
window.addEventListener("afterprint", () => { for (const details of closed) details.open = false; });
for (const button of document.querySelectorAll("[data-save]")) {
  button.addEventListener("click", () => {
    const { data: traces, layout } = canvas(button.dataset.save);
    const whole = { ...layout, paper_bgcolor: colour("--paper"), showlegend: true };
    Plotly.downloadImage({ data: traces, layout: whole }, {
      format: button.dataset.form, scale: button.dataset.form === "png" ? 2 : 1,
      width: 800, height: 520, filename: button.dataset.save });
  });
}
