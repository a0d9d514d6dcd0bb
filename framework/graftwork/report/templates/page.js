"use strict";
// The page is whole without this: it adds a readout to each chart, and takes tables that fit from the tab order.

function nearest(line, step) {
  let low = 0, high = line.s.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (line.s[middle] < step) low = middle + 1; else high = middle;
  }
  return low > 0 && step - line.s[low - 1] < line.s[low] - step ? low - 1 : low;
}

function shown(value) {
  return value === null ? "not finite" : String(Number(value.toPrecision(4)));
}

function readout(chart) {
  const data = JSON.parse(chart.querySelector('script[type="application/json"]').textContent);
  const svg = chart.querySelector("svg[role=img]"), slider = chart.querySelector("input[type=range]");
  const values = chart.querySelectorAll(".legend .value"), labels = chart.querySelectorAll(".legend .label");
  const output = chart.querySelector("output");
  const [left, right, top, bottom] = data.box, [first, last] = data.x;
  const steps = [...new Set(data.lines.flatMap((line) => line.s))].sort((a, b) => a - b);
  const cursor = document.createElementNS(svg.namespaceURI, "line");
  for (const [name, value] of [["y1", top], ["y2", bottom], ["class", "cursor"], ["visibility", "hidden"]]) cursor.setAttribute(name, value);
  svg.append(cursor);
  chart.querySelector(".readout").hidden = false;
  slider.max = Math.max(0, steps.length - 1);
  slider.value = slider.max;

  function say() {
    const step = steps[slider.value];
    slider.setAttribute("aria-valuetext", `step ${step}: ` + [...labels].slice(0, 8).map((label, i) => `${label.textContent} ${values[i].textContent}`).join(", "));
    output.textContent = String(step);
  }
  function show(index) {
    slider.value = index;
    const step = steps[index], x = left + ((step - first) / (last - first)) * (right - left);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    data.lines.forEach((line, i) => {
      const at = nearest(line, step), within = step >= line.s[0] && step <= line.s[line.s.length - 1];
      values[i].textContent = within ? shown(line.v[at]) : "–";
    });
    say();
  }
  slider.addEventListener("input", () => show(Number(slider.value)));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * 360;
    const step = first + ((x - left) / (right - left)) * (last - first);
    show(nearest({ s: steps }, step));
  });
  if (steps.length) say();
}

function spare() {
  for (const box of document.querySelectorAll(".scroll, .frame[role]")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; else box.removeAttribute("tabindex");
  }
}

document.querySelectorAll(".chart").forEach(readout);
spare();
addEventListener("resize", spare);
for (const one of document.querySelectorAll("details")) one.addEventListener("toggle", spare);
for (const one of document.querySelectorAll(".zoom input")) one.addEventListener("change", spare);
