// Draws the one figure of the page.
const only = document.getElementById("only");
const [figure] = data.figures;
Plotly.newPlot(only, drawn(figure), themed(figure.layout), { staticPlot: true })
  .then(() => { document.body.dataset.drawn = "1"; });
