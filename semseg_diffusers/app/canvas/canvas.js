// The painter's canvas. It owns the mask, its history and the tools; `props.value` is what the server sees of it:
// {height, width, runs}. With "Draw while I paint", each change asks for a photo of the mask, which comes back as
// `props.live`. `element`, `props`, `trigger` and `watch` are gradio's.

const { height, width, unknown, colors, names, shapes, examples, model, upscaler } = props;
const find = (selector) => element.querySelector(selector);
const root = find(".painter"), stage = find(".stage"), maskCanvas = find(".mask"), ghostCanvas = find(".ghost");
const status = find(".status"), brushSize = find(".brush-size"), shapeSize = find(".shape-size");
const promptField = find(".prompt"), negativeField = find(".negative-prompt"), regionField = find(".region-text");
const liveBox = find(".live-box"), livePanel = find(".live"), livePhoto = find(".live-photo"), liveStatus = find(".live-status");
const MAX_UNDO = 100;
const LIVE_INTERVAL = 500;  // milliseconds between two photos during a stroke
const KEY_INTERVAL = 800;  // milliseconds between the digits of a class
const MAX_ZOOM = 16;
const HOLE = -1;  // where an object, or the preview of a click, has no pixel
const ids = new Uint8Array(height * width);
const state = { tool: "brush", id: 0, shape: null, corners: [], dragFrom: null, last: null, pointer: null, photo: null, stroke: 0, asked: 0, isPreview: false };
// What is said in words: about the street, what it is not, by class id, and about things, each by a pixel of it.
let texts = { prompt: "", negative: "", classes: {}, things: [] };
let described = null;  // the thing that the last line is about; null: the class that is chosen
let undoStack = [], redoStack = [], hasPhoto = false, asking, zoom = 1, typed = { digits: "", at: 0 };
// What a reload or Back restores, kept by the browser for this tab; what the server keeps has the name `visitor`.
const memory = `painter ${props.memory}`;
let remembered = {};
try {
  remembered = JSON.parse(sessionStorage.getItem(memory) ?? "{}");
} catch {}  // forbidden by the browser
const initial = JSON.stringify(props.value);
let isSettled = false;
const visitor = remembered.visitor ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
const objects = shapes.map((shape) => ({ ...shape, ids: unpackRuns(shape.runs, shape.height * shape.width) }));

// Display ----------------------------------------------------------------------------------------------------------

const packed = new Uint32Array(256);  // red, green, blue as an ImageData holds them, without alpha
for (const [id, [red, green, blue]] of Object.entries(colors)) packed[id] = (blue << 16) | (green << 8) | red;

// Return class ids as pixels; those equal to `clear` are transparent.
function toPixels(source, rows, columns, clear, alpha) {
  const image = new ImageData(columns, rows), pixels = new Uint32Array(image.data.buffer), opaque = alpha << 24;
  for (let i = 0; i < source.length; i++) pixels[i] = source[i] === clear ? 0 : packed[source[i]] | opaque;
  return image;
}

function thumbnail(source, rows, columns, clear) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  canvas.getContext("2d").putImageData(toPixels(source, rows, columns, clear, 255), 0, 0);
  return canvas;
}

function show() {
  const alpha = hasPhoto ? Math.round(255 * find(".cover").value / 100) : 255;
  maskCanvas.getContext("2d").putImageData(toPixels(ids, height, width, hasPhoto ? unknown : HOLE, alpha), 0, 0);
  find("[data-do=undo]").disabled = !undoStack.length;
  find("[data-do=redo]").disabled = !redoStack.length;
}

