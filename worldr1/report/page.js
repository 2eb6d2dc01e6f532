"use strict";
// Stops and starts the animations: a stopped one is covered by a still of its first frame.
const button = document.getElementById("pause");
if (button) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const stop = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(stop));
    for (const image of document.querySelectorAll("img.anim")) {
      if (stop) {
        const still = document.createElement("canvas");
        still.width = image.naturalWidth;
        still.height = image.naturalHeight;
        still.className = "anim still";
        still.getContext("2d").drawImage(image, 0, 0);
        image.after(still);
      } else if (image.nextElementSibling) {
        image.nextElementSibling.remove();
      }
      image.hidden = stop;
    }
  });
}
