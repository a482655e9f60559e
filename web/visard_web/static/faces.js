// The faces of one photo: boxes on it, a choice for each, and what became of each. Makes no requests.

import { decimal, element, joined, parts, percent, pieces, say, stamp } from "./words.js";

const TAG_PERCENT = 8; // of the photo's height above a box, so that the box's number fits there
const UNCERTAIN_BELOW = 0.8; // confidence under which the page advises to choose the direction

/** A frame and a number for each face, in per cent of the photo, so that they follow it through every size. */
export function drawBoxes(layer, faces, { width, height }) {
  layer.replaceChildren(
    ...faces.map(({ index, box, by_hand }) => {
      const [left, right] = [box[0], box[2]].map((x) => (Math.min(Math.max(x, 0), width) / width) * 100);
      const [top, bottom] = [box[1], box[3]].map((y) => (Math.min(Math.max(y, 0), height) / height) * 100);
      const frame = element("div", "box");
      frame.classList.toggle("tag-inside", top < TAG_PERCENT);
      frame.classList.toggle("by-hand", by_hand);
      Object.assign(frame.style, {
        left: `${left}%`,
        top: `${top}%`,
        width: `${right - left}%`,
        height: `${bottom - top}%`,
      });
      frame.append(element("span", "", String(index + 1)));
      return frame;
    }),
  );
}

/**
 * A fieldset in which a person decides about one face.
 *
 * @param {string} group a name that no other face of the page has
 * @returns {{fieldset: HTMLFieldSetElement, crop: HTMLImageElement, remove: HTMLButtonElement,
 *   direction: () => string, choose: (direction: string) => void}} `remove` is there for a box by hand
 */
export function faceChoice(face, group, minFacePx) {
  const fieldset = stamp("face-choice");
  const { crop, opinion, directions, remove } = parts(fieldset);
  const n = face.index + 1;
  fieldset.querySelector("legend").textContent = say(face.by_hand ? "choice.face_marked" : "choice.face", { n });
  remove.hidden = !face.by_hand;
  crop.alt = say("choice.crop", { n });
  opinion.id = `${group}-opinion`;
  fieldset.setAttribute("aria-describedby", opinion.id);
  for (const radio of directions.querySelectorAll("input")) radio.name = group;
  if (face.reason) {
    fieldset.classList.add("too-small");
    opinion.textContent = face.too_small
      ? say("choice.too_small", { n: minFacePx })
      : say("choice.unclear");
    for (const radio of directions.querySelectorAll("input")) {
      if (radio.value === "cover") radio.checked = true;
      else if (radio.value !== "leave") radio.parentElement.remove();
    }
  } else {
    const { label, confidence } = face.gender;
    const gender = element("strong", "", say(`gender.${label}`));
    opinion.append(...pieces("choice.opinion", { gender, percent: percent(confidence) }));
    if (confidence < UNCERTAIN_BELOW) {
      opinion.append(element("span", "advice", say("choice.unsure")));
    }
  }
  return {
    fieldset,
    crop,
    remove,
    direction: () => directions.querySelector("input:checked").value,
    choose: (direction) => (directions.querySelector(`[value=${direction}]`).checked = true),
  };
}

/** What became of one face, and the images in it that are still to be loaded. */
export function faceResult(face) {
  const item = stamp("face-result");
  const { crop, swapped, marks, "swapped-figure": after } = parts(item);
  const n = face.index + 1;
  item.querySelector("h4").textContent = say("choice.face", { n });
  crop.alt = say("result.crop_before", { n });
  swapped.alt = say("result.crop_after", { n });
  if (face.outcome !== "swapped") {
    after.remove();
    const [kind, text] =
      face.outcome === "covered"
        ? ["good", say("result.covered_because", { why: say(`why.${face.reason}`) })]
        : ["warn", say("result.left")];
    marks.append(element("li", `mark ${kind}`, text));
    return { item, crop, swapped: null };
  }
  marks.append(...marksOf(face));
  return { item, crop, swapped };
}

/**
 * What to say of faces that are covered because of their swaps, where another persona may help; empty without any.
 *
 * @param {boolean} again whether another one has been tried already
 */
export function mayChange({ faces }, again) {
  const numbers = faces.filter((face) => face.another_may_do).map(({ index }) => index + 1);
  if (!numbers.length) return "";
  return say(again ? "again.still" : "again.first", { n: numbers.length, numbers: joined(numbers) });
}

function marksOf(face) {
  const { label, confidence } = face.swapped_gender;
  const looks = say("result.looks", { gender: say(`gender.${label}`), percent: percent(confidence) });
  const distance = say("result.distance", { distance: decimal(face.identity_distance, 2) });
  const similarity = say("result.similarity", {
    percent: `${decimal(face.similarity_percent, 1)}\u00a0%`,
    cosine: decimal(face.pixel_cosine, 2),
  });
  return [element("li", "mark good", looks), element("li", "mark good", distance), element("li", "mark", similarity)];
}

/** Headline and warnings of a result: `{verdict, warnings}`. */
export function judge({ faces }) {
  const ended = (outcome) => faces.filter((face) => face.outcome === outcome).length;
  const [swapped, covered, visible] = ["swapped", "covered", "visible"].map(ended);
  const parts = [say("result.swapped", { n: swapped })];
  if (covered) parts.push(say("result.covered", { n: covered }));
  if (visible) parts.push(say("result.visible", { n: visible }));
  return { verdict: joined(parts), warnings: visible ? [say("result.still_visible", { n: visible })] : [] };
}
