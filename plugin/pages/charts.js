// Draws figures with Chart.js: their data are in data-chart, and their colours are the page's, light or dark.
"use strict";
(() => {
  const drawn = new Map();
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const compact = new Intl.NumberFormat("en", {maximumSignificantDigits: 3});
  const said = (value, unit) => compact.format(value) + (unit ? " " + unit : "");

  const options = (measure, stacked) => {
    const soft = colour("--soft"), line = colour("--line");
    const font = {family: getComputedStyle(document.body).fontFamily, size: 11};
    return {
      animation: false, responsive: true, maintainAspectRatio: false,
      interaction: {mode: "index", intersect: false},
      scales: {
        x: {stacked, grid: {display: false}, border: {color: line},
          ticks: {color: soft, font, maxRotation: 0, autoSkipPadding: 18}},
        y: {stacked, beginAtZero: true, grid: {color: line}, border: {display: false},
          ticks: {color: soft, font, maxTicksLimit: 5, callback: value => said(value, measure.unit)}},
      },
      plugins: {
        legend: {position: "bottom", align: "start",
          labels: {color: soft, font: {...font, size: 12}, boxWidth: 10, boxHeight: 10, padding: 14}},
        tooltip: {callbacks: {label: item => ` ${item.dataset.label}: ${said(item.parsed.y, measure.unit)}`}},
      },
    };
  };

  const draw = figure => {
    const data = JSON.parse(figure.dataset.chart);
    const chosen = figure.querySelector("input:checked");
    const measure = data.measures[chosen ? Number(chosen.value) : 0];
    const datasets = measure.series.map((series, place) => ({
      label: series.name, data: series.values, backgroundColor: colour(`--series-${place % 6}`),
      borderColor: colour(`--series-${place % 6}`), borderRadius: 2, maxBarThickness: 26,
      categoryPercentage: .86, barPercentage: .94, skipNull: true,
    }));
    const canvas = figure.querySelector("canvas");
    canvas.setAttribute("aria-label", `${measure.name} every ${data.step}, by deployment; the table has the sums`);
    drawn.get(canvas)?.destroy();
    drawn.set(canvas, new Chart(canvas, {
      type: "bar", data: {labels: data.labels, datasets}, options: options(measure, measure.sum),
    }));
  };

  const drawAll = () => {
    for (const [canvas, chart] of drawn) if (!canvas.isConnected) { chart.destroy(); drawn.delete(canvas); }
    document.querySelectorAll("figure[data-chart]").forEach(draw);
  };

  document.addEventListener("change", event => {
    const figure = event.target.closest?.("figure[data-chart]");
    if (figure) draw(figure);
  });
  document.addEventListener("flywheel:renewed", drawAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  document.addEventListener("DOMContentLoaded", drawAll);
})();
