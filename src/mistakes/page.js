// Draws the page from the data that src/mistakes/report.py collected. Names are set as text only, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const STEP = 24; // tiles that a gallery shows at once
const MOST_COLUMNS = 30; // classes up to which the matrix is a table
const classes = data.classes.map(([name, images, unusable, predicted, precision, recall, f1, low, high], label) =>
  ({ label, name, images, unusable, predicted, precision, recall, f1, low, high }));
const state = {
  language: /^zh/i.test(navigator.language) ? "zh" : "en",
  maps: "predicted", sort: "label", down: false, filter: "", confusionFilter: "", shown: null,
  zoom: { scale: 1, x: 0, y: 0 },
};

const t = (key, ...values) => TEXTS[state.language][key].replace(/\{(\d)\}/g, (_, i) => values[i]);
const count = (number) => number.toLocaleString(state.language);
const percent = (share) => (share === null ? "–" : (100 * share).toFixed(2) + "%");
const number = (value, digits = 4) => (value === null ? "–" : value.toFixed(digits));
const probability = (values, i) => (values[i] / 100).toFixed(1) + "%";

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

// A name that came from outside: in isolation, so that its writing direction ends with it.
const bdi = (text) => make("bdi", { textContent: text, title: text });

// A text with elements in the places of {0}, {1}...
function phrase(key, ...elements) {
  const parts = TEXTS[state.language][key].split(/\{(\d)\}/);
  return parts.map((part, i) => (i % 2 ? elements[part] : part));
}

const section = (id, key, ...children) => make("section", { id }, make("h2", { textContent: t(key) }), ...children);
const note = (text) => make("p", { className: "soft", textContent: text });

// Pictures

