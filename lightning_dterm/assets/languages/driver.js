;(() => {
  'use strict';
  const fs = typeof require === 'function' ? require('fs') : process.getBuiltinModule('fs');
  const input = fs.readFileSync(0, 'utf8').split('\n');
  const mark = input[0];
  const read = (v) => {
    if (Array.isArray(v)) return v.map(read);
    if (v === null || typeof v !== 'object') return v;
    if ('int' in v) return BigInt(v.int);
    if ('float' in v) return { inf: Infinity, '-inf': -Infinity, nan: NaN }[v.float] ?? Number(v.float);
    if ('set' in v) return new Set(v.set.map(read));
    const pairs = v.map.map(([key, value]) => [read(key), read(value)]);
    return pairs.every(([key]) => typeof key === 'string') ? Object.fromEntries(pairs) : new Map(pairs);
  };
  const show = (v, depth) => {
    if (depth > 60) throw new RangeError('nested too deeply');
    if (v === undefined || v === null) return null;
    if (typeof v === 'bigint') return { int: String(v) };
    if (typeof v === 'number') {
      if (Number.isSafeInteger(v) && !Object.is(v, -0)) return v;
      return { float: Number.isNaN(v) ? 'nan' : v === Infinity ? 'inf' : v === -Infinity ? '-inf' : String(v) };
    }
    if (typeof v === 'string' || typeof v === 'boolean') return v;
    if (Array.isArray(v) || ArrayBuffer.isView(v)) return Array.from(v, (item) => show(item, depth + 1));
    if (v instanceof Set) return { set: Array.from(v, (item) => show(item, depth + 1)) };
    if (v instanceof Map) return { map: Array.from(v, (pair) => show(pair, depth + 1)) };
    if (typeof v !== 'object') throw new TypeError('not plain data: ' + typeof v);
    return { map: Object.entries(v).map((pair) => show(pair, depth + 1)) };
  };
  const say = (kind, text) => fs.writeSync(1, '\n' + mark + kind + text + '\n');
  const entry = ENTRY;
  for (const line of input.slice(1)) {
    if (!line) continue;
    try {
      say('=', JSON.stringify(show(entry(...read(JSON.parse(line))), 0)));
    } catch (error) {
      say('!', String(error && error.name) + ': ' + String(error && error.message).slice(0, 300).replace(/\s+/g, ' '));
    }
  }
  process.exit(0);
})();
