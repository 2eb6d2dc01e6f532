// A reconstruction as isotropic Gaussians: WebGL 2, sorted from far to near for each view, blended over each other.
(() => {
  const canvas = document.getElementById("splats");
  if (!canvas) return;
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, preserveDrawingBuffer: true });
  if (!gl) {
    document.getElementById("splats-part").classList.add("without");
    return;
  }
  const shader = (kind, source) => {
    const made = gl.createShader(kind);
    gl.shaderSource(made, source);
    gl.compileShader(made);
    return made;
  };
  const program = gl.createProgram();
  gl.attachShader(program, shader(gl.VERTEX_SHADER, `#version 300 es
    layout(location = 0) in vec4 place;   // xyz in the camera of the view, radius
    layout(location = 1) in vec3 colour;
    uniform vec2 focal;                   // over half the width, over half the height
    out vec3 tint;
    out vec2 at;
    void main() {
      at = 2.5 * vec2(float(gl_VertexID & 1) * 2.0 - 1.0, float(gl_VertexID >> 1) * 2.0 - 1.0);
      tint = colour;
      vec2 centre = vec2(1.0, -1.0) * focal * (place.xy + place.w * at);
      gl_Position = place.z < 1e-3 ? vec4(2.0, 2.0, 2.0, 1.0) : vec4(centre, 0.0, place.z);
    }`));
  gl.attachShader(program, shader(gl.FRAGMENT_SHADER, `#version 300 es
    precision mediump float;
    in vec3 tint;
    in vec2 at;
    out vec4 colour;
    void main() {
      float alpha = 0.97 * exp(-0.5 * dot(at, at));
      if (alpha < 0.02) discard;
      colour = vec4(tint * alpha, alpha);
    }`));
  gl.linkProgram(program);
  gl.useProgram(program);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  const buffer = gl.createBuffer();
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.enableVertexAttribArray(0);
  gl.vertexAttribPointer(0, 4, gl.FLOAT, false, 20, 0);
  gl.vertexAttribDivisor(0, 1);
  gl.enableVertexAttribArray(1);
  gl.vertexAttribPointer(1, 3, gl.UNSIGNED_BYTE, true, 20, 16);
  gl.vertexAttribDivisor(1, 1);

  // Positions and radii as numbers; the file holds 16 and 8 bits of them.
  function unpack(scene) {
    const bytes = Uint8Array.from(atob(scene.data), (c) => c.charCodeAt(0)), n = scene.num;
    const packed = new Uint16Array(bytes.buffer, 0, 3 * n), place = new Float32Array(4 * n);
    for (let i = 0; i < n; i++) {
      for (let k = 0; k < 3; k++) place[4 * i + k] = scene.low[k] + scene.size[k] * packed[3 * i + k] / 65535;
      place[4 * i + 3] = scene.radius * bytes[9 * n + i] / 255;
    }
    return { ...scene, place, colour: bytes.subarray(6 * n, 9 * n) };
  }
  let scene = unpack(SCENES.splats[0]);
  const redraw = orbit(canvas, { yaw: 0, pitch: 0, zoom: 1 }, (state) => {
    const n = scene.num, d = scene.distance, { place, colour } = scene;
    const [cy, sy, cp, sp] = [Math.cos(state.yaw), Math.sin(state.yaw), Math.cos(state.pitch), Math.sin(state.pitch)];
    const seen = new Float32Array(4 * n), order = new Uint32Array(n);
    for (let i = 0; i < n; i++) { // around the point straight ahead at the median depth
      const [x, y, z] = [place[4 * i], place[4 * i + 1], place[4 * i + 2] - d];
      const ahead = -sy * x + cy * z;
      seen.set([cy * x + sy * z, cp * y - sp * ahead, sp * y + cp * ahead + d / state.zoom, place[4 * i + 3]], 4 * i);
      order[i] = i;
    }
    order.sort((a, b) => seen[4 * b + 2] - seen[4 * a + 2]);
    const rows = new ArrayBuffer(20 * n), floats = new Float32Array(rows), bytes = new Uint8Array(rows);
    order.forEach((i, row) => {
      floats.set(seen.subarray(4 * i, 4 * i + 4), 5 * row);
      bytes.set(colour.subarray(3 * i, 3 * i + 3), 20 * row + 16);
    });
    gl.bufferData(gl.ARRAY_BUFFER, rows, gl.DYNAMIC_DRAW);
    const fit = Math.min(1, canvas.width / canvas.height / scene.aspect); // the whole frame is in view
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.uniform2f(gl.getUniformLocation(program, "focal"),
      2 * scene.focal * fit * canvas.height / canvas.width, 2 * scene.focal * fit);
    gl.clearColor(0.09, 0.1, 0.11, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, n);
  });
  choices(document.getElementById("splats-clip"), SCENES.splats.map((s) => s.name), (i) => {
    scene = unpack(SCENES.splats[i]);
    redraw();
  });
})();