// Preview a click: the object under the pointer, the corners of a polygon so far, the brush.
function showGhost() {
  const context = ghostCanvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  const at = state.pointer;
  if (state.tool === "describe") return context.putImageData(outlines(), 0, 0);
  if (!at) return;
  const ghost = new Int16Array(height * width).fill(HOLE);
  const { tool } = state;
  if (tool === "shape") placeShape(ghost, width, height, state.shape, at, +shapeSize.value, find(".mirrored").checked, HOLE);
  else if (tool === "polygon") [...state.corners, at].reduce((from, to) => (drawStroke(ghost, width, height, from, to, 0.5, state.id), to));
  else if (state.dragFrom) drawDragged(ghost, at);
  else if (tool === "brush" || tool === "eraser") drawStroke(ghost, width, height, at, at, brushSize.value / 2, paintId());
  context.putImageData(toPixels(ghost, height, width, HOLE, tool === "shape" ? 190 : 150), 0, 0);
}

function showPosition(at) {
  const empty = ids.every((id) => id === unknown) ? " · nothing is painted yet: choose a class, and paint or fill" : "";
  const words = at && wordsAt(...at);
  const said = words ? ` · “${words}”` : "";
  status.textContent = at ? `${names[ids[at[1] * width + at[0]]]} · x ${at[0]}, y ${at[1]}${said}` : `${height} × ${width} pixels (height × width)${empty}`;
}

// Texts ------------------------------------------------------------------------------------------------------------

const isThere = ({ x, y, id }) => ids[y * width + x] === id;  // not painted over

// Return what is said of the thing at a pixel, or what can be.
function thingAt(x, y) {
  const part = connectedPart(ids, width, height, x, y);
  return texts.things.findLast((thing) => isThere(thing) && part[thing.y * width + thing.x]) ?? { x, y, id: ids[y * width + x], text: "" };
}

function wordsAt(x, y) {
  const id = ids[y * width + x];
  if (id === unknown) return "";
  return (texts.things.length && thingAt(x, y).text) || texts.classes[id];
}

// Return the outlines of the things that texts are about, that of the chosen one in two colours.
function outlines() {
  const image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  for (const thing of [...texts.things.filter((each) => each.text && isThere(each)), ...(described ? [described] : [])]) {
    const part = connectedPart(ids, width, height, thing.x, thing.y);
    for (let i = 0; i < part.length; i++) {
      const x = i % width;
      const isInner = x > 0 && x < width - 1 && part[i - 1] && part[i + 1] && part[i - width] && part[i + width];
      if (part[i] && !isInner) pixels[i] = thing === described && (x + Math.floor(i / width)) % 2 ? 0xff000000 : 0xffffffff;
    }
  }
  return image;
}

function describe([x, y]) {
  described = ids[y * width + x] === unknown ? null : thingAt(x, y);
  showTexts();
  showGhost();
  if (described) regionField.focus();
}

function showTexts() {
  const id = described ? described.id : state.id;
  find(".about").textContent = `${described ? "This" : "Class"} ${names[id]}`;
  promptField.value = texts.prompt;
  negativeField.value = texts.negative ?? "";
  regionField.value = described ? described.text : texts.classes[id] ?? "";
  regionField.disabled = id === unknown;
}

function writeText() {
  texts.prompt = promptField.value;
  texts.negative = negativeField.value;
  if (!described) texts.classes[state.id] = regionField.value;
  else described.text = regionField.value;
  if (described && !texts.things.includes(described)) texts.things.push(described);
  send();
}

function packTexts() {
  const words = Object.entries(texts.classes).filter(([, text]) => text.trim()).map(([id, text]) => [names[id], text]);
  const things = texts.things.filter((thing) => thing.text.trim() && isThere(thing)).map(({ x, y, text }) => ({ x, y, text }));
  const [prompt, negative_prompt] = [texts.prompt, texts.negative ?? ""].map((text) => text.trim() || null);
  return { prompt, negative_prompt, class_prompts: Object.fromEntries(words), thing_prompts: things };
}

// Edits ------------------------------------------------------------------------------------------------------------

const paintId = () => (state.tool === "eraser" ? unknown : state.id);

function keepForUndo() {
  undoStack.push(ids.slice());
  if (undoStack.length > MAX_UNDO) undoStack.shift();
  redoStack = [];
}

function publish() {
  if (described && !isThere(described)) described = null;
  show();
  showTexts();
  showGhost();
  showPosition(state.pointer);
  state.stroke++;
  state.isPreview = false;
  send();
  askForPhoto("release", "input");
}

