"use strict";
// Draws every <div data-chart="name"> from <script id="charts" type="application/json">; their form is in report/charts.py.
(async () => {
  // The folder of all results: pages are also reached over links one level below it.
  const root = /\/(reports|comparisons)\/[^/]+\/[^/]*$/.test(location.pathname) ? "../../" : "../";
  document.querySelectorAll("a[data-run]").forEach((link) => { link.href = `${root}${link.dataset.run}/report.html`; });
  const library = document.querySelector("meta[name=library]");
  if (library) {
    const loaded = await new Promise((done) => {
      const script = Object.assign(document.createElement("script"), { src: root + library.content });
      script.addEventListener("load", () => done(true));
      script.addEventListener("error", () => done(false));
      document.head.append(script);
    });
    if (!loaded) {
      document.querySelectorAll("[data-chart] > div").forEach((place) => { place.textContent = `Not drawn: ${library.content} is missing in the folder of all results.`; });
      document.documentElement.dataset.drawn = "yes";
      return;
    }
  }
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const palette = () => dark.matches
    ? ["#6aa8ec", "#f0924f", "#5fbf8a", "#c08be6", "#dab65c", "#6cc4d3", "#ef8fae", "#a3b1c2"]
    : ["#2f6fb2", "#c4581b", "#2f8a57", "#8a4fb0", "#a87a1d", "#2b8796", "#b9446a", "#67758a"];
  const names = { step: "step", tokens: "tokens", seconds: "seconds of training" };
  let axis = "step", smoothing = 0, log = false;

  // Curves of a run that has not counted its tokens stay over steps.
  const over = (chart) => (chart.lines.every((line) => line[axis]) ? axis : "step");
  const colour = (number) => palette()[number % palette().length];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Exponential moving average, corrected for its start, as TensorBoard has it.
  function smoothed(values) {
    let mean = 0, weight = 0;
    return values.map((value) => {
      mean = smoothing * mean + (1 - smoothing) * value;
      weight = smoothing * weight + 1 - smoothing;
      return mean / weight;
    });
  }

  function layout(more) {
    const grid = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true, exponentformat: "e" };
    return {
      margin: { l: 46, r: 12, t: 8, b: 34 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: css("--soft"), size: 11, family: "system-ui, sans-serif" }, showlegend: false,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, hoverlabel: { font: { size: 12 } },
      ...more, xaxis: { ...grid, ...more.xaxis }, yaxis: { ...grid, ...more.yaxis },
    };
  }

  function upright(x, text) {
    return {
      shape: { type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: css("--bad"), width: 1, dash: "dot" } },
      note: { x, yref: "paper", y: 1, yanchor: "top", xanchor: "left", text, showarrow: false, font: { size: 10, color: css("--bad") } },
    };
  }

  const kinds = {
    lines(chart) {
      const traces = chart.lines.flatMap((line) => {
        const trace = {
          type: "scatter", mode: line.values.length > 1 ? "lines" : "markers", x: line[over(chart)], y: line.values, name: line.name,
          line: { color: colour(line.colour), width: chart.lines.length > 2 ? 1.5 : 2 }, marker: { color: colour(line.colour) },
        };
        if (!smoothing || line.values.length < 3) return [trace];
        return [{ ...trace, opacity: 0.25, hoverinfo: "skip", showlegend: false }, { ...trace, y: smoothed(line.values) }];
      });
      const marks = (chart.marks || []).map((mark) => upright(mark[over(chart)], mark.why));
      const shapes = marks.map((mark) => mark.shape), annotations = marks.map((mark) => mark.note);
      const logarithmic = log && !chart.zero && chart.lines.every((line) => line.values.every((value) => value > 0));
      if (chart.reference) {
        const { value, text } = chart.reference;
        shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line: { color: css("--soft"), width: 1, dash: "dash" } });
        annotations.push({ xref: "paper", x: 1, xanchor: "right", y: logarithmic ? Math.log10(value) : value, yanchor: "bottom", text, showarrow: false, font: { size: 10 } });
      }
      return [traces, layout({
        xaxis: { title: { text: names[over(chart)], standoff: 6 } }, hovermode: chart.lines.length > 8 ? "closest" : "x unified",
        yaxis: { type: logarithmic ? "log" : "linear", rangemode: chart.zero ? "tozero" : "normal", tickformat: chart.format || "" },
        showlegend: chart.lines.length > 1 && chart.lines.length <= 20, shapes, annotations,
      })];
    },
    points(chart) {
      const { name, x, y } = chart.points;
      const traces = [
        { type: "scatter", mode: chart.numeric ? "lines" : "markers", x: chart.mean.x, y: chart.mean.y, line: { color: css("--soft"), width: 1.5 }, marker: { color: css("--soft"), symbol: "line-ew-open", size: 18 }, hoverinfo: "skip" },
        { type: "scatter", mode: "markers", x, y, text: name, marker: { color: chart.points.colour.map(colour), size: 8 }, hovertemplate: "%{text}: %{y}<extra></extra>" },
      ];
      return [traces, layout({
        xaxis: { title: { text: chart.x, standoff: 6 }, type: chart.log ? "log" : chart.numeric ? "linear" : "category", tickvals: chart.numeric && chart.mean.x.length <= 8 ? chart.mean.x : undefined, ticktext: chart.numeric && chart.mean.x.length <= 8 ? chart.mean.x.map(String) : undefined },
        yaxis: { tickformat: chart.format || "", range: chart.zero ? [0, 1.05] : undefined }, hovermode: "closest",
      })];
    },
    steps(chart) {
      const traces = chart.lines.map((line) => ({
        type: "scatter", mode: "lines", name: line.name, x: line.edges, y: [...line.values, 0], fill: "tozeroy",
        line: { shape: "hv", color: colour(line.colour), width: 1.5 }, fillcolor: colour(line.colour) + "22",
      }));
      const limit = chart.limit ? upright(Math.log10(chart.limit), "max_seq_length") : null;
      if (limit) limit.shape.x0 = limit.shape.x1 = chart.limit;
      return [traces, layout({
        xaxis: { type: "log", title: { text: chart.x, standoff: 6 } }, yaxis: { tickformat: ".0%", rangemode: "tozero" },
        showlegend: chart.lines.length > 1, hovermode: "x",
        shapes: limit ? [limit.shape] : [], annotations: limit ? [{ ...limit.note, xanchor: "right" }] : [],
      })];
    },
    stack(chart) {
      const traces = chart.parts.map((part, index) => ({
        type: "bar", orientation: "h", name: part.name, y: chart.rows, x: part.values, marker: { color: colour(index) },
        hovertemplate: "%{y}, %{fullData.name}: %{x:,.1f} s<extra></extra>",
      }));
      return [traces, layout({
        barmode: "stack", height: 70 + 26 * chart.rows.length, showlegend: chart.parts.length > 1,
        margin: { l: 46, r: 12, t: chart.parts.length > 1 ? 34 : 8, b: 34 },
        xaxis: { title: { text: "seconds", standoff: 6 } }, yaxis: { autorange: "reversed", type: "category" },
      })];
    },
  };

  function draw(element) {
    const chart = charts[element.dataset.chart];
    const [traces, drawn] = kinds[chart.kind](chart);
    if (!drawn.height) drawn.height = element.classList.contains("tall") ? 380 : 210;
    const picture = { format: "svg", filename: element.dataset.chart.replace(/[^\w.-]+/g, "-") };
    Plotly.react(element.lastElementChild, traces, drawn, { displaylogo: false, responsive: true, modeBarButtons: [["toImage"]], toImageButtonOptions: picture });
  }

  // One after the other, so that the page can be read and scrolled from the first moment on.
  function drawAll(which) {
    const elements = [...document.querySelectorAll("[data-chart]")].filter((element) => which(charts[element.dataset.chart]));
    document.documentElement.dataset.drawn = "no";
    const next = () => {
      const element = elements.shift();
      if (!element) { document.documentElement.dataset.drawn = "yes"; return; }
      draw(element);
      setTimeout(next, 0);
    };
    next();
  }

  document.querySelectorAll("input[name=axis]").forEach((input) => input.addEventListener("change", () => {
    axis = input.value;
    drawAll((chart) => chart.kind === "lines");
  }));
  document.getElementById("log").addEventListener("change", (event) => {
    log = event.target.checked;
    drawAll((chart) => chart.kind === "lines");
  });
  document.getElementById("smoothing").addEventListener("change", (event) => {
    smoothing = Number(event.target.value);
    drawAll((chart) => chart.kind === "lines");
  });
  dark.addEventListener("change", () => drawAll(() => true));
  // A phone shows the last model first.
  document.querySelectorAll("table.models").forEach((table) => { table.parentElement.scrollLeft = table.scrollWidth; });
  drawAll(() => true);
})();