function heatMap(image, which) {
  const [height, width, ...maps] = data.maps[image];
  const levels = atob(maps[which === "label" ? 1 : 0]);
  const canvas = make("canvas", { width, height, className: "heat" });
  const pixels = new ImageData(width, height);
  for (let i = 0; i < levels.length; i++) {
    const level = levels.charCodeAt(i) / 255;
    // Violet, red, yellow, and less and less transparent.
    pixels.data.set([Math.min(255, 90 + 400 * level), 255 * Math.max(0, 2 * level - 0.9), 120 * (1 - level), 165 * level], 4 * i);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function picture(image, which, onclick) {
  const jpeg = data.thumbnails[image];
  const shown = jpeg ? make("img", { src: "data:image/jpeg;base64," + jpeg, alt: "" }) : make("span", { textContent: t("noPicture") });
  const box = make("button", { className: "picture", type: "button", onclick }, shown);
  if (jpeg && which !== "off" && data.maps[image]) box.append(heatMap(image, which));
  return box;
}

function caption(image) {
  const name = (label) => bdi(classes[label].name);
  const prediction = data.predictions[image], label = data.labels[image];
  const lines = [make("div", {}, ...phrase("says", name(prediction), probability(data.confidence, image)))];
  if (prediction !== label) lines.push(make("div", {}, ...phrase("isLabel", name(label), probability(data.own, image))));
  return make("figcaption", {}, ...lines, make("div", {}, make("small", {}, bdi(data.paths[image]))));
}

function tile(image, which = "off") {
  const wrong = data.predictions[image] !== data.labels[image];
  const figure = make("figure", { className: wrong ? "tile wrong" : "tile" }, picture(image, which, () => enlarge(image)), caption(image));
  figure.dataset.image = image;
  return figure;
}

// Elements in a box, so many at once; a button shows the next.
function paged(className, items, step, draw) {
  const box = make("div", { className }), more = make("button", { type: "button", className: "more" });
  let shown = 0;
  more.onclick = () => {
    box.append(...items.slice(shown, shown + step).map(draw));
    shown = Math.min(items.length, shown + step);
    more.textContent = t("more", Math.min(step, items.length - shown));
    more.hidden = shown === items.length;
  };
  more.onclick();
  return make("div", {}, box, items.length ? more : note(t("none")));
}

const gallery = (images, which = "off") => paged("gallery", images, STEP, (image) => tile(image, which));

function enlarge(image) {
  const dialog = document.getElementById("zoom");
  const views = data.maps[image] ? ["off", "predicted", "label"] : ["off"];
  const titles = { off: "", predicted: t("mapsPredicted"), label: t("mapsLabel") };
  const close = make("button", { type: "button", textContent: t("close"), onclick: () => dialog.close() });
  dialog.replaceChildren(
    make("div", { className: "columns" }, ...views.map((view) => make("figure", { className: "tile" }, picture(image, view, () => dialog.close()), note(titles[view])))),
    caption(image), close);
  dialog.showModal();
}

// Sections

function scores() {
  const tiles = ["top1", "top5", "balanced", "loss"].filter((key) => key !== "top5" || classes.length > 5).map((key) => {
    const show = key === "loss" ? number : percent;
    const [value, low, high] = data.scores[key].map((part) => show(part));
    return [key, value, t("interval", low, high)];
  });
  const { error, temperature } = data.calibration;
  tiles.push(["error", number(error), ""], ["temperature", number(temperature, 3), ""]);
  return tiles.map(([key, value, below]) => make("div", { className: "score", id: "score-" + key }, t(key), make("b", { textContent: value }), make("small", { className: "soft", textContent: below })));
}

function head() {
  const language = make("button", { id: "language", type: "button", lang: state.language === "zh" ? "en" : "zh", textContent: t("other") });
  language.onclick = () => { state.language = state.language === "zh" ? "en" : "zh"; render(); };
  const names = data.paths.length, pictures = Object.keys(data.thumbnails).length;
  return [
    make("header", {}, make("div", {}, make("h1", {}, ...phrase("title", bdi(data.model))),
      make("p", { className: "soft" }, ...phrase("subtitle", count(data.images), count(classes.length), bdi(data.folder))),
      make("p", { className: "soft" }, bdi(data.description))), language),
    make("div", { className: "scores" }, ...scores()),
    note(t("intervals") + (data.smoothing ? " " + t("smoothing", data.smoothing) : "")),
    note(t("seen", count(names), count(data.images), count(pictures))),
  ];
}

function show(pair, scroll = true) {
  state.shown = pair;
  const viewer = document.getElementById("cell");
  viewer.replaceChildren();
  if (!pair) return;
  const [label, prediction] = pair;
  const fits = prediction === null ? (i) => data.predictions[i] !== label : (i) => data.predictions[i] === prediction;
  const images = data.labels.map((_, i) => i).filter((i) => data.labels[i] === label && fits(i)).sort((a, b) => data.confidence[b] - data.confidence[a]);
  const total = data.cells.filter(([l, p]) => l === label && (prediction === null ? p !== label : p === prediction)).reduce((sum, cell) => sum + cell[2], 0);
  const title = prediction === null ? phrase("ofClass", bdi(classes[label].name)) : [bdi(classes[label].name), " → ", bdi(classes[prediction].name)];
  viewer.append(make("h3", {}, ...title, ": " + t("cell", count(total)) + (images.length < total ? ", " + t("listed", count(images.length)) : "")), gallery(images));
  if (scroll) viewer.scrollIntoView({ block: "nearest" });
}

function matrixTable() {
  const counts = new Map(data.cells.map(([label, prediction, images]) => [label + " " + prediction, images]));
  const row = (own) => make("tr", {}, make("th", { scope: "row" }, bdi(own.name)), ...classes.map((other) => {
    const images = counts.get(own.label + " " + other.label) || 0;
    const cell = make("td", { className: own === other ? "diagonal" : "" });
    if (images) {
      const button = make("button", { type: "button", textContent: images, onclick: () => show([own.label, other.label]) });
      button.style.background = `rgba(var(--cell), ${0.12 + (0.6 * images) / Math.max(1, own.images)})`;
      button.title = `${own.name} → ${other.name}`;
      cell.append(button);
    }
    return cell;
  }));
  return make("div", {}, make("table", { className: "matrix" },
    make("thead", {}, make("tr", {}, make("td", {}), ...classes.map((other) => make("th", { scope: "col" }, bdi(other.name))))),
    make("tbody", {}, ...classes.map(row))));
}

function matrixMap() {
  const size = 720, { zoom } = state;
  const canvas = make("canvas", { className: "map", width: size, height: size, tabIndex: 0 });
  const told = note(t("zoomHelp"));
  const unit = () => (size / classes.length) * zoom.scale;
  const style = getComputedStyle(document.documentElement);
  const draw = () => {
    const context = canvas.getContext("2d"), side = unit();
    context.clearRect(0, 0, size, size);
    // The smallest first, so that larger ones cover them.
    for (const [label, prediction, images] of [...data.cells].reverse()) {
      const share = images / Math.max(1, classes[label].images);
      context.fillStyle = label === prediction ? style.getPropertyValue("--right") : style.getPropertyValue("--wrong");
      context.globalAlpha = Math.min(1, 0.25 + 2 * share) * (label === prediction ? 0.5 : 1);
      context.fillRect(prediction * side - zoom.x, label * side - zoom.y, Math.max(side, 2), Math.max(side, 2));
    }
  };
  const change = (factor) => {
    const scale = Math.min(Math.max(1, classes.length / 8), Math.max(1, zoom.scale * factor)), ratio = scale / zoom.scale;
    move((zoom.x + size / 2) * ratio - size / 2, (zoom.y + size / 2) * ratio - size / 2, scale);
  };
  const move = (x, y, scale = zoom.scale) => {
    const limit = size * (scale - 1);
    Object.assign(zoom, { scale, x: Math.min(limit, Math.max(0, x)), y: Math.min(limit, Math.max(0, y)) });
    draw();
  };
  const position = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * size) / box.width, ((event.clientY - box.top) * size) / box.height];
  };
  // The mistakes near the pointer come before the hits; cells are sorted by their images.
  const find = (event) => {
    const [x, y] = position(event), side = unit(), reach = Math.max(0, 4 - side / 2);
    const near = data.cells.filter(([label, prediction]) => {
      const left = prediction * side - zoom.x, top = label * side - zoom.y;
      return x >= left - reach && x <= left + side + reach && y >= top - reach && y <= top + side + reach;
    });
    return near.find(([label, prediction]) => label !== prediction) || near[0];
  };
  let from = null, moved = false;
  canvas.onpointerdown = (event) => { from = [...position(event), zoom.x, zoom.y]; moved = false; canvas.setPointerCapture(event.pointerId); };
  canvas.onpointerup = (event) => { from = null; const cell = moved ? null : find(event); if (cell) show([cell[0], cell[1]]); };
  canvas.onpointermove = (event) => {
    if (from) {
      const [x, y] = position(event);
      moved = moved || Math.hypot(x - from[0], y - from[1]) > 3;
      if (moved) move(from[2] + from[0] - x, from[3] + from[1] - y);
      return;
    }
    const cell = find(event);
    told.replaceChildren(...(cell ? [bdi(classes[cell[0]].name), " → ", bdi(classes[cell[1]].name), ": " + t("cell", count(cell[2]))] : [t("zoomHelp")]));
  };
  const button = (text, factor) => make("button", { type: "button", textContent: text, onclick: () => change(factor) });
  draw();
  return make("div", {}, make("div", { className: "tools" }, button("+", 2), button("−", 0.5), button(t("all"), 0)), canvas, told);
}

