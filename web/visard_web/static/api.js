// Requests to the page's own endpoints.

import { say, sayError } from "./words.js";

const LONGEST_PAUSE_S = 120; // what the server asks for beyond that is not waited for: the person decides
const PAUSE_S = 5; // where it does not say how long

/** Something that went wrong, as a sentence for the person at the screen. */
export class Problem extends Error {
  /**
   * @param {string} detail the sentence
   * @param {{status?: number, error?: string, retryAfterS?: number}} [more] HTTP's status, 0 where no answer came;
   *   class of the error on the server; the pause that it asked for
   */
  constructor(detail, { status, error = "", retryAfterS = NaN } = {}) {
    super(detail);
    this.status = status;
    this.error = error;
    this.retryAfterS = retryAfterS;
  }

  /** Whether the server only takes no more for the moment. */
  get isLimit() {
    return (this.status === 429 || this.error === "Overloaded") && !(this.retryAfterS > LONGEST_PAUSE_S);
  }

  /** Whether the same request may succeed later, unchanged. */
  get mayPass() {
    return [0, 429, 503, 504].includes(this.status);
  }
}

const unreachable = () => new Problem(say("trouble.unreachable"), { status: 0 });

/** The problem that an answer's status, body and Retry-After header describe. */
function problemFrom(status, body, retryAfter) {
  let problem = {};
  try {
    problem = JSON.parse(body);
  } catch {
    // A proxy in between answers in its own words: what is left to tell is the status.
  }
  const detail = sayError(problem.error) ?? problem.detail ?? say("trouble.status", { status });
  return new Problem(detail, { status, error: problem.error, retryAfterS: parseInt(retryAfter ?? "", 10) });
}

/**
 * Work, and again for as long as the server takes no more: after the pause that it asks for.
 *
 * @param {(secondsLeft: number) => void} onPause called every second of a pause, and with 0 at its end
 */
export async function patiently(work, { signal, onPause }) {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!error.isLimit) throw error;
      for (let left = error.retryAfterS || PAUSE_S; left > 0; left--) {
        onPause(left);
        await new Promise((resolve) => setTimeout(resolve, 1000));
        if (signal.aborted) throw new DOMException("forgotten", "AbortError");
      }
      onPause(0);
    }
  }
}

/** Fetch `path` beneath the page's own address. Rejects with a Problem, or with AbortError where `signal` asked. */
export async function request(path, { method = "GET", json, signal, keepalive } = {}) {
  const headers = json === undefined ? {} : { "Content-Type": "application/json" };
  const body = json === undefined ? undefined : JSON.stringify(json);
  let response;
  try {
    response = await fetch(path, { method, headers, body, signal, keepalive });
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
  if (!response.ok) {
    throw problemFrom(response.status, await response.text(), response.headers.get("Retry-After"));
  }
  return response;
}

/** Send a photo. XMLHttpRequest, because fetch does not tell how much of a large photo has left. */
export function sendPhoto(file, { signal, onProgress }) {
  const form = new FormData();
  form.append("consent", "yes");
  form.append("photo", file, "photo"); // the file's name stays here
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    xhr.open("POST", "page/photos");
    xhr.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    xhr.upload.onload = () => onProgress(1);
    xhr.onload = () =>
      xhr.status === 201
        ? resolve(JSON.parse(xhr.responseText))
        : reject(problemFrom(xhr.status, xhr.responseText, xhr.getResponseHeader("Retry-After")));
    xhr.onerror = () => reject(unreachable());
    xhr.onabort = () => reject(new DOMException("forgotten", "AbortError"));
    signal.addEventListener("abort", () => xhr.abort());
    xhr.send(form);
  });
}

export const photoPath = (id, rest = "") => `page/photos/${encodeURIComponent(id)}${rest}`;
