// The faces of one photo: boxes on it, a choice for each, and what became of each. Makes no requests.

import { count, element, parts, percent, stamp } from "./words.js";

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
  fieldset.querySelector("legend").textContent = `Face ${face.index + 1}${face.by_hand ? ", marked by you" : ""}`;
  remove.hidden = !face.by_hand;
  crop.alt = `Face ${face.index + 1}, cut out`;
  opinion.id = `${group}-opinion`;
  fieldset.setAttribute("aria-describedby", opinion.id);
  for (const radio of directions.querySelectorAll("input")) radio.name = group;
  if (face.reason) {
    fieldset.classList.add("too-small");
    opinion.textContent = face.too_small
      ? `Too small to swap, with fewer than ${minFacePx} pixels across: it will be covered.`
      : "Not seen clearly enough to swap: it will be covered.";
    for (const radio of directions.querySelectorAll("input")) {
      if (radio.value === "cover") radio.checked = true;
      else if (radio.value !== "leave") radio.parentElement.remove();
    }
  } else {
    const { label, confidence } = face.gender;
    opinion.append("Apparent gender: ", element("strong", "", label), `, ${percent(confidence)} confidence`);
    if (confidence < UNCERTAIN_BELOW) {
      opinion.append(element("span", "advice", "The classifier is unsure: better choose the direction yourself."));
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
  const name = `Face ${face.index + 1}`;
  item.querySelector("h4").textContent = name;
  crop.alt = `${name} before`;
  swapped.alt = `${name} after`;
  if (face.outcome !== "swapped") {
    after.remove();
    const [kind, text] =
      face.outcome === "covered" ? ["good", `Covered: ${WHY[face.reason]}.`] : ["warn", "Left visible, as chosen."];
    marks.append(element("li", `mark ${kind}`, text));
    return { item, crop, swapped: null };
  }
  marks.append(...marksOf(face));
  return { item, crop, swapped };
}

const WHY = {
  chosen: "as chosen",
  too_small: "it was too small to swap",
  unclear: "it was not seen clearly enough to swap",
  implausible: "no swap looked like a face in its place",
  not_flipped: "no swap looked like the other gender",
  still_recognised: "a recogniser still matched its swap",
};

/**
 * What to say of faces that are covered because of their swaps, where another persona may help; empty without any.
 *
 * @param {boolean} again whether another one has been tried already
 */
export function mayChange({ faces }, again) {
  const numbers = faces.filter((face) => face.another_may_do).map(({ index }) => index + 1);
  if (!numbers.length) return "";
  const one = numbers.length === 1;
  const which = `${one ? "Face" : "Faces"} ${numbers.join(", ")}`;
  const them = one ? "it" : "them";
  return again
    ? `${which} ${one ? "stays" : "stay"} covered: the other personas did not change ${them} enough either.`
    : `${which} ${one ? "is" : "are"} covered: the personas that were tried did not change ${them} enough.`;
}

function marksOf(face) {
  const { label, confidence } = face.swapped_gender;
  const flip = element("li", "mark good", `Swapped: now looks ${label}, ${percent(confidence)} confidence.`);
  const distance = `Distance ${face.identity_distance.toFixed(2)}.`;
  const recogniser = element("li", "mark good", `One recogniser does not match it any more. ${distance}`);
  const similarity = `Similarity ${face.similarity_percent.toFixed(1)}\u00a0%, pixel cosine ${face.pixel_cosine.toFixed(2)}.`;
  return [flip, recogniser, element("li", "mark", similarity)];
}

/** Headline and warnings of a result: `{verdict, warnings}`. */
export function judge({ faces }) {
  const ended = (outcome) => faces.filter((face) => face.outcome === outcome).length;
  const [swapped, covered, visible] = ["swapped", "covered", "visible"].map(ended);
  const warnings = [];
  if (visible) {
    const stay = visible === 1 ? "1 face is still visible" : `${visible} faces are still visible`;
    warnings.push(`${stay} in this result, because you left ${visible === 1 ? "it" : "them"} so.`);
  }
  const parts = [`${count(swapped, "face")} swapped`];
  if (covered) parts.push(`${covered} covered`);
  if (visible) parts.push(`${visible} left visible`);
  return { verdict: parts.join(", "), warnings };
}