function confusions() {
  const body = make("tbody"), filter = filterField("confusionFilter", () => fill());
  const link = (label, prediction, name) => make("button", { type: "button", onclick: () => show([label, prediction]) }, bdi(name));
  const fill = () => {
    const wanted = state.confusionFilter.toLowerCase();
    const fits = ([label, prediction]) => label !== prediction && (classes[label].name + " " + classes[prediction].name).toLowerCase().includes(wanted);
    body.replaceChildren(...data.cells.filter(fits).slice(0, 200).map(([label, prediction, images]) => make("tr", {},
      make("td", {}, link(label, prediction, classes[label].name)), make("td", { className: "left" }, link(label, prediction, classes[prediction].name)), make("td", { textContent: count(images) }))));
  };
  fill();
  const heading = (key, className = "") => make("th", { textContent: t(key), className });
  return make("div", {}, make("div", { className: "tools" }, make("strong", { textContent: t("largest") }), filter),
    make("div", { className: "scroll" }, make("table", { className: "list", id: "confusions" },
      make("thead", {}, make("tr", {}, heading("label"), heading("predicted", "left"), heading("images"))), body)));
}

function filterField(key, changed) {
  const field = make("input", { type: "search", placeholder: t("filter"), value: state[key] });
  field.setAttribute("aria-label", t("filter"));
  field.oninput = () => { state[key] = field.value; changed(); };
  return field;
}

function classTable() {
  const body = make("tbody"), told = make("span", { className: "soft" });
  const columns = ["label", "images", "precision", "recall", "f1"];
  if (classes.some((own) => own.unusable)) columns.push("unusable");
  const headings = columns.map((key) => {
    const button = make("button", { type: "button", textContent: key === "f1" ? "F1" : key === "label" ? t("class") : t(key) });
    button.onclick = () => { Object.assign(state, { sort: key, down: state.sort === key && !state.down }); fill(); };
    return make("th", { scope: "col" }, button);
  });
  const fill = () => {
    const wanted = state.filter.toLowerCase(), order = state.down ? -1 : 1, lowest = (value) => (value === null ? -1 : value);
    const rows = classes.filter((own) => own.name.toLowerCase().includes(wanted)).sort((a, b) => order * (lowest(a[state.sort]) - lowest(b[state.sort])) || a.label - b.label);
    headings.forEach((heading, i) => heading.setAttribute("aria-sort", columns[i] !== state.sort ? "none" : state.down ? "descending" : "ascending"));
    told.textContent = t("shownClasses", count(rows.length), count(classes.length));
    body.replaceChildren(...rows.map((own) => make("tr", {},
      make("td", {}, make("button", { type: "button", onclick: () => show([own.label, null]) }, bdi(own.name))),
      ...columns.slice(1).map((key) => make("td", {
        textContent: key === "images" || key === "unusable" ? count(own[key]) : percent(own[key]),
        title: key === "recall" ? t("interval", percent(own.low), percent(own.high)) : "",
      })))));
  };
  const field = filterField("filter", fill);
  fill();
  return section("classes", "classes", note(t("classesHelp")), make("div", { className: "tools" }, field, told),
    make("div", { className: "scroll" }, make("table", { className: "list" }, make("thead", {}, make("tr", {}, ...headings)), body)));
}