function send() {
  const words = props.texts ? packTexts() : {};
  props.value = { height, width, runs: packRuns(ids), photo: state.photo, stroke: state.stroke, visitor, ...words };
  remember();
}

function remember() {
  const { id, tool, photo } = state;
  const kept = { visitor, runs: packRuns(ids), photo, id, tool: tool === "shape" ? "brush" : tool, brush: brushSize.value, texts };
  try {
    sessionStorage.setItem(memory, JSON.stringify(kept));
  } catch {}  // full, or forbidden by the browser
}

async function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await encodePng(ids, width, height, colors, unknown));
  link.download = "mask.png";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function change(work) {
  keepForUndo();
  work();
  publish();
}

function step(from, to) {
  if (!from.length) return;
  to.push(ids.slice());
  ids.set(from.pop());
  publish();
}

const undo = () => step(undoStack, redoStack);
const redo = () => step(redoStack, undoStack);

function drawDragged(target, to) {
  const [x0, y0] = state.dragFrom, [x1, y1] = to;
  if (state.tool === "line") return drawStroke(target, width, height, state.dragFrom, to, brushSize.value / 2, state.id);
  for (let y = Math.min(y0, y1); y <= Math.max(y0, y1); y++) {
    target.fill(state.id, y * width + Math.min(x0, x1), y * width + Math.max(x0, x1) + 1);
  }
}

function closePolygon() {
  const corners = state.corners;
  state.corners = [];
  if (corners.length > 2) change(() => fillPolygon(ids, width, height, corners, state.id));
  else showGhost();
}

function addCorner(at) {
  const near = (point) => Math.hypot(point[0] - at[0], point[1] - at[1]) <= Math.max(1.5, width / 64);
  const { corners } = state;
  if (corners.length > 2 && near(corners[0])) return closePolygon();
  if (!corners.length || !corners[corners.length - 1].every((part, i) => part === at[i])) corners.push(at);
  showGhost();
}

// The photo of the mask ---------------------------------------------------------------------------------------------

// Of the server's events, "input" generates from the newest mask, once the photo before it has come; "release" ends
// that one between two steps if it is of an earlier stroke.
function askForPhoto(...events) {
  if (!liveBox.checked) return;
  state.asked = performance.now();
  livePanel.setAttribute("aria-busy", "true");
  clearTimeout(asking);
  asking = setTimeout(() => events.forEach((name) => trigger(name)));  // once for all that changes at a time
}

function askDuringStroke() {
  if (!liveBox.checked || performance.now() - state.asked < LIVE_INTERVAL) return;
  if (state.isPreview) return publish();  // what is being enlarged is outdated
  send();
  askForPhoto("input");
}

function switchLive() {
  livePanel.hidden = !liveBox.checked;
  root.classList.toggle("is-live", liveBox.checked);
  if (liveBox.checked) publish();
}

function showLive() {
  const { stroke, image, isPreview, steps, seed, error } = props.live;
  if (!liveBox.checked) return;
  if (stroke === state.stroke) livePanel.setAttribute("aria-busy", Boolean(isPreview));
  state.isPreview = Boolean(isPreview) && stroke === state.stroke;
  livePanel.classList.toggle("outdated", Boolean(error));
  const enlarged = upscaler ? `; ${isPreview ? "being enlarged" : "enlarged"} by ${upscaler}` : "";
  const text = error || `${model}: ${steps} ${steps === 1 ? "step" : "steps"}, seed ${seed}${enlarged}`;
  if (liveStatus.textContent !== text) liveStatus.textContent = text;  // read aloud when it changes
  if (!image) return;
  livePhoto.src = image;
  livePhoto.hidden = false;
}

// After an error that the server did not expect, or does not answer: said once, and not at every stroke.
function stopLive() {
  liveBox.checked = false;
  livePanel.setAttribute("aria-busy", "false");
  livePanel.classList.add("outdated");
  liveStatus.textContent = "Drawing ended by an error of the server. Check “Draw while I paint” to try again.";
}

