// A photo from the camera: the device's own camera app on a phone, a dialog with the picture elsewhere.

import { say } from "./words.js";

/**
 * @param {(file: File) => void} onPhoto called with each photo taken; nothing is taken before the person presses
 */
export function bindCamera(onPhoto) {
  const button = document.getElementById("camera");
  const picker = document.getElementById("camera-file");
  const dialog = document.getElementById("camera-dialog");
  const video = dialog.querySelector("video");
  const trouble = dialog.querySelector("[role=alert]");
  const take = dialog.querySelector("[data-part=take]");
  let opened = 0;

  const open = async () => {
    trouble.hidden = true;
    take.disabled = true;
    dialog.showModal();
    const mine = ++opened;
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } } });
      if (!dialog.open || mine !== opened) return stop(stream); // closed while the browser was asking
      video.srcObject = stream;
      await video.play();
      take.disabled = false;
      take.focus();
    } catch (error) {
      if (!dialog.open) return;
      trouble.textContent =
        error.name === "NotAllowedError"
          ? say("camera.denied")
          : say("camera.none");
      trouble.hidden = false;
    }
  };

  button.addEventListener("click", () => {
    // A phone's own camera app focuses, zooms and takes more pixels than a video stream has. getUserMedia is missing
    // where the page comes over plain HTTP from another machine.
    const byApp = matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices?.getUserMedia;
    if (byApp) picker.click();
    else open();
  });
  picker.addEventListener("change", () => {
    for (const file of picker.files) onPhoto(file);
    picker.value = "";
  });
  take.addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => onPhoto(new File([blob], say("camera.name"), { type: blob.type })), "image/jpeg", 0.95);
    dialog.close();
  });
  dialog.querySelector("[data-part=cancel]").addEventListener("click", () => dialog.close());
  // However it was closed (button, Escape), the camera's light goes out.
  dialog.addEventListener("close", () => {
    stop(video.srcObject);
    video.srcObject = null;
  });
}

const stop = (stream) => stream?.getTracks().forEach((track) => track.stop());
