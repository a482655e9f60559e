// One photo on the page, from its upload to its result. Its stages, in order:
// waiting → sending → choosing → swapping → compared; `failed` from anywhere, and from compared back to choosing.

import { Problem, photoPath, request, sendPhoto } from "./api.js";
import { bindDrawing } from "./draw.js";
import { drawBoxes, faceChoice, faceResult, judge, mayChange } from "./faces.js";
import { announce, count, element, minutes, parts, stamp } from "./words.js";

let made = 0;

export class Card {
  #file;
  #about;
  #photo; // what the server said about the photo, once it has it
  #choices = [];
  #drawing;
  #drawn = Promise.resolve(); // one change of the boxes at a time, and before what is done with them
  #runs = 0;
  #canAbort = true;
  #gone = false;
  #abort = new AbortController();
  #preview;

  /**
   * @param {File} file
   * @param {object} about the server's limits
   * @param {{onGone: (card: Card) => void, onAgain: (card: Card) => void}} hooks taken off the page; to be sent again
   */
  constructor(file, about, { onGone, onAgain }) {
    this.#file = file;
    this.#about = about;
    this.name = file.name || "Pasted photo";
    this.number = ++made;
    this.element = stamp("photo-card");
    this.part = parts(this.element);
    const { title, forget, retry, choices, again, persona, split, downloads, before } = this.part;
    title.textContent = this.name;
    title.id = `photo-${this.number}`;
    this.element.setAttribute("aria-labelledby", title.id);
    forget.setAttribute("aria-describedby", title.id);
    downloads.setAttribute("aria-label", `Download ${this.name}`);
    split.setAttribute("aria-label", "Compare: how much of the photo shows the state before");
    split.addEventListener("input", () => this.#split());
    forget.addEventListener("click", async () => (await this.forget()) && onGone(this));
    retry.addEventListener("click", () => {
      onAgain(this);
      title.focus(); // the button is hidden now
    });
    choices.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#anonymize();
    });
    choices.addEventListener("change", () => this.#choicesChanged());
    this.#drawing = bindDrawing(this.element, (share) => this.#add(share));
    persona.addEventListener("click", () => this.#ask("/again", {}, "Trying another persona…", "compared"));
    again.addEventListener("click", () => {
      this.#show("choosing");
      this.part.found.focus();
    });
    for (const button of downloads.querySelectorAll("[data-format]")) {
      button.addEventListener("click", () => this.#download(button.dataset.format));
    }
    before.alt = `${this.name}, as it came`;
    this.#preview = URL.createObjectURL(file);
    this.wait();
  }

  get id() {
    return this.#photo?.id;
  }

  /** Stand in line for the upload. */
  wait() {
    const { saved, photo, before } = this.part;
    this.#photo = undefined;
    saved.hidden = true;
    photo.hidden = false;
    before.onerror = () => (photo.hidden = true);
    before.src = this.#preview; // shown at once, if the browser can decode it
    this.#show("waiting", "Waiting for the photos before it…");
  }

  /** Upload the photo and show its faces. Never rejects: what goes wrong stands on the card. */
  async send() {
    if (this.#gone) return;
    this.#show("sending", "Sending the photo…");
    const { progress, doing } = this.part;
    try {
      const tooLarge = this.#file.size > this.#about.max_bytes;
      if (tooLarge)
        throw new Problem(`This file is larger than ${megabytes(this.#about.max_bytes)}. Please reduce it first.`);
      await readable(this.#file);
      const photo = await sendPhoto(this.#file, {
        signal: this.#abort.signal,
        onProgress: (share) => {
          progress.value = share;
          if (share < 1) return;
          progress.removeAttribute("value");
          doing.textContent = "Looking for faces…";
          this.#canAbort = false; // the server has it: wait for its id, to make it forget the photo
        },
      });
      this.#photo = photo;
      if (this.#gone) await request(photoPath(photo.id), { method: "DELETE" });
      else this.#found();
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#canAbort = true;
    }
  }

  /** Make the server forget the photo. False, and a sentence on the card, where the server could not be told. */
  async forget() {
    try {
      if (this.id) await request(photoPath(this.id), { method: "DELETE" });
    } catch (error) {
      this.#report(error);
      return false;
    }
    this.leave();
    return true;
  }

  /** Take the card off the page, with all that the page itself holds of the photo. */
  leave() {
    this.#gone = true;
    if (this.#canAbort) this.#abort.abort();
    URL.revokeObjectURL(this.#preview);
    this.element.remove();
  }

  #found() {
    const { saved, found, photo, before } = this.part;
    const { id, width, height, faces } = this.#photo;
    const message = "Image saved in memory, not on disk";
    saved.textContent = message;
    saved.hidden = false;
    photo.hidden = false;
    photo.style.setProperty("--width", width);
    photo.style.setProperty("--height", height);
    this.#load(before, photoPath(id, "/before?format=jpeg")); // upright as the boxes count it
    this.#choices = [];
    this.#listFaces();
    this.part.noted.textContent = "";
    this.#drawing.open(faces.length === 0);
    this.#show("choosing");
    announce(`${this.name}: ${message}. ${found.textContent}.`);
  }

  /** Show the faces and a choice for each; what was chosen before stays. */
  #listFaces() {
    const { found, nobody, go, faces: list, boxes } = this.part;
    const { id, width, height, faces } = this.#photo;
    const marked = faces.filter((face) => face.by_hand).length;
    const seen = faces.length - marked;
    found.textContent =
      (seen ? `${count(seen, "face")} found` : "No face found") + (marked ? `, ${marked} marked by you` : "");
    nobody.hidden = faces.length > 0;
    go.hidden = faces.length === 0;
    drawBoxes(boxes, faces, { width, height });
    const before = new Map(this.#choices.map(({ box, direction }) => [String(box), direction()]));
    const run = `run=${++this.#runs}`; // the numbers may be those of other faces now
    this.#choices = faces.map((face, i) => {
      const choice = faceChoice(face, `photo-${this.number}-face-${face.index}`, this.#about.min_face_px);
      if (before.has(String(face.box))) choice.choose(before.get(String(face.box)));
      choice.remove.addEventListener("click", () => this.#remove(face));
      this.#load(choice.crop, photoPath(id, `/faces/${face.index}?${run}`));
      const pointOut = (on) => boxes.children[i].classList.toggle("pointed-out", on);
      for (const [event, on] of Object.entries({
        mouseenter: true,
        mouseleave: false,
        focusin: true,
        focusout: false,
      })) {
        choice.fieldset.addEventListener(event, () => pointOut(on));
      }
      return { index: face.index, box: face.box, ...choice };
    });
    list.replaceChildren(...this.#choices.map((choice) => choice.fieldset));
    this.#choicesChanged();
  }

  /** Add a box, given in per cent of the photo, in whole pixels. */
  #add({ left, top, width, height }) {
    const { width: w, height: h } = this.#photo;
    const x = Math.min(Math.floor((left / 100) * w), w - 1);
    const y = Math.min(Math.floor((top / 100) * h), h - 1);
    const right = Math.min(Math.max(Math.round(((left + width) / 100) * w), x + 1), w);
    const bottom = Math.min(Math.max(Math.round(((top + height) / 100) * h), y + 1), h);
    this.#setBoxes((boxes) => [...boxes, [x, y, right, bottom]]);
  }

  #remove(face) {
    this.part.draw.focus(); // what has the focus is going to be gone
    this.#setBoxes((boxes) => boxes.filter((box) => String(box) !== String(face.box)));
  }

  /** Tell the server which boxes there are by hand, and show the faces that it makes of them. */
  #setBoxes(change) {
    this.#drawn = this.#drawn.then(async () => {
      const before = this.#photo.faces;
      const boxes = change(before.filter((face) => face.by_hand).map((face) => face.box));
      try {
        const answer = await request(photoPath(this.id, "/boxes"), {
          method: "POST",
          json: { boxes },
          signal: this.#abort.signal,
        });
        const { faces } = await answer.json();
        this.#photo.faces = faces;
        this.#listFaces();
        const { noted } = this.part;
        noted.textContent = whatChanged(before, faces);
        announce(`${this.name}: ${noted.textContent}`);
      } catch (error) {
        this.#fail(error, "choosing");
      }
    });
  }

  #choicesChanged() {
    const directions = this.#choices.map((choice) => choice.direction());
    directions.forEach((direction, i) => {
      this.part.boxes.children[i].classList.toggle("left-alone", direction === "leave");
    });
    this.part.anonymize.textContent = doingTo(directions);
    this.part.problem.hidden = true;
  }