// Zoom -------------------------------------------------------------------------------------------------------------

// Zoom by a factor; what is seen at a point of the window, or in the middle, stays there.
function zoomBy(factor, x, y) {
  const box = stage.getBoundingClientRect(), before = zoom;
  x = x === undefined ? box.width / 2 : x - box.left;
  y = y === undefined ? box.height / 2 : y - box.top;
  zoom = Math.min(MAX_ZOOM, Math.max(1, zoom * factor));
  const at = [stage.scrollLeft + x, stage.scrollTop + y].map((part) => part * zoom / before);
  find(".sheet").style.width = find(".sheet").style.height = `${100 * zoom}%`;
  stage.scrollTo(at[0] - x, at[1] - y);
  find(".zoom-value").textContent = `${Math.round(100 * zoom)} %`;
  find("[data-do=smaller]").disabled = zoom === 1;
  find("[data-do=larger]").disabled = zoom === MAX_ZOOM;
}

stage.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  zoomBy(2 ** (-event.deltaY / 200), event.clientX, event.clientY);
}, { passive: false });

// Two fingers zoom and move the view; what the first has done is taken back.
const fingers = new Map();
let before = null;  // the first finger
stage.addEventListener("pointerdown", (event) => {
  if (event.pointerType !== "touch") return;
  fingers.set(event.pointerId, [event.clientX, event.clientY]);
  if (fingers.size < 2) {
    before = { mask: ids.slice(), undone: [...undoStack], redone: [...redoStack], corners: [...state.corners], id: state.id, tool: state.tool };
    return;
  }
  state.last = state.dragFrom = state.pointer = null;
  if (before) takeBack(before);
  before = null;
}, true);

function takeBack({ mask, undone, redone, corners, id, tool }) {
  const isPainted = ids.some((painted, i) => painted !== mask[i]);
  ids.set(mask);
  [undoStack, redoStack] = [undone, redone];
  chooseClass(id, tool);
  state.corners = corners;
  if (isPainted) publish();
  else show();
}

stage.addEventListener("pointermove", (event) => {
  if (!fingers.has(event.pointerId)) return;
  const [[x0, y0], [x1, y1]] = [...fingers.values()].concat([[0, 0]]);
  fingers.set(event.pointerId, [event.clientX, event.clientY]);
  if (fingers.size < 2) return;
  event.stopPropagation();
  const [[x2, y2], [x3, y3]] = [...fingers.values()];
  stage.scrollBy((x0 + x1 - x2 - x3) / 2, (y0 + y1 - y2 - y3) / 2);
  zoomBy(Math.hypot(x3 - x2, y3 - y2) / Math.max(1, Math.hypot(x1 - x0, y1 - y0)), (x2 + x3) / 2, (y2 + y3) / 2);
}, true);
for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, (event) => fingers.delete(event.pointerId), true);

// The pointer ------------------------------------------------------------------------------------------------------

function pixelOf(event) {
  const box = maskCanvas.getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left) * width / box.width);
  const y = Math.floor((event.clientY - box.top) * height / box.height);
  return [Math.min(width - 1, Math.max(0, x)), Math.min(height - 1, Math.max(0, y))];
}

maskCanvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.isPrimary) return;
  event.preventDefault();
  root.focus({ preventScroll: true });
  const at = state.pointer = pixelOf(event);
  const { tool } = state;
  if (tool === "polygon") return addCorner(at);
  if (tool === "describe") return describe(at);
  if (tool === "pick") return chooseClass(ids[at[1] * width + at[0]], "brush");
  if (tool === "fill") return change(() => floodFill(ids, width, height, ...at, state.id));
  if (tool === "shape") return change(() => placeShape(ids, width, height, state.shape, at, +shapeSize.value, find(".mirrored").checked, HOLE));
  maskCanvas.setPointerCapture(event.pointerId);
  if (tool === "line" || tool === "rectangle") {
    state.dragFrom = at;
    return showGhost();
  }
  keepForUndo();
  state.last = at;
  drawStroke(ids, width, height, at, at, brushSize.value / 2, paintId());
  show();
});

