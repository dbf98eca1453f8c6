// SHA-256 from a state in the middle (FIPS 180-4), to prove a chunk of a body by itself.

const ROUND = primes(64).map(prime => fraction(Math.cbrt(prime)))
export const INITIAL_STATE = primes(8).map(prime => fraction(Math.sqrt(prime)).toString(16).padStart(8, '0')).join('')

/** The state after whole blocks. */
export function stateAfter (state, blocks) {
  const view = new DataView(blocks.buffer, blocks.byteOffset, blocks.byteLength)
  let words = Array.from({ length: 8 }, (_, i) => new DataView(state.buffer, state.byteOffset).getUint32(4 * i))
  for (let at = 0; at < blocks.length; at += 64) words = compress(words, view, at)
  const after = new Uint8Array(32)
  words.forEach((word, i) => new DataView(after.buffer).setUint32(4 * i, word))
  return after
}

/** The digest of a message of which `before` bytes led to the state, and `rest` is the rest. */
export function digestAfter (state, before, rest) {
  const padded = new Uint8Array(Math.ceil((rest.length + 9) / 64) * 64)
  padded.set(rest)
  padded[rest.length] = 0x80
  new DataView(padded.buffer).setBigUint64(padded.length - 8, 8n * BigInt(before + rest.length))
  return stateAfter(state, padded)
}

function compress (words, view, at) {
  const w = new Uint32Array(64)
  for (let i = 0; i < 16; i++) w[i] = view.getUint32(at + 4 * i)
  for (let i = 16; i < 64; i++) {
    const s0 = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ (w[i - 15] >>> 3)
    const s1 = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ (w[i - 2] >>> 10)
    w[i] = w[i - 16] + s0 + w[i - 7] + s1
  }
  let [a, b, c, d, e, f, g, h] = words
  for (let i = 0; i < 64; i++) {
    const s1 = turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)
    const t1 = (h + s1 + ((e & f) ^ (~e & g)) + ROUND[i] + w[i]) >>> 0
    const s0 = turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)
    const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) >>> 0;
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) >>> 0, c, b, a, (t1 + t2) >>> 0]
  }
  return [a, b, c, d, e, f, g, h].map((word, i) => (word + words[i]) >>> 0)
}

function turn (word, by) {
  return (word >>> by) | (word << (32 - by))
}

function primes (count) {
  const found = []
  for (let n = 2; found.length < count; n++) if (found.every(prime => n % prime)) found.push(n)
  return found
}

/** The first 32 bits behind the point. */
function fraction (value) {
  return Math.floor((value % 1) * 2 ** 32)
}
