// Pure functions on class ids, an array of height x width, row by row. Pixel centres are at whole coordinates, as in
// semseg_diffusers.masks.editing.shapes: a pixel is inside a shape or outside, and no edge is blended.

// Return the ids of runs [id, count, id, count, ...].
function unpackRuns(runs, length) {
  const ids = new Int16Array(length);
  let at = 0;
  for (let i = 0; i < runs.length; i += 2) {
    ids.fill(runs[i], at, at + runs[i + 1]);
    at += runs[i + 1];
  }
  return ids;
}

function packRuns(ids) {
  const runs = [];
  for (let start = 0, at = 1; at <= ids.length; at++) {
    if (at === ids.length || ids[at] !== ids[start]) {
      runs.push(ids[start], at - start);
      start = at;
    }
  }
  return runs;
}

// Set all pixels at most `radius` from the line between two points.
function drawStroke(ids, width, height, from, to, radius, id) {
  const [x0, y0] = from, [x1, y1] = to;
  const left = Math.max(0, Math.floor(Math.min(x0, x1) - radius));
  const right = Math.min(width - 1, Math.ceil(Math.max(x0, x1) + radius));
  const top = Math.max(0, Math.floor(Math.min(y0, y1) - radius));
  const bottom = Math.min(height - 1, Math.ceil(Math.max(y0, y1) + radius));
  const dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy;
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      const along = length ? Math.min(1, Math.max(0, ((x - x0) * dx + (y - y0) * dy) / length)) : 0;
      if (Math.hypot(x - x0 - along * dx, y - y0 - along * dy) <= radius) ids[y * width + x] = id;
    }
  }
}

// Set the connected pixels of one class around a pixel, with four neighbours each.
function floodFill(ids, width, height, x, y, id) {
  const before = ids[y * width + x];
  if (before === id) return;
  const open = [y * width + x];
  ids[open[0]] = id;
  while (open.length) {
    const at = open.pop(), column = at % width;
    const around = [at - width, at + width, column > 0 ? at - 1 : -1, column < width - 1 ? at + 1 : -1];
    for (const next of around) {
      if (next >= 0 && next < ids.length && ids[next] === before) {
        ids[next] = id;
        open.push(next);
      }
    }
  }
}

// Return the connected pixels of one class around a pixel, corners included, as 1 in an array of zeros.
function connectedPart(ids, width, height, x, y) {
  const id = ids[y * width + x], part = new Uint8Array(width * height), open = [[x, y]];
  part[y * width + x] = 1;
  while (open.length) {
    const [column, row] = open.pop();
    for (let below = Math.max(0, row - 1); below <= Math.min(height - 1, row + 1); below++) {
      for (let right = Math.max(0, column - 1); right <= Math.min(width - 1, column + 1); right++) {
        const at = below * width + right;
        if (ids[at] !== id || part[at]) continue;
        part[at] = 1;
        open.push([right, below]);
      }
    }
  }
  return part;
}

// Fill by the even-odd rule, edges included.
function fillPolygon(ids, width, height, points, id) {
  for (let y = 0; y < height; y++) {
    const crossings = [];
    points.forEach(([x0, y0], i) => {
      const [x1, y1] = points[(i + 1) % points.length];
      if (y0 > y !== y1 > y) crossings.push((x1 - x0) * (y - y0) / (y1 - y0) + x0);
    });
    crossings.sort((a, b) => a - b);
    for (let i = 0; i + 1 < crossings.length; i += 2) {
      const last = Math.min(width - 1, Math.floor(crossings[i + 1]));
      for (let x = Math.max(0, Math.ceil(crossings[i])); x <= last; x++) ids[y * width + x] = id;
    }
  }
  points.forEach((point, i) => drawStroke(ids, width, height, point, points[(i + 1) % points.length], 1e-6, id));
}

// Place a shape {height, width, ids} at a height of `size` pixels, the middle of its foot at a point. Pixels where it
// holds `hole` stay.
function placeShape(ids, width, height, shape, foot, size, mirrored, hole) {
  const factor = size / shape.height;
  const shownHeight = Math.max(1, Math.round(size)), shownWidth = Math.max(1, Math.round(shape.width * factor));
  const top = Math.round(foot[1]) - shownHeight + 1, left = Math.round(foot[0] - (shownWidth - 1) / 2);
  for (let row = Math.max(0, -top); row < shownHeight && top + row < height; row++) {
    const from = Math.floor((row + 0.5) * shape.height / shownHeight) * shape.width;
    for (let column = Math.max(0, -left); column < shownWidth && left + column < width; column++) {
      const own = Math.floor((column + 0.5) * shape.width / shownWidth);
      const id = shape.ids[from + (mirrored ? shape.width - 1 - own : own)];
      if (id !== hole) ids[(top + row) * width + left + column] = id;
    }
  }
}

// Return ids as a PNG of one byte a pixel, whose palette holds [red, green, blue] of each id, `colors`, and of `unknown`
// for the others: what LabelSet.decode makes.
async function encodePng(ids, width, height, colors, unknown) {
  const crcOf = (bytes) => {
    let crc = -1;
    for (const byte of bytes) {
      crc ^= byte;
      for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc >>> 0;
  };
  const chunk = (type, data) => {
    const bytes = new Uint8Array(data.length + 12), view = new DataView(bytes.buffer);
    view.setUint32(0, data.length);
    bytes.set(new TextEncoder().encode(type), 4);
    bytes.set(data, 8);
    view.setUint32(data.length + 8, crcOf(bytes.subarray(4, data.length + 8)));
    return bytes;
  };
  const header = new Uint8Array(13), view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, 3], 8);  // bits of a pixel; with a palette
  const palette = new Uint8Array(768), rows = new Uint8Array((width + 1) * height);
  for (let id = 0; id < 256; id++) palette.set(colors[id] ?? colors[unknown], 3 * id);
  for (let row = 0; row < height; row++) rows.set(ids.subarray(row * width, (row + 1) * width), row * (width + 1) + 1);
  const packed = new Response(new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate")));
  const signature = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
  const data = new Uint8Array(await packed.arrayBuffer());
  const parts = [signature, chunk("IHDR", header), chunk("PLTE", palette), chunk("IDAT", data), chunk("IEND", [])];
  return new Blob(parts, { type: "image/png" });
}
