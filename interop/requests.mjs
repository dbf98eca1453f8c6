// One request, one reply, over a fresh stream: a 4-byte big-endian length, then that many bytes, each way.

import { concat } from './wire.mjs'

const TIMEOUT_MS = 20_000

/** A peer answers one question of a follower at a time. */
let last = Promise.resolve()

export function request (node, peer, protocol, body, replyBytesMax) {
  const reply = last.then(() => ask(node, peer, protocol, body, replyBytesMax))
  last = reply.catch(() => {})
  return reply
}

async function ask (node, peer, protocol, body, replyBytesMax) {
  const signal = AbortSignal.timeout(TIMEOUT_MS)
  const stream = await node.dialProtocol(peer, protocol, { signal })
  signal.addEventListener('abort', () => stream.abort(new Error('no reply in time')))
  stream.send(concat(length(body), body))
  const parts = []
  let received = 0
  let whole = Infinity
  for await (const part of stream) {
    const piece = part.subarray()
    parts.push(piece)
    received += piece.length
    if (whole === Infinity && received >= 4) {
      whole = 4 + new DataView(concat(...parts).buffer).getUint32(0)
      if (whole - 4 > replyBytesMax) throw abort(stream, 'reply longer than allowed')
    }
    if (received >= whole) {
      const reply = concat(...parts)
      await stream.close()
      return reply.slice(4, whole)
    }
  }
  throw new Error('stream ended early')
}

function length (body) {
  const prefix = new Uint8Array(4)
  new DataView(prefix.buffer).setUint32(0, body.length)
  return prefix
}

function abort (stream, why) {
  const error = new Error(why)
  stream.abort(error)
  return error
}
