// Camera paths in space, parallel projection; shadows on a floor below tell depth from height. x right, y down, z forward.
(() => {
  const canvas = document.getElementById("paths");
  if (!canvas) return;
  const moves = (s) => s.paths.some((path) => path.centres.some((p) => Math.hypot(...p) > 0.01));
  const first = Math.max(0, SCENES.paths.findIndex(moves));
  let scene = SCENES.paths[first];
  const redraw = orbit(canvas, { yaw: -0.5, pitch: 0.45, zoom: 1 }, (state, ratio) => {
    const pen = canvas.getContext("2d"), style = getComputedStyle(canvas);
    const ink = (name) => style.getPropertyValue(`--${name}`);
    const all = scene.paths.flatMap((path) => path.centres);
    const low = [0, 1, 2].map((k) => Math.min(0, ...all.map((p) => p[k])));
    const high = [0, 1, 2].map((k) => Math.max(0, ...all.map((p) => p[k])));
    const reach = Math.max(0.3, ...low.map((a, k) => high[k] - a));
    const floor = high[1] + 0.25 * reach, ray = 0.16 * reach;
    const middle = low.map((a, k) => (a + (k === 1 ? floor : high[k])) / 2);
    const [cy, sy, cp, sp] = [Math.cos(state.yaw), Math.sin(state.yaw), Math.cos(state.pitch), Math.sin(state.pitch)];
    const scale = 0.72 * Math.min(canvas.width, canvas.height) * state.zoom / reach;
    const at = (p) => {
      const [x, y, z] = p.map((a, k) => a - middle[k]);
      const ahead = -sy * x + cy * z;
      return [canvas.width / 2 + scale * (cy * x + sy * z), canvas.height / 2 + scale * (cp * y - sp * ahead)];
    };
    const line = (points, colour, width, alpha = 1) => {
      pen.beginPath();
      points.forEach((p, i) => pen[i ? "lineTo" : "moveTo"](...at(p)));
      Object.assign(pen, { strokeStyle: colour, lineWidth: width * ratio, globalAlpha: alpha, lineCap: "round", lineJoin: "round" });
      pen.stroke();
    };
    const down = (p) => [p[0], floor, p[2]];
    for (let k = -2; k <= 2; k++) {
      const [x, z, a] = [middle[0] + k * reach / 2, middle[2] + k * reach / 2, reach];
      line([[x, floor, middle[2] - a], [x, floor, middle[2] + a]], ink("line"), 1);
      line([[middle[0] - a, floor, z], [middle[0] + a, floor, z]], ink("line"), 1);
    }
    pen.font = `${12 * ratio}px system-ui, sans-serif`;
    ["x", "y", "z"].forEach((name, k) => {
      const tip = [0, 0, 0];
      tip[k] = 0.3 * reach;
      line([[0, 0, 0], tip], ink("muted"), 1);
      Object.assign(pen, { fillStyle: ink("muted"), globalAlpha: 1 });
      pen.fillText(name, ...at(tip.map((v) => 1.2 * v)));
    });
    for (const path of scene.paths) {
      const colour = ink(path.colour), wide = path.colour === "asked" ? 6 : 2, n = path.centres.length;
      line(path.centres.map(down), colour, wide * 0.7, 0.3);
      line(path.centres, colour, wide);
      for (const i of new Set([0, n >> 1, n - 1])) {
        line([path.centres[i], path.centres[i].map((v, k) => v + ray * path.looks[i][k])], colour, wide * 0.6, 0.85);
      }
      pen.beginPath();
      pen.arc(...at(path.centres[n - 1]), (wide * 0.6 + 2) * ratio, 0, 7);
      Object.assign(pen, { fillStyle: colour, globalAlpha: 1 });
      pen.fill();
    }
  });
  const select = document.getElementById("paths-clip");
  choices(select, SCENES.paths.map((s) => s.name), (i) => { scene = SCENES.paths[i]; redraw(); });
  select.value = String(first);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.getElementById("space").hidden = false;
})();
