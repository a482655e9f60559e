// The page's words in the language that the server chose for it, and small helpers that several parts share.

const language = document.documentElement.lang;
const words = await (await fetch(`static/words/${language}.json`)).json();
const plural = new Intl.PluralRules(language);
const joiner = new Intl.ListFormat(language, { type: "unit", style: "short" });

/**
 * What is said under a key of the language's file, in pieces: text, and the values of the names in braces as they came.
 * Where there are several forms, the one for the number `n`.
 */
export function pieces(key, values = {}) {
  const known = words[key];
  const text = typeof known === "string" ? known : (known[plural.select(values.n)] ?? known.other);
  return text.split(/\{(\w+)\}/).map((piece, i) => (i % 2 ? values[piece] : piece));
}

export const say = (key, values) => pieces(key, values).join("");

/** What is said of an error of the server; undefined where its own words, which are English, say it best. */
export const sayError = (error) => words.errors[error];

/** "a, b, c" */
export const joined = (texts) => joiner.format(texts.map(String));

/** Seconds in words: as minutes, rounded up, where they are many. */
export const time = (seconds) =>
  seconds < 90 ? say("time.seconds", { n: seconds }) : say("time.minutes", { n: Math.ceil(seconds / 60) });

/** A number with so many decimals. */
export const decimal = (number, digits) =>
  number.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** Probability 0..1 as whole per cent; never rounded up to a certainty that was not stated. */
export const percent = (p) => `${p < 1 ? Math.min(99, Math.round(p * 100)) : 100}\u00a0%`;

export const megabytes = (bytes) => Math.floor(bytes / 2 ** 20);

/** With a capital letter and a full stop. */
export const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

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

/** Let the browser save a file. */
export function saveAs(blob, name) {
  const url = URL.createObjectURL(blob);
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // some browsers read it only after asking for a folder
}
