// The page: photos come in by click, drop, paste and camera, wait for consent, and get a card each.

import { bindAll } from "./all.js";
import { request } from "./api.js";
import { bindCamera } from "./camera.js";
import { Card } from "./card.js";
import { announce, megabytes, say, time } from "./words.js";

const UNDO_MS = 60_000; // long enough to notice, short enough for who leaves a machine that others use, too

const byId = (id) => document.getElementById(id);
const [files, drop, consent, waiting, refusal, photos, forgetAll, undo, undoText, undoButton] = [
  "files",
  "drop",
  "consent",
  "waiting",
  "refusal",
  "photos",
  "forget-all",
  "undo",
  "undo-text",
  "undo-button",
].map(byId);

let cards = new Set(); // in the order in which they stand on the page
let held = []; // files that arrived before consent was given; nothing of them has been sent
let line = Promise.resolve(); // one photo at a time: the first is ready soonest, and the server is not flooded
let about = { max_bytes: Infinity, min_face_px: 40, keeps_for_s: 300 }; // until the server has told its own
let lastCards; // those that stood here before some were forgotten; undefined where that cannot be undone any more
let lastTimer;

const all = bindAll(() => cards, { onSwapAll: swapAll });

/** Take files in, or hold them until consent is given. */
function add(list) {
  refuse("");
  if (!consent.checked) {
    held.push(...list);
    waiting.textContent = say("upload.held", { n: held.length });
    waiting.hidden = false;
    announce(waiting.textContent);
    consent.focus();
    return;
  }
  const hooks = { onForgotten: (card) => forgotten([card]), onAgain: enqueue, onStage: pageChanged };
  const added = list.map((file) => new Card(file, about, hooks));
  for (const card of added) {
    cards.add(card);
    photos.append(card.element);
    enqueue(card);
  }
  pageChanged();
  added[0]?.focus();
  // All that can be done with several stands above the first.
  if (added.length > 1 && added.length === cards.size) byId("all").scrollIntoView({ block: "start" });
}

function enqueue(card) {
  card.wait();
  line = line.then(() => card.send());
}

/** Swap the faces of photos one after the other, after what is on its way to the server. */
function swapAll(list) {
  for (const card of list) if (card.mayBeSentAgain) enqueue(card);
  for (const card of list) line = line.then(() => cards.has(card) && card.swap(true));
  line = line.then(() => all.tell());
}

/** The server has forgotten photos: take them off the page, and offer to bring them back for a while. */
function forgotten(list) {
  lastCards = new Set([...(lastCards ?? []), ...cards]);
  cards = new Set([...cards].filter((card) => !list.includes(card)));
  pageChanged();
  const gone = [...lastCards].filter((card) => !cards.has(card));
  undoText.textContent = say("undo.text", { n: gone.length, name: gone[0].name });
  undo.hidden = false;
  announce(undoText.textContent);
  undoButton.focus();
  clearTimeout(lastTimer);
  lastTimer = setTimeout(() => endUndo(say("undo.gone")), UNDO_MS);
}

/** Send forgotten photos again, each in the place where it stood. */
undoButton.addEventListener("click", () => {
  const back = [...lastCards].filter((card) => !cards.has(card));
  const added = [...cards].filter((card) => !lastCards.has(card));
  cards = new Set([...lastCards].filter((card) => cards.has(card) || back.includes(card)).concat(added));
  photos.replaceChildren(...[...cards].map((card) => card.element));
  for (const card of back) enqueue(card);
  endUndo("");
  pageChanged();
  back[0].focus();
});

function endUndo(text) {
  clearTimeout(lastTimer);
  lastCards = undefined;
  const here = undo.contains(document.activeElement);
  undo.hidden = true;
  if (here) files.focus();
  if (text) announce(text);
}

function pageChanged() {
  forgetAll.hidden = cards.size === 0;
  document.body.classList.toggle("has-photos", cards.size > 0);
  all.changed();
}

function refuse(text) {
  refusal.textContent = text;
  refusal.hidden = !text;
}

const savedIds = () => [...cards].map((card) => card.id).filter(Boolean);

async function forgetEverything() {
  try {
    await request("page/photos", { method: "DELETE", json: { ids: savedIds() } });
  } catch (error) {
    refuse(`${error.message} ${say("trouble.still_kept")}`);
    return;
  }
  const list = [...cards];
  for (const card of list) card.leave();
  held = [];
  waiting.hidden = true;
  forgotten(list);
}

consent.addEventListener("change", () => {
  if (!consent.checked) return;
  waiting.hidden = true;
  add(held.splice(0));
});

files.addEventListener("change", () => {
  const chosen = [...files.files];
  files.value = ""; // the same file can be chosen again
  add(chosen);
});

// The whole page takes drops: a photo dropped beside the field would otherwise replace the page.
addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? drop.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer, say("upload.no_file"));
});
addEventListener("paste", (event) => {
  take(event.clipboardData, say("upload.no_picture"));
});

function take(transfer, otherwise) {
  if (transfer.files.length) add([...transfer.files]);
  else refuse(otherwise);
}

bindCamera((file) => add([file]));
forgetAll.addEventListener("click", forgetEverything);

// Closing the page is forgetting, too. A page that the browser keeps for "back" (persisted) keeps its photos.
addEventListener("pagehide", (event) => {
  if (event.persisted || !savedIds().length) return;
  request("page/photos", { method: "DELETE", json: { ids: savedIds() }, keepalive: true }).catch(() => {});
});

try {
  about = await (await request("page/about")).json();
  const megapixels = Math.floor(about.max_pixels / 1e6);
  byId("limit").textContent = say("upload.limit", { megabytes: megabytes(about.max_bytes), megapixels });
  byId("keeps-for").textContent = say("upload.at_most", { time: time(about.keeps_for_s) });
  byId("untrained-models").textContent = about.untrained.join(", ");
  byId("untrained").hidden = about.untrained.length === 0;
} catch (error) {
  refuse(error.message);
}
