"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const plots = Array.from(document.querySelectorAll(".plot"));
const touch = matchMedia("(pointer: coarse)").matches;

function draw(plot, index) {
  const figure = figures[plot.id][index];
  // A finger that crosses a plot scrolls the page; it must not zoom the plot.
  const layout = touch ? {...figure.layout, dragmode: false} : figure.layout;
  plot.setAttribute("aria-label", figure.alt);
  return Plotly.react(plot, figure.data, layout, {responsive: true, displayModeBar: false});
}

for (const plot of plots) draw(plot, 0);
for (const select of document.querySelectorAll("select[data-plots]")) {
  select.addEventListener("change", () => {
    for (const id of select.dataset.plots.split(" ")) {
      draw(document.getElementById(id), select.selectedIndex);
    }
  });
}

// A map's point shows its image beside the pointer; a click does it for fingers.
const map = document.getElementById("feature-map");
if (map) {
  const peek = document.body.appendChild(document.createElement("div"));
  peek.id = "peek";
  peek.hidden = true;
  const image = peek.appendChild(document.createElement("img"));
  const words = peek.appendChild(document.createElement("span"));
  const show = ({points: [point], event}) => {
    const [shown, path] = point.customdata;
    image.src = shown;
    image.alt = "";
    words.textContent = path;
    peek.hidden = false;
    const left = Math.min(event.clientX + 16, innerWidth - peek.offsetWidth - 8);
    const top = Math.min(event.clientY + 16, innerHeight - peek.offsetHeight - 8);
    peek.style.left = `${left}px`;
    peek.style.top = `${top}px`;
  };
  map.on("plotly_hover", show);
  map.on("plotly_click", show);
  map.on("plotly_unhover", () => { peek.hidden = true; });
}

// Paper is narrower than most screens, and nothing on it can be unfolded.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = Array.from(document.querySelectorAll("details:not([open])"));
  for (const details of unfolded) details.open = true;
  for (const plot of plots) Plotly.relayout(plot, {width: Math.min(plot.clientWidth, 640)});
});
addEventListener("afterprint", () => {
  for (const details of unfolded) details.open = false;
  for (const plot of plots) Plotly.relayout(plot, {width: null, autosize: true});
});