  async #anonymize() {
    await this.#drawn;
    if (this.element.dataset.stage !== "choosing") return; // the photo was forgotten meanwhile
    const faces = this.#choices.map(({ index, direction }) => ({ index, direction: direction() }));
    if (faces.every(({ direction }) => direction === "leave"))
      return this.#report(new Problem("All faces are to stay visible. Choose at least one to swap or to cover."));
    await this.#ask("/anonymize", { faces }, "Anonymising the photo…", "choosing");
  }

  /** Have the photo anonymised and show what became of it; `stage` is where to go back to if it fails. */
  async #ask(what, json, doing, stage) {
    this.#show("swapping", doing);
    this.part.progress.removeAttribute("value");
    this.part.doing.focus();
    try {
      const signal = this.#abort.signal;
      const response = await request(photoPath(this.id, what), { method: "POST", json, signal });
      this.#compare(await response.json(), stage === "compared");
    } catch (error) {
      const here = this.#hasFocus();
      this.#fail(error, stage);
      if (here) this.part[stage === "choosing" ? "anonymize" : "persona"].focus();
    }
  }

  /** Show what became of the photo; `again` where it was shown before and other personas were tried. */
  #compare(result, again) {
    const { verdict, warnings, remedy, why, results, after, split } = this.part;
    const run = `run=${++this.#runs}`; // another address for each run: a browser may show an old picture from memory
    const judgement = judge(result);
    verdict.textContent = judgement.verdict;
    warnings.replaceChildren(...judgement.warnings.map((text) => element("p", "notice warn", text)));
    why.textContent = mayChange(result, again);
    remedy.hidden = !why.textContent;
    after.alt = `${this.name}, with other faces`;
    this.#load(after, photoPath(this.id, `/after?format=jpeg&${run}`));
    results.replaceChildren(
      ...result.faces.map((face) => {
        const { item, crop, swapped } = faceResult(face);
        this.#load(crop, photoPath(this.id, `/faces/${face.index}`));
        if (swapped) this.#load(swapped, photoPath(this.id, `/faces/${face.index}/swapped?${run}`));
        return item;
      }),
    );
    split.value = 50;
    this.#split();
    const here = this.#hasFocus();
    this.#show("compared");
    if (here) verdict.focus(); // somebody busy with another photo is only told
    announce([`${this.name}: ${judgement.verdict}.`, ...judgement.warnings, why.textContent].join(" ").trim());
  }

  async #download(format) {
    try {
      const response = await request(photoPath(this.id, `/after?format=${format}&download=1`));
      const url = URL.createObjectURL(await response.blob());
      const name = `anonymized.${format === "jpeg" ? "jpg" : format}`;
      Object.assign(document.createElement("a"), { href: url, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000); // some browsers read it only after asking for a folder
      announce(`${this.name}: download started.`);
    } catch (error) {
      this.#fail(error, "compared");
    }
  }

  #split() {
    const { photo, split } = this.part;
    photo.style.setProperty("--split", `${split.value}%`);
    split.setAttribute("aria-valuetext", `${split.value} % before, ${100 - split.value} % after`);
  }

  /** Show an image from the server; where it fails, find out why and say so. */
  #load(image, path) {
    image.onerror = () => {
      image.onerror = null;
      request(path).catch((error) => this.#fail(error, this.element.dataset.stage));
    };
    image.src = path;
  }

  /** Tell what went wrong and go to `stage`; a photo that the server has forgotten can only be sent again. */
  #fail(error, stage = "failed") {
    if (this.#gone || error.name === "AbortError") return;
    const forgotten = error.error === "Forgotten";
    if (forgotten) stage = "failed";
    if (stage !== this.element.dataset.stage) this.#show(stage);
    if (stage === "failed") {
      this.part.saved.hidden = true;
      this.part.photo.hidden = true;
      this.part.remedies.hidden = !(forgotten || error.mayPass);
      this.part.retry.textContent = forgotten ? "Send it again" : "Try again";
    }
    this.#report(forgotten ? new Problem(forgottenBecause(error, this.#about)) : error);
  }

  #report(error) {
    const { problem } = this.part;
    // Anything but a Problem is a defect of this page: say so rather than nothing, and let the console have it.
    const known = error instanceof Problem;
    if (!known) console.error(error);
    const wait = error.retryAfterS > 0 ? ` You can try again in ${count(error.retryAfterS, "second")}.` : "";
    problem.textContent = known
      ? sentence(error.message) + wait
      : "Something went wrong on this page. Please reload it.";
    problem.hidden = false;
  }

  #show(stage, doing = "") {
    this.element.dataset.stage = stage;
    for (const part of this.element.querySelectorAll("[data-stages]")) {
      part.hidden = !part.dataset.stages.split(" ").includes(stage);
    }
    this.part.doing.textContent = doing;
    this.part.forget.textContent = this.id ? "Forget this photo" : "Remove";
    this.part.problem.hidden = true;
    this.part.remedies.hidden = true;
  }

  /** Whether the person is at this card: the focus is in it, or nowhere because what had it was hidden. */
  #hasFocus() {
    return document.activeElement === document.body || this.element.contains(document.activeElement);
  }
}

