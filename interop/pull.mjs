// A body by its sha256, from one holder, chunk by chunk from its end.

import { converse } from './requests.mjs'
import { INITIAL_STATE, digestAfter, stateAfter } from './sha256.mjs'
import { bytes, concat, hex } from './wire.mjs'

const PROTOCOL = '/p2pdfl/blob/2'
const CHUNK_BYTES = 131072
const HEAD_BYTES = 40
const BODY_BYTES_MAX = 64 << 20

/** Throws at the first chunk that the digest does not prove. */
export async function pull (node, peer, digest) {
  const chunks = []
  let length = null
  let count = 1
  let next = digest // what the next chunk must lead to
  await converse(node, peer, PROTOCOL, async ask => {
    for (let position = 0; position < count; position++) {
      const reply = await ask(concat(bytes(digest), u32(position)), HEAD_BYTES + CHUNK_BYTES)
      if (reply.length === 0) throw new Error('not held')
      if (reply.length < HEAD_BYTES) throw new Error('not a chunk')
      const view = new DataView(reply.buffer, reply.byteOffset)
      const said = Number(view.getBigUint64(0))
      if (said > BODY_BYTES_MAX || (length ?? said) !== said) throw new Error('another length')
      length = said
      count = Math.max(1, Math.ceil(length / CHUNK_BYTES))
      const start = (count - 1 - position) * CHUNK_BYTES
      const [state, chunk] = [reply.slice(8, HEAD_BYTES), reply.slice(HEAD_BYTES)]
      if (chunk.length !== Math.min(CHUNK_BYTES, length - start)) throw new Error('chunk of another length')
      const leads = position === 0 ? digestAfter(state, start, chunk) : stateAfter(state, chunk)
      if (hex(leads) !== next) throw new Error('the chunk is not what the digest says')
      next = hex(state)
      chunks.unshift(chunk)
    }
  })
  if (next !== INITIAL_STATE) throw new Error('the body does not begin where sha256 begins')
  return concat(...chunks)
}

function u32 (value) {
  const word = new Uint8Array(4)
  new DataView(word.buffer).setUint32(0, value)
  return word
}