maskCanvas.addEventListener("pointermove", (event) => {
  if (!event.isPrimary) return;
  state.pointer = pixelOf(event);
  if (state.last) {
    const passed = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const at of (passed.length ? passed : [event]).map(pixelOf)) {
      drawStroke(ids, width, height, state.last, at, brushSize.value / 2, paintId());
      state.last = at;
    }
    show();
    askDuringStroke();
  }
  showGhost();
  showPosition(state.pointer);
});

function release(event) {
  if (!event.isPrimary) return;
  if (state.dragFrom && event.type === "pointerup") {
    const to = pixelOf(event);
    change(() => drawDragged(ids, to));
  }
  const stroked = state.last !== null;
  state.dragFrom = state.last = null;
  if (event.pointerType !== "mouse") state.pointer = null;
  if (stroked) publish();
  else showGhost();
}
maskCanvas.addEventListener("pointerup", release);
maskCanvas.addEventListener("pointercancel", release);
maskCanvas.addEventListener("dblclick", () => state.tool === "polygon" && closePolygon());
maskCanvas.addEventListener("contextmenu", (event) => event.preventDefault());
maskCanvas.addEventListener("pointerleave", () => {
  if (!state.last && !state.dragFrom) state.pointer = null;
  showPosition(null);
  showGhost();
});

// Tools, classes, objects ------------------------------------------------------------------------------------------

function chooseTool(tool) {
  state.tool = tool;
  state.corners = [];
  if (tool !== "shape") state.shape = null;
  if (tool !== "describe") described = null;
  showTexts();
  for (const button of element.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === tool);
  [...find(".shapes").children].forEach((button, i) => button.setAttribute("aria-checked", objects[i] === state.shape));
  showGhost();
}

function chooseClass(id, tool) {
  state.id = id;
  described = null;
  showTexts();
  for (const button of find(".palette").children) button.setAttribute("aria-checked", +button.dataset.id === id);
  remember();
  if (tool) chooseTool(tool);
  else if (["eraser", "pick", "shape"].includes(state.tool)) chooseTool("brush");
}

function chooseShape(shape) {
  state.shape = shape;
  shapeSize.value = Math.max(2, Math.round(shape.share * height));
  showSizes();
  chooseTool("shape");
}

function showSizes() {
  find(".brush-value").textContent = `${brushSize.value} px`;
  find(".shape-value").textContent = `${shapeSize.value} px`;
}

function addButton(parent, role, text, icon, onClick) {
  const button = document.createElement("button");
  button.type = "button";
  if (role) button.setAttribute("role", role);
  if (icon) button.append(icon);
  button.append(text);
  button.addEventListener("click", onClick);
  parent.append(button);
  return button;
}

for (const id of [...Array(256).keys()].filter((id) => id in colors)) {
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = `rgb(${colors[id].join(",")})`;
  const button = addButton(find(".palette"), "radio", names[id], swatch, () => chooseClass(id));
  button.dataset.id = id;
  if (id === unknown) continue;
  button.dataset.key = id;
  button.title = `Key ${[...String(id)].join(", ")}`;
}
for (const object of objects) {
  addButton(find(".shapes"), "radio", object.name, thumbnail(object.ids, object.height, object.width, HOLE), () => chooseShape(object));
}
for (const { name, runs } of examples) {
  const example = unpackRuns(runs, height * width);
  addButton(find(".examples"), "", name, thumbnail(example, height, width, HOLE), () => change(() => ids.set(example)));
}
find(".objects").hidden = !objects.length;
find(".starts").hidden = !examples.length;

