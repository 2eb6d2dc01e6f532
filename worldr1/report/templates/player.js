"use strict";
// Plays all films of the page in step: each is one image of all its frames, of which a canvas shows one.
(() => {
  const player = document.getElementById("player");
  if (!player) return;
  const films = [...player.querySelectorAll("canvas.film")].map((canvas) => ({
    canvas, image: canvas.querySelector("img"), num: Number(canvas.dataset.frames), columns: Number(canvas.dataset.columns),
  }));
  if (!films.length) return;
  const button = player.querySelector("#play"), bar = player.querySelector("#scrub"), told = player.querySelector("#told");
  const num = Math.max(...films.map((film) => film.num));
  const period = 1000 * Math.max(...films.map((film) => Number(film.canvas.dataset.seconds))) / num;
  const REST = 700 / period; // on the last frame, in frames: the end of the path can be seen
  let now = 0, playing = false, last = 0;

  function show() {
    const at = Math.min(now, num - 1) / Math.max(1, num - 1);
    for (const film of films) {
      if (!film.image.complete || !film.image.naturalWidth) continue;
      const i = Math.round(at * (film.num - 1)), { width, height } = film.canvas;
      film.canvas.getContext("2d").drawImage(
        film.image, (i % film.columns) * width, Math.floor(i / film.columns) * height, width, height, 0, 0, width, height);
    }
    const frame = Math.min(Math.floor(now), num - 1);
    bar.value = String(frame);
    told.textContent = `${frame + 1} / ${num}`;
    bar.setAttribute("aria-valuetext", `frame ${frame + 1} of ${num}`);
  }
  function tick(time) {
    if (!playing) return;
    const before = Math.floor(now);
    now += Math.min(time - last, 1000) / period;
    last = time;
    if (now >= num + REST) now = 0;
    if (Math.floor(now) !== before) show();
    requestAnimationFrame(tick);
  }
  function play(on) {
    playing = on;
    button.setAttribute("aria-pressed", String(on));
    button.textContent = on ? "Pause" : "Play";
    if (on) requestAnimationFrame((time) => { last = time; tick(time); });
  }
  function seek(frame) {
    play(false);
    now = (frame + num) % num;
    show();
  }
  button.addEventListener("click", () => play(!playing));
  bar.max = String(num - 1);
  bar.addEventListener("input", () => seek(Number(bar.value)));
  player.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const frame = Math.min(Math.floor(now), num - 1);
    const act = { " ": () => play(!playing), ArrowRight: () => seek(frame + 1), ArrowLeft: () => seek(frame - 1),
      Home: () => seek(0), End: () => seek(num - 1) }[event.key];
    if (!act || (event.key === " " && event.target === button)) return; // the button's own click follows
    event.preventDefault();
    act();
  });
  player.querySelector(".controls").hidden = false;
  Promise.allSettled(films.map((film) => film.image.decode())).then(() => {
    show();
    play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  });
})();
