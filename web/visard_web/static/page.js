// The page: photos come in by click, drop, paste and camera, wait for consent, and get a card each.

import { request } from "./api.js";
import { bindCamera } from "./camera.js";
import { Card } from "./card.js";
import { announce, count, minutes } from "./words.js";

const byId = (id) => document.getElementById(id);
const [files, drop, consent, waiting, refusal, photos, forgetAll] = [
  "files",
  "drop",
  "consent",
  "waiting",
  "refusal",
  "photos",
  "forget-all",
].map(byId);

const cards = new Set();
let held = []; // files that arrived before consent was given; nothing of them has been sent
let line = Promise.resolve(); // one upload at a time: the first photo is ready soonest, and the server is not flooded
let about = { max_bytes: Infinity, min_face_px: 40, keeps_for_s: 300 }; // until the server has told its own

/** Take files in, or hold them until consent is given. */
function add(list) {
  refuse("");
  if (!consent.checked) {
    held.push(...list);
    waiting.textContent =
      `${count(held.length, "photo")} ${held.length === 1 ? "waits" : "wait"} for your confirmation above. ` +
      "Nothing has been sent yet.";
    waiting.hidden = false;
    announce(waiting.textContent);
    consent.focus();
    return;
  }
  const added = list.map((file) => new Card(file, about, { onGone: gone, onAgain: enqueue }));
  for (const card of added) {
    cards.add(card);
    photos.append(card.element);
    enqueue(card);
  }
  pageChanged();
  added[0]?.element.scrollIntoView({ block: "start" });
}

function enqueue(card) {
  card.wait();
  line = line.then(() => card.send());
}

function gone(card) {
  cards.delete(card);
  pageChanged();
  announce(`${card.name} was forgotten.`);
  files.focus();
}

function pageChanged() {
  forgetAll.hidden = cards.size === 0;
  document.body.classList.toggle("has-photos", cards.size > 0);
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
    refuse(`${error.message} Until then your photos may still be in its memory; it forgets them by itself.`);
    return;
  }
  for (const card of cards) card.leave();
  cards.clear();
  held = [];
  waiting.hidden = true;
  pageChanged();
  announce("Everything was forgotten. The server keeps none of your photos.");
  files.focus();
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
  take(event.dataTransfer, "That was not a file. Save the picture first, then drop the file here.");
});
addEventListener("paste", (event) => {
  take(event.clipboardData, "The clipboard holds no picture. Copy a picture first, then paste it here.");
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
  byId("limit").textContent = `, up to ${Math.floor(about.max_bytes / 2 ** 20)} MB and ${megapixels} megapixels`;
  byId("keeps-for").textContent = `at most ${minutes(about.keeps_for_s)}`;
  byId("untrained-models").textContent = about.untrained.join(", ");
  byId("untrained").hidden = about.untrained.length === 0;
} catch (error) {
  refuse(error.message);
}
