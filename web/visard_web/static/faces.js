// The faces of one photo: boxes on it, a choice for each, and what became of each. Makes no requests.

import { count, element, parts, percent, stamp } from "./words.js";

const TAG_PERCENT = 8; // of the photo's height above a box, so that the box's number fits there
const UNCERTAIN_BELOW = 0.8; // confidence under which the page advises to choose the direction

/** A frame and a number for each face, in per cent of the photo, so that they follow it through every size. */
export function drawBoxes(layer, faces, { width, height }) {
  layer.replaceChildren(
    ...faces.map(({ index, box }) => {
      const [left, right] = [box[0], box[2]].map((x) => (Math.min(Math.max(x, 0), width) / width) * 100);
      const [top, bottom] = [box[1], box[3]].map((y) => (Math.min(Math.max(y, 0), height) / height) * 100);
      const frame = element("div", top < TAG_PERCENT ? "box tag-inside" : "box");
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
 * @returns {{fieldset: HTMLFieldSetElement, crop: HTMLImageElement, direction: () => string | null, ask: () => void}}
 *   `direction` is null while a face that is too small to swap has not been accepted as visible; `ask` goes there
 */
export function faceChoice(face, group, minFacePx) {
  const fieldset = stamp("face-choice");
  const { crop, opinion, directions, accept } = parts(fieldset);
  const accepted = accept.querySelector("input");
  fieldset.querySelector("legend").textContent = `Face ${face.index + 1}`;
  crop.alt = `Face ${face.index + 1}, cut out`;
  opinion.id = `${group}-opinion`;
  fieldset.setAttribute("aria-describedby", opinion.id);
  for (const radio of directions.querySelectorAll("input")) radio.name = group;
  if (face.too_small) {
    fieldset.classList.add("too-small");
    opinion.textContent = `Too small to swap: it has fewer than ${minFacePx} pixels across.`;
    directions.remove();
    accept.hidden = false;
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
    direction: () => {
      if (face.too_small) return accepted.checked ? "leave" : null;
      return directions.querySelector("input:checked").value;
    },
    ask: () => accepted.focus(),
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
  if (face.left_alone) {
    after.remove();
    marks.append(element("li", "mark warn", "Left alone: it is still visible."));
    return { item, crop, swapped: null };
  }
  marks.append(...marksOf(face));
  return { item, crop, swapped };
}

function marksOf(face) {
  const { label, confidence } = face.swapped_gender;
  const flip = face.flipped
    ? element("li", "mark good", `Flipped: now looks ${label}, ${percent(confidence)} confidence.`)
    : element("li", "mark warn", `Did not flip: still looks ${label}, ${percent(confidence)} confidence.`);
  const distance = face.identity_distance === null ? "" : ` Distance ${face.identity_distance.toFixed(2)}.`;
  const recogniser = {
    true: element("li", "mark warn", `A recogniser would still match it.${distance}`),
    false: element("li", "mark good", `A recogniser would not match it any more.${distance}`),
    null: element("li", "mark", "The recogniser was not asked."),
  }[face.same_person];
  const similarity = `Similarity ${face.similarity_percent.toFixed(1)}\u00a0%, pixel cosine ${face.pixel_cosine.toFixed(2)}.`;
  return [flip, recogniser, element("li", "mark", similarity)];
}

/** Headline and warnings of a result: `{verdict, warnings}`, the most serious warning first. */
export function judge({ faces, visible_faces: visible }) {
  const swapped = faces.filter((face) => !face.left_alone);
  const warnings = [];
  if (visible) {
    const stay = visible === 1 ? "1 face is still visible" : `${visible} faces are still visible`;
    warnings.push(`${stay} in this result, because you left ${visible === 1 ? "it" : "them"} alone.`);
  }
  const names = (list) => list.map((face) => face.index + 1).join(", ");
  const recognised = swapped.filter((face) => face.same_person);
  if (recognised.length) warnings.push(`A recogniser would still match face ${names(recognised)}.`);
  const unflipped = swapped.filter((face) => !face.flipped);
  if (unflipped.length) {
    warnings.push(`The swap of face ${names(unflipped)} did not flip: try the other direction.`);
  }
  const left = faces.length - swapped.length;
  return { verdict: `${count(swapped.length, "face")} swapped${left ? `, ${left} left alone` : ""}`, warnings };
}