const actions = {
  undo, redo, download, clear: () => change(() => ids.fill(unknown)), another: () => trigger("click"),
  smaller: () => zoomBy(0.5), larger: () => zoomBy(2),
};
for (const button of element.querySelectorAll("[data-tool]")) button.addEventListener("click", () => chooseTool(button.dataset.tool));
for (const button of element.querySelectorAll("[data-do]")) button.addEventListener("click", actions[button.dataset.do]);
for (const slider of [brushSize, shapeSize]) slider.addEventListener("input", () => (showSizes(), showGhost()));
find(".mirrored").addEventListener("change", showGhost);
for (const field of [promptField, negativeField, regionField]) {
  field.addEventListener("input", writeText);
  field.addEventListener("change", publish);
}
find(".cover").addEventListener("input", show);
liveBox.addEventListener("change", switchLive);
root.addEventListener("options", () => liveBox.checked && publish());  // others than the mask have changed
root.addEventListener("failure", stopLive);

// Choose the class of the digits typed so far, one quickly after the other.
function typeDigit(digit, at) {
  const digits = at - typed.at < KEY_INTERVAL ? typed.digits + digit : digit;
  typed = { digits: digits in colors ? digits : digit, at };
  if (typed.digits in colors) chooseClass(+typed.digits);
}

const keys = { b: "brush", l: "line", r: "rectangle", p: "polygon", f: "fill", e: "eraser", i: "pick" };
if (props.texts) keys.d = "describe";
document.addEventListener("keydown", (event) => {
  if (!root.isConnected || !(root.contains(event.target) || event.target === document.body)) return;
  const key = event.key.toLowerCase(), command = event.ctrlKey || event.metaKey;
  const typing = event.target.matches("input:not([type=range], [type=checkbox])");
  if (typing) return;
  if (command && (key === "y" || (key === "z" && event.shiftKey))) redo();
  else if (command && key === "z") undo();
  else if (command || event.altKey) return;
  else if (key === "enter" && state.corners.length) closePolygon();
  else if (key === "escape" && state.corners.length) chooseTool("polygon");
  else if (key in keys) chooseTool(keys[key]);
  else if (key === "+" || key === "=") zoomBy(2);
  else if (key === "-") zoomBy(0.5);
  else if (/^\d$/.test(key)) typeDigit(key, event.timeStamp);
  else return;
  event.preventDefault();
  event.stopPropagation();
});

// Values from the server -------------------------------------------------------------------------------------------

function showPhoto() {
  hasPhoto = Boolean(props.photo);
  const photo = find(".photo");
  photo.hidden = find(".opacity").hidden = !hasPhoto;
  if (hasPhoto) photo.src = props.photo;
  else photo.removeAttribute("src");
  show();
}

watch("value", () => {
  if (!isSettled && JSON.stringify(props.value) === initial) {  // gradio sends it once more after this script has run
    isSettled = true;
    return send();
  }
  keepForUndo();
  state.photo = props.value.photo ?? state.photo;  // key of the photo that this is painted over
  ids.set(unpackRuns(props.value.runs, height * width));
  publish();
});
const [photoProperty, liveProperty] = Object.keys({ photo: null, live: null });  // gradio takes names in quotes for those of events
watch(photoProperty, showPhoto);
watch(liveProperty, showLive);

for (const canvas of [maskCanvas, ghostCanvas]) {
  canvas.width = width;
  canvas.height = height;
}
for (const frame of [stage, livePanel]) frame.style.maxWidth = `${Math.max(320, Math.min(640 * width / height, 5 * width))}px`;
root.classList.toggle("is-wide", width > 1.5 * height);
for (const frame of [stage, find(".live-frame")]) frame.style.aspectRatio = `${width} / ${height}`;
brushSize.max = Math.max(8, Math.round(Math.min(height, width) / 2));
brushSize.value = Math.max(1, Math.round(Math.min(height, width) / 16));
shapeSize.max = height;
const { runs = props.value.runs, photo = null, id = +Object.keys(colors)[0], tool = "brush", brush = brushSize.value } = remembered;
texts = remembered.texts ?? texts;
find(".texts").hidden = find("[data-tool=describe]").hidden = !props.texts;
ids.set(unpackRuns(runs, height * width));
state.photo = photo;
brushSize.value = brush;
chooseClass(id);
chooseTool(tool);
showSizes();
showPosition(null);
showPhoto();
zoomBy(1);
send();
liveBox.checked = props.drawing;
switchLive();