/** What the button does to the faces, from their choices. */
function doingTo(directions) {
  const covers = directions.filter((direction) => direction === "cover").length;
  const swaps = directions.filter((direction) => direction !== "leave").length - covers;
  const parts = [];
  if (swaps) parts.push(`swap ${count(swaps, "face")}`);
  if (covers) parts.push(`cover ${count(covers, "face")}`);
  return sentence(parts.join(", ") || "anonymise").slice(0, -1);
}

/** What another set of boxes has made of the faces. */
function whatChanged(before, faces) {
  if (faces.length < before.length) return "The box was removed.";
  if (faces.length === before.length) return "There is a face in this place already.";
  return `Face ${faces.length} was added: it will be ${faces.at(-1).reason ? "covered" : "swapped"}.`;
}

const forgottenBecause = (error, { keeps_for_s }) =>
  `${sentence(error.message)} Photos are kept for at most ${minutes(keeps_for_s)}, and none outlives the server.`;

const megabytes = (bytes) => `${Math.floor(bytes / 2 ** 20)} MB`;

/** With a capital letter and a full stop. */
const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

/** Reject with a Problem where the file cannot be read: a folder that was dropped, or a file gone meanwhile. */
async function readable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem("This cannot be read: is it a folder, or was it moved? Choose a JPEG, PNG or WebP photo.");
  }
}
