"use strict";
// What every figure gets from the page that it is drawn on: its colours, its font and its margins.
const data = JSON.parse(document.getElementById("data").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const print = window.matchMedia("print");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function themed(layout) {
  const [ink, line] = ["--ink", "--line"].map(colour);
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
  const themedAxis = ({ minor, ...own } = {}) => (
    { ...axis, ...own, ...(minor && { minor: { ...minor, tickcolor: line } }) });
  return {
    showlegend: true,
    ...layout,
    font: { color: ink, family: "system-ui, DejaVu Sans, sans-serif", size: 13, ...layout.font },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 56, r: 16, t: layout.annotations ? 28 : 10, b: 48, ...layout.margin },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, xanchor: "left",
      font: { size: 12 } },
    xaxis: themedAxis(layout.xaxis),
    yaxis: themedAxis(layout.yaxis),
    shapes: (layout.shapes || []).map(({ themed: own, ...shape }) => (
      own ? { ...shape, line: { color: ink, width: 2, dash: "dot" } } : shape)),
  };
}

// Some of the palette's colours are too dark on a dark page.
const lighter = data.lighter || {};
function coloured(traces) {
  if (!dark.matches || print.matches) return traces;
  const any = new RegExp(Object.keys(lighter).join("|"), "g");
  return JSON.parse(JSON.stringify(traces).replace(any, (own) => lighter[own]));
}

const drawn = (figure) => coloured(figure.traces).map((trace) => (trace.error_y
  ? { ...trace, error_y: { ...trace.error_y, color: colour("--ink") } } : trace));
