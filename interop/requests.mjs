// Requests and replies over a stream of their own: a 4-byte big-endian length, then that many bytes, each way.

import { concat } from './wire.mjs'

const TIMEOUT_MS = 20_000

/** A peer has one stream for a follower at a time. */
let last = Promise.resolve()

export async function request (node, peer, protocol, body, replyBytesMax) {
  return converse(node, peer, protocol, ask => ask(body, replyBytesMax))
}

/** talk: takes ask(body, replyBytesMax), which resolves to the reply, any number of times one after the other. */
export function converse (node, peer, protocol, talk) {
  const outcome = last.then(() => open(node, peer, protocol, talk))
  last = outcome.catch(() => {})
  return outcome
}

async function open (node, peer, protocol, talk) {
  const signal = AbortSignal.timeout(TIMEOUT_MS)
  const stream = await node.dialProtocol(peer, protocol, { signal })
  signal.addEventListener('abort', () => stream.abort(new Error('no reply in time')))
  const incoming = stream[Symbol.asyncIterator]()
  let unread = new Uint8Array()

  async function read (count) {
    const parts = [unread]
    let there = unread.length
    while (there < count) {
      const { value, done } = await incoming.next()
      if (done) throw new Error('stream ended early')
      parts.push(value.subarray())
      there += value.length ?? value.byteLength
    }
    const data = concat(...parts)
    unread = data.slice(count)
    return data.slice(0, count)
  }

  async function ask (body, replyBytesMax) {
    const prefix = new Uint8Array(4)
    new DataView(prefix.buffer).setUint32(0, body.length)
    stream.send(concat(prefix, body))
    const length = new DataView((await read(4)).buffer).getUint32(0)
    if (length > replyBytesMax) throw new Error('reply longer than allowed')
    return read(length)
  }

  try {
    const result = await talk(ask)
    await stream.close()
    return result
  } catch (error) {
    stream.abort(error)
    throw error
  }
}
