// A box drawn by hand over the photo: with the mouse, by touch, or placed with four sliders. Makes no requests.

import { parts, say } from "./words.js";

const EDGES = ["left", "top", "width", "height"];
const START = { left: 40, top: 35, width: 20, height: 25 }; // per cent of the photo
const SMALLEST = 1; // per cent: what is smaller was a click

/**
 * Let a person draw boxes while the panel is open.
 *
 * @param {HTMLElement} root holds the parts `draw`, `by-hand`, `sketch`, `add-box` and `done`
 * @param {(share: {left: number, top: number, width: number, height: number}) => void} onBox called with each box, in
 *   per cent of the photo
 * @returns {{open: (open: boolean) => void}}
 */
export function bindDrawing(root, onBox) {
  const { draw, "by-hand": panel, sketch, "add-box": add, done } = parts(root);
  const frame = sketch.firstElementChild;
  const sliders = Object.fromEntries(EDGES.map((edge) => [edge, panel.querySelector(`[data-edge=${edge}]`)]));
  let draft = { ...START };
  let start = null; // where the pointer went down
  let placing = false; // by the sliders

  const show = () => {
    frame.hidden = !start && !placing;
    for (const edge of EDGES) {
      sliders[edge].value = draft[edge];
      sliders[edge].setAttribute("aria-valuetext", say("draw.share", { n: Math.round(draft[edge]) }));
      frame.style[edge] = `${draft[edge]}%`;
    }
  };

  const open = (on) => {
    panel.hidden = sketch.hidden = !on;
    draw.setAttribute("aria-expanded", on);
    reset();
  };

  const reset = () => {
    draft = { ...START };
    placing = panel.matches(":focus-within");
    show();
  };

  const finish = () => {
    const box = draft;
    reset();
    onBox(box);
  };

  draw.addEventListener("click", () => {
    open(panel.hidden);
    if (!panel.hidden) sketch.scrollIntoView({ block: "nearest" });
  });
  done.addEventListener("click", () => {
    open(false);
    draw.focus();
  });
  add.addEventListener("click", finish);
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches("input")) {
      event.preventDefault(); // the photo is not to be anonymised yet
      finish();
    } else if (event.key === "Escape") done.click();
  });
  panel.addEventListener("focusin", () => {
    placing = true;
    show();
  });
  panel.addEventListener("input", ({ target }) => {
    placing = true;
    draft[target.dataset.edge] = Number(target.value);
    draft.width = Math.min(draft.width, 100 - SMALLEST);
    draft.height = Math.min(draft.height, 100 - SMALLEST);
    draft.left = Math.min(draft.left, 100 - draft.width);
    draft.top = Math.min(draft.top, 100 - draft.height);
    show();
  });

  const point = (event) => {
    const place = sketch.getBoundingClientRect();
    const within = (share) => Math.min(Math.max(100 * share, 0), 100);
    return {
      x: within((event.clientX - place.left) / place.width),
      y: within((event.clientY - place.top) / place.height),
    };
  };
  sketch.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button !== 0) return;
    event.preventDefault(); // no text is selected, and the focus stays
    sketch.setPointerCapture(event.pointerId);
    start = point(event);
  });
  sketch.addEventListener("pointermove", (event) => {
    if (!start || !event.isPrimary) return;
    const { x, y } = point(event);
    draft = {
      left: Math.min(x, start.x),
      top: Math.min(y, start.y),
      width: Math.abs(x - start.x),
      height: Math.abs(y - start.y),
    };
    show();
  });
  const end = (event, complete) => {
    if (!start || !event.isPrimary) return;
    start = null;
    if (complete && draft.width >= SMALLEST && draft.height >= SMALLEST) finish();
    else reset();
  };
  sketch.addEventListener("pointerup", (event) => end(event, true));
  sketch.addEventListener("pointercancel", (event) => end(event, false));
  return { open };
}
