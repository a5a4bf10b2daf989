// Parses programs and never runs one. Request: u32 length, UTF-8 source. Answer: u32 length, JSON.
'use strict';
const fs = require('fs');
const vm = require('vm');

function read(size) {
  const buffer = Buffer.alloc(size);
  let filled = 0;
  while (filled < size) {
    let count;
    try {
      count = fs.readSync(0, buffer, filled, size - filled, null);
    } catch (error) {
      if (error.code === 'EAGAIN') continue;
      throw error;
    }
    if (count === 0) process.exit(0);
    filled += count;
  }
  return buffer;
}

function write(text) {
  const body = Buffer.from(text, 'utf8');
  const head = Buffer.alloc(4);
  head.writeUInt32BE(body.length, 0);
  const all = Buffer.concat([head, body]);
  for (let at = 0; at < all.length; ) at += fs.writeSync(1, all, at);
}

// As a CommonJS module (top-level return allowed), as node itself would load it.
function asScript(source) {
  try {
    vm.compileFunction(source, ['exports', 'require', 'module', '__filename', '__dirname'], { filename: 'program.js' });
    return null;
  } catch (error) {
    return error;
  }
}

function asModule(source) {
  if (!vm.SourceTextModule) return new SyntaxError('modules are not available');
  try {
    new vm.SourceTextModule(source, { identifier: 'program.js' });
    return null;
  } catch (error) {
    return error;
  }
}

// The decorated stack: "name:LINE", the source line, a line of carets.
function describe(error) {
  const lines = String(error.stack).split('\n');
  const place = /:(\d+)$/.exec(lines[0]);
  const carets = /^([ \t]*)(\^+)/.exec(lines[2] || '');
  return {
    message: String(error.message).slice(0, 400),
    kind: String(error.name),
    line: place && carets ? Number(place[1]) : null,
    column: carets ? carets[1].length + 1 : null,
    width: carets ? carets[2].length : null,
  };
}

for (;;) {
  const source = read(read(4).readUInt32BE(0)).toString('utf8');
  let error = asScript(source);
  let kind = 'script';
  if (error && /\b(import|export|await)\b/.test(source)) {
    const other = asModule(source);
    if (other === null || /^Cannot use import|Unexpected token 'export'|import.meta/.test(error.message)) {
      error = other;
      kind = 'module';
    }
  }
  write(JSON.stringify({ kind, error: error && describe(error) }));
}
