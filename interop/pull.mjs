// A body by its sha256, from one holder.

import { request } from './requests.mjs'
import { bytes, hex, sha256 } from './wire.mjs'

const PROTOCOL = '/p2pdfl/blob/1'
const BODY_BYTES_MAX = 64 << 20

export async function pull (node, peer, digest) {
  const body = await request(node, peer, PROTOCOL, bytes(digest), BODY_BYTES_MAX)
  if (hex(sha256(body)) !== digest) throw new Error(body.length ? 'the body is not what its digest says' : 'not held')
  return body
}
