// Draws every figure that `inferlab.show` put on the page, in the colours of the reader's theme,
// and the controls of a sweep, whose points are stored as differences from the first figure.

const NARROW_PX = 520;
const NARROW_HEIGHT_PX = 320;
const NARROW_FONT_PX = 11;
const NARROW_LETTER_PX = 6; // about the mean of that font
const NARROW_MARGINS_PX = 52;
const FRAME_MS = 500;

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
    size: narrow ? NARROW_FONT_PX : 13,
    family: getComputedStyle(document.body).fontFamily,
  });
  for (const name of ["xaxis", "yaxis"]) Object.assign(base.layout[name], axis);
  base.layout.hoverlabel = {
    bgcolor: colours.surface,
    bordercolor: colours.muted,
    font: { color: colours.text },
  };
  if (narrow) {
    for (const name of ["xaxis", "yaxis"]) base.layout[name].title.font.size = NARROW_FONT_PX;
    base.layout.margin = { l: 44, r: 8, t: 24, b: 40 };
  }
  // A figure of several rows says its height: squeezed, the titles of its axes would overlap.
  const height = layout.height ?? (narrow ? NARROW_HEIGHT_PX : template.layout.height);
  const drawn = { ...layout, template: base, autosize: true, height };
  if (!narrow) return drawn;
  if (layout.annotations) drawn.annotations = layout.annotations.map(shrunk);
  for (const [name, axis] of Object.entries(layout)) {
    if (!name.startsWith("xaxis") || !axis.title?.text) continue;
    const [from, to] = axis.domain ?? [0, 1];
    const letters = ((to - from) * (width - NARROW_MARGINS_PX)) / NARROW_LETTER_PX;
    drawn[name] = { ...axis, title: { ...axis.title, text: wrapped(axis.title.text, letters) } };
  }
  return drawn;
}

// Beside one another, the titles of narrow axes would run into each other.
function wrapped(text, letters) {
  const lines = [];
  for (const word of text.split(" ")) {
    const longer = lines.length ? `${lines.at(-1)} ${word}` : word;
    if (lines.length && longer.length <= letters) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines.join("<br>");
}

// The titles of subplots have a size of their own, for which a phone has no room.
function shrunk(annotation) {
  const size = Math.min(annotation.font?.size ?? NARROW_FONT_PX, NARROW_FONT_PX);
  return { ...annotation, font: { ...annotation.font, size } };
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

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function inputOf(control) {
  if (!control.menu) {
    return element("input", { type: "range", min: 0, max: control.values.length - 1, value: 0 });
  }
  return element("select", {}, ...control.values.map((choice, i) => new Option(choice, i)));
}

// A button that runs through the values of a slider, once, from where it stands.
function playerOf(input, said) {
  let timer = null;
  const button = element("button", { type: "button", textContent: "Play" });
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
    said.setAttribute("aria-live", "polite");
  };
  const isAtEnd = () => Number(input.value) === Number(input.max);
  const moveTo = (position) => {
    input.value = position;
    input.dispatchEvent(new CustomEvent("input", { detail: "played" }));
  };
  const advance = () => {
    moveTo(Number(input.value) + 1);
    if (isAtEnd()) stop();
  };
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (isAtEnd()) moveTo(0);
    button.textContent = "Pause";
    // Otherwise a screen reader would read out every frame.
    said.setAttribute("aria-live", "off");
    timer = setInterval(advance, FRAME_MS);
  });
  // Who moves the slider wants to look at that frame.
  input.addEventListener("input", (event) => event.detail === "played" || stop());
  return { button, stop };
}

function addControls(figure) {
  const { controls, scenarios, words } = figure.payload;
  const inputs = controls.map(inputOf);
  const shown = controls.map(() => element("output", {}));
  const said = element("p", { className: "lab-words" });
  said.setAttribute("role", "status");

  const update = () => {
    // The points lie in the order of itertools.product: the last control varies fastest.
    figure.index = controls.reduce(
      (index, each, i) => index * each.values.length + Number(inputs[i].value),
      0,
    );
    controls.forEach((control, i) => {
      if (control.menu) return;
      shown[i].textContent = control.values[Number(inputs[i].value)].toLocaleString("en-GB");
      inputs[i].setAttribute("aria-valuetext", shown[i].textContent);
    });
    said.textContent = words[figure.index];
    draw(figure);
  };
  const players = controls.map((control, i) =>
    control.plays ? playerOf(inputs[i], said) : null,
  );
  const choose = (positions) => {
    players.forEach((player) => player?.stop());
    inputs.forEach((input, i) => (input.value = positions[i]));
    update();
  };
  const button = ({ name, positions }) => {
    const made = element("button", { type: "button", textContent: name });
    made.addEventListener("click", () => choose(positions));
    return made;
  };

  const labels = controls.map((control, i) => {
    inputs[i].addEventListener("input", update);
    const name = element("span", { textContent: control.label });
    return element("label", {}, name, inputs[i], ...(control.menu ? [] : [shown[i]]));
  });
  // Beside the label and not in it: a label's click goes to its slider.
  const groups = labels.map((label, i) =>
    players[i] ? element("div", { className: "lab-player" }, players[i].button, label) : label,
  );
  const reset = { name: "Reset", positions: controls.map(() => 0) };
  const buttons = [...scenarios, reset].map(button);
  figure.plot.before(
    element("div", { className: "lab-controls" }, ...groups),
    element("div", { className: "lab-scenarios" }, ...buttons),
  );
  figure.plot.after(said);
  update();
}

function start() {
  const figures = [...document.querySelectorAll(".lab-figure")].map((found) => ({
    payload: JSON.parse(found.querySelector("script").textContent),
    plot: found.querySelector(".lab-plot"),
    index: 0,
  }));
  for (const figure of figures) {
    if (figure.payload.controls) addControls(figure);
    else draw(figure);
  }
  const redraw = () => figures.forEach(draw);
  new MutationObserver(redraw).observe(document.documentElement, {
    attributeFilter: ["data-theme"],
  });
}

document.addEventListener("DOMContentLoaded", start);
