// One photo on the page, from its upload to its result. Its stages, in order:
// waiting → sending → choosing → swapping → compared; `failed` from anywhere, and from compared back to choosing.

import { Problem, patiently, photoPath, request, sendPhoto } from "./api.js";
import { bindDrawing } from "./draw.js";
import { drawBoxes, faceChoice, faceResult, judge, mayChange } from "./faces.js";
import { announce, element, joined, megabytes, parts, saveAs, say, sentence, stamp, time } from "./words.js";

let made = 0;

export class Card {
  #file;
  #about;
  #photo; // what the server said about the photo, once it has it
  #choices = [];
  #marked = []; // boxes by hand, for a photo that is sent again
  #result; // the anonymised photo as a JPEG file, and its URL: it does not depend on the server's memory any more
  #drawing;
  #drawn = Promise.resolve(); // one change of the boxes at a time, and before what is done with them
  #runs = 0;
  #canAbort = true;
  #gone = false;
  #abort = new AbortController();
  #preview;
  #onStage;

  /**
   * @param {File} file
   * @param {object} about the server's limits
   * @param {{onForgotten: (card: Card) => void, onAgain: (card: Card) => void, onStage: () => void}} hooks the server
   *   has forgotten it; to be sent again; it has come to another stage
   */
  constructor(file, about, { onForgotten, onAgain, onStage }) {
    this.#file = file;
    this.#about = about;
    this.#onStage = onStage;
    this.name = file.name || say("card.pasted");
    this.number = ++made;
    this.pause = ""; // what it says while the server takes no more
    this.element = stamp("photo-card");
    this.part = parts(this.element);
    const { title, forget, retry, choices, again, persona, split, downloads, before, found } = this.part;
    title.textContent = this.name;
    title.id = `photo-${this.number}`;
    this.element.setAttribute("aria-labelledby", title.id);
    forget.setAttribute("aria-describedby", title.id);
    downloads.setAttribute("aria-label", say("card.downloads", { name: this.name }));
    split.addEventListener("input", () => this.#split());
    forget.addEventListener("click", async () => (await this.forget()) && onForgotten(this));
    retry.addEventListener("click", () => {
      onAgain(this);
      title.focus(); // the button is hidden now
    });
    choices.addEventListener("submit", (event) => {
      event.preventDefault();
      this.swap();
    });
    choices.addEventListener("change", () => this.#choicesChanged());
    this.#drawing = bindDrawing(this.element, (share) => this.#add(share));
    persona.addEventListener("click", () => this.#ask("/again", {}, say("card.another"), "compared"));
    again.addEventListener("click", () => {
      this.#show("choosing");
      found.focus();
    });
    for (const button of downloads.querySelectorAll("[data-format]")) {
      button.addEventListener("click", () => this.#download(button.dataset.format));
    }
    before.alt = say("card.before_alt", { name: this.name });
    this.wait();
  }

  get id() {
    return this.#photo?.id;
  }

  get stage() {
    return this.element.dataset.stage;
  }

  /** Whether there is a face in it: found, or marked by the person. Only known once it has been sent. */
  get hasFaces() {
    return this.#choices.length > 0;
  }

  /** Whether it did not work, and may if it is sent again. */
  get mayBeSentAgain() {
    return this.stage === "failed" && !this.part.remedies.hidden;
  }

  /** The anonymised photo as a JPEG file; undefined without any, and while the choices are being changed. */
  get result() {
    return this.stage === "compared" ? this.#result?.blob : undefined;
  }

  /** Stand in line for the upload. */
  wait() {
    const { saved, photo, before } = this.part;
    this.#photo = undefined;
    this.#gone = false;
    this.#abort = new AbortController();
    this.#preview ??= URL.createObjectURL(this.#file);
    saved.hidden = true;
    photo.hidden = false;
    before.onerror = () => (photo.hidden = true);
    before.src = this.#preview; // shown at once, if the browser can decode it
    this.#show("waiting", say("card.waiting"));
  }

  /** Upload the photo and show its faces. Never rejects: what goes wrong stands on the card. */
  async send() {
    if (this.#gone || this.stage !== "waiting") return;
    this.#show("sending", say("card.sending"));
    const { progress, doing } = this.part;
    const abort = this.#abort;
    try {
      const tooLarge = this.#file.size > this.#about.max_bytes;
      if (tooLarge)
        throw new Problem(say("trouble.too_large", { megabytes: megabytes(this.#about.max_bytes) }));
      await readable(this.#file);
      const photo = await this.#patiently(() => {
        this.#canAbort = true;
        return sendPhoto(this.#file, {
          signal: abort.signal,
          onProgress: (share) => {
            progress.value = share;
            if (share < 1) return;
            progress.removeAttribute("value");
            doing.textContent = say("card.looking");
            this.#canAbort = false; // the server has it: wait for its id, to make it forget the photo
          },
        });
      }, say("card.sending"));
      if (this.#abort !== abort || this.#gone) return await request(photoPath(photo.id), { method: "DELETE" });
      this.#photo = photo;
      this.#found();
      if (this.#marked.length) await this.#setBoxes(() => this.#marked);
    } catch (error) {
      if (this.#abort !== abort) return; // it was brought back meanwhile, and waits to be sent again
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

  /** Take the card off the page, with all that the page itself holds of the photo but the file that was chosen. */
  leave() {
    this.#gone = true;
    if (this.#canAbort) this.#abort.abort();
    this.#photo = undefined;
    this.pause = "";
    this.#forgetResult();
    URL.revokeObjectURL(this.#preview);
    this.#preview = undefined;
    this.element.remove();
  }

  #forgetResult() {
    if (this.#result) URL.revokeObjectURL(this.#result.url);
    this.#result = undefined;
  }

  /** Lead the focus to the card, where it is read out. */
  focus() {
    this.element.scrollIntoView({ block: "start" });
    this.part.title.focus({ preventScroll: true });
  }

  /** Work, and wait and work again where the server takes no more for the moment: the card says so meanwhile. */
  #patiently(work, doing) {
    let told = false;
    return patiently(work, {
      signal: this.#abort.signal,
      onPause: (n) => {
        this.pause = n ? say("card.pause", { n }) : "";
        this.part.doing.textContent = this.pause || doing;
        if (n && !told) announce(`${this.name}: ${this.pause}`);
        told = true;
        this.#onStage();
      },
    });
  }

  #found() {
    const { saved, found, photo, before } = this.part;
    const { id, width, height, faces } = this.#photo;
    saved.hidden = false;
    photo.hidden = false;
    photo.style.setProperty("--width", width);
    photo.style.setProperty("--height", height);
    this.#load(before, photoPath(id, "/before?format=jpeg")); // upright as the boxes count it
    this.#listFaces(); // what was chosen before it was forgotten and sent again still holds
    this.part.noted.textContent = "";
    this.#drawing.open(faces.length === 0);
    this.#show("choosing");
    announce(`${this.name}: ${sentence(say("card.saved"))} ${sentence(found.textContent)}`);
  }

  /** Show the faces and a choice for each; what was chosen before stays. */
  #listFaces() {
    const { found, nobody, go, faces: list, boxes } = this.part;
    const { id, width, height, faces } = this.#photo;
    const marked = faces.filter((face) => face.by_hand).length;
    const seen = faces.length - marked;
    const counts = [seen ? say("choice.found", { n: seen }) : say("choice.none")];
    if (marked) counts.push(say("choice.marked", { n: marked }));
    found.textContent = joined(counts);
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
      if (!this.id) return; // the photo was forgotten meanwhile
      const before = this.#photo.faces;
      const boxes = change(before.filter((face) => face.by_hand).map((face) => face.box));
      try {
        const answer = await this.#post("/boxes", { boxes });
        const { faces } = await answer.json();
        this.#photo.faces = faces;
        this.#marked = faces.filter((face) => face.by_hand).map((face) => face.box);
        this.#listFaces();
        this.#onStage();
        const { noted } = this.part;
        noted.textContent = whatChanged(before, faces);
        announce(`${this.name}: ${noted.textContent}`);
      } catch (error) {
        this.#fail(error, "choosing");
      }
    });
    return this.#drawn;
  }

  #choicesChanged() {
    const directions = this.#choices.map((choice) => choice.direction());
    directions.forEach((direction, i) => {
      this.part.boxes.children[i].classList.toggle("left-alone", direction === "leave");
    });
    this.part.anonymize.textContent = doingTo(directions);
    this.part.problem.hidden = true;
  }

  #post(what, json) {
    return request(photoPath(this.id, what), { method: "POST", json, signal: this.#abort.signal });
  }

  /**
   * Have the photo anonymised as was chosen, if it is there and waits for that. Never rejects.
   *
   * @param {boolean} [among] among many: the focus stays where it is, and nothing is announced
   */
  async swap(among = false) {
    await this.#drawn;
    if (this.stage !== "choosing" || !this.hasFaces) return; // the photo was forgotten meanwhile
    const faces = this.#choices.map(({ index, direction }) => ({ index, direction: direction() }));
    if (faces.every(({ direction }) => direction === "leave"))
      return this.#report(new Problem(say("choice.all_visible")));
    await this.#ask("/anonymize", { faces }, say("card.swapping"), "choosing", among);
  }

  /** Have the photo anonymised and show what became of it; `stage` is where to go back to if it fails. */
  async #ask(what, json, doing, stage, among = false) {
    this.#show("swapping", doing);
    this.part.progress.removeAttribute("value");
    if (!among) this.part.doing.focus();
    try {
      const result = await this.#patiently(async () => (await this.#post(what, json)).json(), doing);
      const picture = await this.#patiently(() => request(photoPath(this.id, "/after?format=jpeg")), doing);
      const blob = await picture.blob();
      if (this.#gone) return;
      this.#forgetResult();
      this.#result = { blob, url: URL.createObjectURL(blob) };
      this.#compare(result, stage === "compared", among);
    } catch (error) {
      const here = !among && this.#hasFocus();
      this.#fail(error, stage);
      if (here) this.part[stage === "choosing" ? "anonymize" : "persona"].focus();
    }
  }

  /** Show what became of the photo; `again` where it was shown before and other personas were tried. */
  #compare(result, again, among) {
    const { verdict, warnings, remedy, why, results, after, split } = this.part;
    const run = `run=${++this.#runs}`; // another address for each run: a browser may show an old picture from memory
    const judgement = judge(result);
    verdict.textContent = judgement.verdict;
    warnings.replaceChildren(...judgement.warnings.map((text) => element("p", "notice warn", text)));
    why.textContent = mayChange(result, again);
    remedy.hidden = !why.textContent;
    after.alt = say("card.after_alt", { name: this.name });
    after.src = this.#result.url;
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
    if (among) return;
    if (here) verdict.focus(); // somebody busy with another photo is only told
    announce([`${this.name}: ${judgement.verdict}.`, ...judgement.warnings, why.textContent].join(" ").trim());
  }

  async #download(format) {
    try {
      const fetched = async () => (await request(photoPath(this.id, `/after?format=${format}`))).blob();
      const blob = format === "jpeg" ? this.result : await this.#patiently(fetched, "");
      saveAs(blob, `anonymized.${format === "jpeg" ? "jpg" : format}`);
      announce(`${this.name}: ${say("card.download_started")}`);
    } catch (error) {
      this.#fail(error, "compared");
    }
  }

  #split() {
    const { photo, split } = this.part;
    photo.style.setProperty("--split", `${split.value}%`);
    split.setAttribute("aria-valuetext", say("card.compared", { before: split.value, after: 100 - split.value }));
  }

  /** Show an image from the server; where it fails, find out why and say so. */
  #load(image, path) {
    image.onerror = () => {
      image.onerror = null;
      this.#patiently(() => request(path), "")
        .then(() => (image.src = `${path}${path.includes("?") ? "&" : "?"}again`))
        .catch((error) => this.#fail(error, this.stage));
    };
    image.src = path;
  }

  /** Tell what went wrong and go to `stage`; a photo that the server has forgotten can only be sent again. */
  #fail(error, stage = "failed") {
    if (this.#gone || error.name === "AbortError") return;
    const forgotten = error.error === "Forgotten";
    if (forgotten && stage !== "compared") stage = "failed"; // the result is here, whatever the server keeps
    if (stage !== this.stage) this.#show(stage);
    if (stage === "failed") {
      this.part.saved.hidden = true;
      this.part.photo.hidden = true;
    }
    if (stage === "failed" || forgotten) {
      this.part.remedies.hidden = !(forgotten || error.mayPass);
      this.part.retry.textContent = say(forgotten ? "card.send_again" : "card.retry");
    }
    this.#report(forgotten ? new Problem(forgottenBecause(error, this.#about)) : error);
  }

  #report(error) {
    const { problem } = this.part;
    // Anything but a Problem is a defect of this page: say so rather than nothing, and let the console have it.
    const known = error instanceof Problem;
    if (!known) console.error(error);
    const wait = error.retryAfterS > 0 ? ` ${say("trouble.wait", { time: time(error.retryAfterS) })}` : "";
    problem.textContent = known ? sentence(error.message) + wait : say("trouble.page");
    problem.hidden = false;
  }

  #show(stage, doing = "") {
    this.element.dataset.stage = stage;
    for (const part of this.element.querySelectorAll("[data-stages]")) {
      part.hidden = !part.dataset.stages.split(" ").includes(stage);
    }
    this.part.doing.textContent = doing;
    this.part.forget.textContent = say(this.id ? "card.forget" : "card.remove");
    this.part.problem.hidden = true;
    this.part.remedies.hidden = true;
    this.#onStage();
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
  if (swaps) parts.push(say("choice.do_swap", { n: swaps }));
  if (covers) parts.push(say("choice.do_cover", { n: covers }));
  return sentence(parts.length ? joined(parts) : say("choice.do_nothing")).slice(0, -1);
}

/** What another set of boxes has made of the faces. */
function whatChanged(before, faces) {
  if (faces.length < before.length) return say("draw.removed");
  if (faces.length === before.length) return say("draw.there");
  return say(`draw.added.${faces.at(-1).reason ? "covered" : "swapped"}`, { n: faces.length });
}

const forgottenBecause = (error, { keeps_for_s }) =>
  `${sentence(error.message)} ${say("trouble.forgotten", { time: time(keeps_for_s) })}`;

/** Reject with a Problem where the file cannot be read: a folder that was dropped, or a file gone meanwhile. */
async function readable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem(say("trouble.unreadable"));
  }
}