function mistakes() {
  const wrong = data.labels.map((_, i) => i).filter((i) => data.labels[i] !== data.predictions[i]).sort((a, b) => data.confidence[b] - data.confidence[a]);
  const holder = make("div"), drawn = Object.keys(data.maps).length;
  const fill = () => holder.replaceChildren(gallery(wrong, state.maps));
  fill();
  if (!drawn) return section("mistakes", "mistakes", note(data.noMaps), holder);
  const choice = make("select", { id: "maps" }, ...[["off", "mapsOff"], ["predicted", "mapsPredicted"], ["label", "mapsLabel"]].map(([value, key]) => make("option", { value, textContent: t(key) })));
  choice.value = state.maps;
  choice.onchange = () => { state.maps = choice.value; fill(); };
  return section("mistakes", "mistakes", make("div", { className: "tools" }, make("label", {}, t("maps") + " ", choice)), note(t("mapsHelp", count(drawn))), holder);
}

function hits() {
  const right = data.labels.map((_, i) => i).filter((i) => data.labels[i] === data.predictions[i]).sort((a, b) => data.confidence[a] - data.confidence[b]);
  return section("hits", "hits", gallery(right));
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function chart(bins, key) {
  const side = 300, left = 46, top = 20, wide = side / bins.length;
  const text = (x, y, words, anchor = "middle", more = {}) => svg("text", { x, y, "text-anchor": anchor, ...more }, words);
  const bars = bins.map(([images, confidence, share], i) => images ? svg("rect", { x: left + i * wide + 0.5, y: top + side * (1 - share), width: wide - 1, height: Math.max(1, side * share), fill: "var(--accent)", "fill-opacity": 0.35 + 0.65 * Math.sqrt(images / Math.max(...bins.map((bin) => bin[0]))) },
    svg("title", {}, t("bin", count(images), percent(confidence), percent(share)))) : "");
  const ticks = [0, 0.5, 1].flatMap((share) => [text(left + side * share, top + side + 14, share), text(left - 5, top + side * (1 - share) + 4, share, "end")]);
  const [x, y] = [left + side / 2, top + side / 2];
  return svg("svg", { viewBox: `0 0 ${side + left + 12} ${side + top + 36}`, class: "chart", role: "img" }, ...bars,
    svg("line", { x1: left, y1: top + side, x2: left + side, y2: top, stroke: "var(--soft)", "stroke-dasharray": 4 }),
    svg("rect", { x: left, y: top, width: side, height: side, fill: "none", stroke: "var(--line)" }), ...ticks,
    text(x, 13, t(key)), text(x, top + side + 30, t("confidence")), text(12, y, t("share"), "middle", { transform: `rotate(-90 12 ${y})` }));
}

function calibration() {
  const { error, errorAfter, temperature, bins, binsAfter, limit } = data.calibration;
  return section("calibration", "calibration", note(t("calibrationHelp", number(error), number(temperature, 3), number(errorAfter)) + (limit ? " " + t("limit") : "")),
    make("div", { className: "columns" }, chart(bins, "before"), chart(binsAfter, "after")));
}

function twice() {
  const draw = ([same, images]) => {
    const differ = new Set(images.map((image) => data.labels[image])).size > 1;
    return make("div", { className: "group" }, note(t(same ? "sameBytes" : "nearly") + (differ ? ", " + t("differently") : "")), gallery(images));
  };
  return section("twice", "twice", note(t("twiceHelp")), paged("groups", data.groups, 12, draw));
}

function unusable() {
  if (!data.unusable.length) return "";
  return section("unusable", "unusableImages", make("ul", {}, ...data.unusable.map(([path, label, sentence]) => make("li", {}, bdi(path), " (", bdi(classes[label].name), "): ", bdi(sentence)))));
}

function render() {
  document.documentElement.lang = state.language === "zh" ? "zh-CN" : "en";
  document.getElementById("page").replaceChildren(...head(),
    section("confusion", "confusion", note(t("confusionHelp")), make("div", { className: "columns" }, classes.length <= MOST_COLUMNS ? matrixTable() : matrixMap(), confusions()), make("div", { id: "cell" })),
    classTable(), mistakes(), hits(), calibration(),
    section("mislabelled", "mislabelled", note(t("mislabelledHelp")), gallery(data.mislabelled)), twice(), unusable());
  show(state.shown, false);
}

render();
