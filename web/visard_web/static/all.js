// What is done with all photos at once, once there are several: a sum of their states, swap all, one ZIP file of all.
// The file is made here, not by the server, which does not know the photos' names.

import { downloadZip } from "./vendor/client-zip.js";
import { announce, joined, saveAs, say } from "./words.js";

const byId = (id) => document.getElementById(id);
const WORK = { waiting: 0, sending: 0.5, choosing: 1, swapping: 1.5, compared: 2, failed: 2 }; // done, of 2 for a photo

/**
 * @param {() => Set<Card>} cards gives the page's, in their order
 * @param {{onSwapAll: (cards: Card[]) => void}} hooks the photos that are to be swapped, in their order
 * @returns {{changed: () => void, tell: () => void}} to be called whenever there are other cards, or one has come to
 *   another stage; announces how all stand
 */
export function bindAll(cards, { onSwapAll }) {
  const [all, title, state, progress, swapAll, download] = [
    "all",
    "all-title",
    "all-state",
    "all-progress",
    "swap-all",
    "download-all",
  ].map(byId);

  const toSwap = () =>
    [...cards()].filter(
      (card) =>
        ["waiting", "sending"].includes(card.stage) ||
        (card.stage === "choosing" && card.hasFaces) ||
        card.mayBeSentAgain,
    );

  const changed = () => {
    all.hidden = cards().size < 2;
    const counts = new Map(Object.keys(SORTS).map((sort) => [sort, 0]));
    let work = 0;
    for (const card of cards()) {
      work += WORK[card.stage];
      const sort = Object.keys(SORTS).find((name) => SORTS[name](card));
      counts.set(sort, counts.get(sort) + 1);
    }
    title.textContent = say("all.title", { n: cards().size });
    const sum = joined([...counts].filter(([, n]) => n).map(([sort, n]) => say(`all.${sort}`, { n })));
    const pause = [...cards()].find((card) => card.pause)?.pause;
    state.textContent = pause ? `${sum}. ${pause}` : sum;
    progress.max = 2 * cards().size || 1;
    progress.value = work;
    swapAll.disabled = !toSwap().length;
    const done = counts.get("done");
    download.hidden = !done;
    download.textContent = say("all.download", { n: done });
  };

  swapAll.addEventListener("click", () => {
    state.focus(); // the button may be switched off now
    onSwapAll(toSwap());
  });

  download.addEventListener("click", async () => {
    const done = [...cards()].filter((card) => card.result);
    const names = namesOf(done);
    const files = done.map((card, i) => ({ name: names[i], input: card.result, lastModified: new Date() }));
    saveAs(await downloadZip(files).blob(), "anonymized.zip");
    announce(say("all.zipped", { n: done.length }));
  });

  return { changed, tell: () => announce(`${title.textContent}: ${state.textContent}.`) };
}

/** What there is to say of a card, the first that holds. */
const SORTS = {
  done: (card) => card.result,
  choosing: (card) => card.stage === "swapping" || (card.stage === "choosing" && card.hasFaces),
  nobody: (card) => card.stage === "choosing",
  sending: (card) => card.stage !== "failed",
  failed: () => true,
};

/** A name for each photo's result: its own with .jpg, and a number where two have the same. */
function namesOf(cards) {
  const taken = new Set();
  return cards.map(({ name }) => {
    const stem = name.replace(/\.[a-z0-9]{1,5}$/i, "").replace(/[\\/:*?"<>|\x00-\x1f]/g, "_") || "photo";
    let unique = `${stem}.jpg`;
    for (let n = 2; taken.has(unique.toLowerCase()); n++) unique = `${stem} (${n}).jpg`;
    taken.add(unique.toLowerCase());
    return unique;
  });
}
