// Draws every figure that `inferlab.show` put on the page, in the colours of the reader's theme,
// and the controls of a sweep, whose points are stored as differences from the first figure.

const NARROW_PX = 520;
const NARROW_HEIGHT_PX = 320;

function themeColours() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  return {
    text: colour("--pst-color-text-base"),
    muted: colour("--pst-color-text-muted"),
    surface: colour("--pst-color-surface"),
    grid: colour("--lab-grid"),
  };
}

function themed(layout, template, width) {
  const colours = themeColours();
  const axis = {
    gridcolor: colours.grid,
    linecolor: colours.muted,
    tickcolor: colours.muted,
    zerolinecolor: colours.grid,
    tickfont: { color: colours.muted },
  };
  const base = structuredClone(template);
  const narrow = width < NARROW_PX;
  Object.assign(base.layout.font, {
    color: colours.text,
    size: narrow ? 11 : 13,
    family: getComputedStyle(document.body).fontFamily,
  });
  for (const name of ["xaxis", "yaxis"]) Object.assign(base.layout[name], axis);
  base.layout.hoverlabel = {
    bgcolor: colours.surface,
    bordercolor: colours.muted,
    font: { color: colours.text },
  };
  if (narrow) {
    for (const name of ["xaxis", "yaxis"]) base.layout[name].title.font.size = 11;
    base.layout.margin = { l: 44, r: 8, t: 24, b: 40 };
  }
  const height = narrow ? NARROW_HEIGHT_PX : (layout.height ?? template.layout.height);
  return { ...layout, template: base, autosize: true, height };
}

function patched(target, difference) {
  return Object.fromEntries(
    Object.entries({ ...target, ...difference }).filter(([, value]) => value !== null),
  );
}

function figureAt(payload, index) {
  const { data, layout } = payload.figure;
  if (!payload.points) return { data, layout };
  const point = payload.points[index];
  return {
    data: data.map((trace, i) => patched(trace, point.data[i])),
    layout: patched(layout, point.layout),
  };
}

function draw(figure) {
  const { data, layout } = figureAt(figure.payload, figure.index);
  const options = { displayModeBar: false, responsive: true };
  const { payload, plot } = figure;
  Plotly.react(plot, data, themed(layout, payload.template, plot.clientWidth), options);
}

function addControls(figure) {
  const positions = figure.payload.controls.map(() => 0);
  const panel = document.createElement("div");
  panel.className = "lab-controls";
  figure.payload.controls.forEach((control, position) => {
    const label = document.createElement("label");
    const name = document.createElement("span");
    const input = document.createElement(control.menu ? "select" : "input");
    const value = document.createElement("output");
    name.textContent = control.label;
    if (control.menu) {
      control.values.forEach((choice, i) => input.add(new Option(choice, i)));
      label.append(name, input);
    } else {
      Object.assign(input, { type: "range", min: 0, max: control.values.length - 1, value: 0 });
      value.textContent = control.values[0].toLocaleString("en-GB");
      label.append(name, input, value);
    }
    input.addEventListener("input", () => {
      positions[position] = Number(input.value);
      const chosen = control.values[positions[position]];
      if (!control.menu) value.textContent = chosen.toLocaleString("en-GB");
      if (!control.menu) input.setAttribute("aria-valuetext", value.textContent);
      // The points lie in the order of itertools.product: the last control varies fastest.
      figure.index = figure.payload.controls.reduce(
        (index, each, i) => index * each.values.length + positions[i],
        0,
      );
      draw(figure);
    });
    panel.append(label);
  });
  figure.plot.before(panel);
}

function start() {
  const figures = [...document.querySelectorAll(".lab-figure")].map((element) => ({
    payload: JSON.parse(element.querySelector("script").textContent),
    plot: element.querySelector(".lab-plot"),
    index: 0,
  }));
  for (const figure of figures) {
    if (figure.payload.controls) addControls(figure);
    draw(figure);
  }
  const redraw = () => figures.forEach(draw);
  new MutationObserver(redraw).observe(document.documentElement, {
    attributeFilter: ["data-theme"],
  });
}

document.addEventListener("DOMContentLoaded", start);
