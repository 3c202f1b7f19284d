// Shows what `views.slice_view` says: the template stays, so that the border between the pictures stays where it was put.
const $ = (name) => element.querySelector(`.${name}`);
const root = $("ct"), stage = $("ct-stage"), cut = $("ct-cut");

function moveBorder() {
  root.style.setProperty("--cut", `${cut.value}%`);
}

function cutAt(event) {
  const box = stage.getBoundingClientRect();
  cut.value = String(Math.round(100 * Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1)));
  moveBorder();
}

function nextSlice(by) {
  const slider = document.querySelector("#ct-slice input[type=range]");
  if (!slider) return;
  slider.value = String(Number(slider.value) + by); // kept in its range by the browser
  slider.dispatchEvent(new Event("input", { bubbles: true }));
}

function fill(figure, picture, ends, alt) {
  const image = figure.querySelector("img");
  image.hidden = !picture;
  if (picture) image.src = picture; else image.removeAttribute("src");
  image.alt = picture ? alt : "";
  figure.dataset.there = picture ? "yes" : "no";
  figure.querySelectorAll(".ct-ends span").forEach((span, k) => { span.textContent = ends[k]; });
}

function show() {
  const view = props.value;
  root.dataset.state = !view ? "empty" : view.after ? "restored" : "scan";
  if (!view) { root.querySelectorAll("img").forEach((image) => image.removeAttribute("src")); return; }
  root.style.setProperty("--aspect", String(view.aspect));
  const before = $("ct-before"), after = $("ct-after");
  before.src = view.before;
  before.alt = `${view.before_name}, ${view.place}`;
  after.hidden = !view.after;
  if (view.after) after.src = view.after; else after.removeAttribute("src");
  after.alt = view.after ? `restored, ${view.place}` : "";
  $("ct-tag-before").textContent = view.before_name;
  $("ct-before-name").textContent = view.before_name;
  $("ct-place").textContent = `${view.place}.`;
  for (const side of ["left", "right", "upper", "lower"]) $(`ct-${side}`).textContent = view.marks[side];
  fill($("ct-difference"), view.difference, view.difference_ends, `difference, ${view.place}`);
  fill($("ct-uncertainty"), view.uncertainty, view.uncertainty_ends, `uncertainty, ${view.place}`);
  moveBorder();
}

cut.addEventListener("input", moveBorder);
stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); cutAt(event); });
stage.addEventListener("pointermove", (event) => { if (event.buttons) cutAt(event); });
stage.addEventListener("wheel", (event) => {
  if (document.activeElement !== stage) return; // the wheel scrolls the page until the picture was clicked
  event.preventDefault();
  nextSlice(event.deltaY > 0 ? 1 : -1);
}, { passive: false });
stage.addEventListener("keydown", (event) => {
  const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
  if (by) { event.preventDefault(); nextSlice(by); }
});
watch("value", show);
show();
