// Sentences and small helpers that several parts of the page share.

/** "1 face", "2 faces". */
export const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

/** Seconds as minutes, rounded up. */
export const minutes = (seconds) => count(Math.ceil(seconds / 60), "minute");

/** Probability 0..1 as whole per cent; never rounded up to a certainty that was not stated. */
export const percent = (p) => `${p < 1 ? Math.min(99, Math.round(p * 100)) : 100}\u00a0%`;

/** Copy a template's only element. */
export const stamp = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

/** Name → element, for everything beneath `root` that carries `data-part`. */
export const parts = (root) =>
  Object.fromEntries([...root.querySelectorAll("[data-part]")].map((element) => [element.dataset.part, element]));

/** An element with a class and a text. */
export function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Say something to a screen reader. The region is polite: several messages queue up instead of cutting each other. */
export function announce(text) {
  const status = document.getElementById("status");
  status.textContent = status.textContent === text ? `${text} ` : text; // equal text would not be announced again
}
