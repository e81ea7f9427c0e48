"use strict";
// Draws every figure in the colours of the page, and again when these or the width change.
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const print = window.matchMedia("print");
const canvas = (id) => document.querySelector(`[data-figure="${id}"]`);

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
  const themedAxis = ({ minor, ...own } = {}) => (
    { ...axis, ...own, ...(minor && { minor: { ...minor, tickcolor: line } }) });
  return {
    ...layout,
    font: { color: ink, family: "system-ui, DejaVu Sans, sans-serif", size: 13 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 56, r: 16, t: layout.annotations ? 28 : 10, b: 48 },
    showlegend: true,
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, xanchor: "left",
      font: { size: 12 } },
    xaxis: themedAxis(layout.xaxis),
    yaxis: themedAxis(layout.yaxis),
    shapes: (layout.shapes || []).map(({ themed: _, ...shape }) => (
      { ...shape, line: { color: ink, width: 2, dash: "dot" } })),
  };
}

// Two of the palette's colours are too dark on a dark page.
const lighter = { "#0072B2": "#3D9BE0", "#D55E00": "#F07C2B" };
const shown = (traces) => (dark.matches && !print.matches
  ? JSON.parse(JSON.stringify(traces).replace(/#0072B2|#D55E00/g, (colour) => lighter[colour]))
  : traces);

function draw() {
  return Promise.all(figures.map((figure) => Plotly.react(
    canvas(figure.id), shown(figure.traces).map((trace) => trace.error_y
      ? { ...trace, error_y: { ...trace.error_y, color: getComputedStyle(document.body).color } }
      : trace),
    themed(figure.layout), { displayModeBar: false, responsive: true, scrollZoom: false })));
}

const ready = draw().then(() => { document.body.dataset.drawn = String(figures.length); });
dark.addEventListener("change", draw);
print.addEventListener("change", draw);
// On paper nothing can be opened.
let closed = [];
window.addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const details of closed) details.open = true;
});
window.addEventListener("afterprint", () => { for (const details of closed) details.open = false; });
for (const button of document.querySelectorAll("[data-save]")) {
  button.addEventListener("click", () => Plotly.downloadImage(
    canvas(button.dataset.save), { format: "png", scale: 2, filename: button.dataset.save }));
}
