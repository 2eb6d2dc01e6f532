// A canvas that is turned: by mouse and touch, by arrow keys, closer with + and -, back with 0.
const SCENES = JSON.parse(document.getElementById("scenes").textContent);

function orbit(canvas, start, draw) {
  const state = { ...start };
  let waiting = false;
  const redraw = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const ratio = Math.min(devicePixelRatio || 1, 2);
      canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
      canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
      draw(state, ratio);
    });
  };
  const turn = (yaw, pitch, zoom = 1) => {
    state.yaw += yaw;
    state.pitch = Math.min(1.5, Math.max(-1.5, state.pitch + pitch));
    state.zoom = Math.min(8, Math.max(0.2, state.zoom * zoom));
    redraw();
  };
  const fingers = new Map();
  const apart = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a.x - b.x, a.y - b.y); };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const finger = fingers.get(event.pointerId);
    if (!finger) return;
    const wide = fingers.size === 2 ? apart() : 0, dx = event.clientX - finger.x, dy = event.clientY - finger.y;
    finger.x = event.clientX;
    finger.y = event.clientY;
    if (wide) turn(0, 0, apart() / wide);
    else turn(0.01 * dx, 0.01 * dy);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) return; // else the page scrolls
    event.preventDefault();
    turn(0, 0, Math.exp(-0.0015 * event.deltaY));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1], "+": [0, 0, 1.15],
      "=": [0, 0, 1.15], "-": [0, 0, 1 / 1.15] }[event.key];
    if ((!step && event.key !== "0") || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (step) turn(...step);
    else { Object.assign(state, start); redraw(); }
  });
  new ResizeObserver(redraw).observe(canvas);
  return redraw;
}

// Fills a <select> with names; `pick` is called with the index that is chosen.
function choices(select, names, pick) {
  names.forEach((name, i) => select.add(new Option(name, String(i))));
  select.addEventListener("change", () => pick(Number(select.value)));
}
