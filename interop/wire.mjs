// The wire format of docs/wire.md, once more and in another language: nothing here is shared with the Python peers.

import zlib from 'node:zlib'
import { decode as unpack, encode as pack } from '@msgpack/msgpack'
import { secp256k1 } from '@noble/curves/secp256k1.js'
import { sha256 as noble256 } from '@noble/hashes/sha2.js'
import { keccak_256 as keccak } from '@noble/hashes/sha3.js'

const { Point } = secp256k1
const ORDER = Point.Fn.ORDER

export const KIND = { COMMIT: 1, PROPOSE: 2, NOTARIZE: 3, CLOSE: 4, ACCUSE: 5, JUDGE: 6 }
export const ZERO = '00'.repeat(32)
export const PAYLOAD_BYTES_MAX = 1 << 20
export const PACKET_BYTES_MAX = PAYLOAD_BYTES_MAX + 512
export const RESYNC_FRAME_BYTES_MAX = 8 << 20
const MEMBER_COUNT_MAX = 256
const VIEW_COUNT_MAX = 64
const RESYNC_HAVE_MAX = 8192

export const sha256 = bytes => noble256(bytes)
export const hex = bytes => Buffer.from(bytes).toString('hex')
export const bytes = text => new Uint8Array(Buffer.from(text.replace(/^0x/, ''), 'hex'))
export const concat = (...parts) => new Uint8Array(Buffer.concat(parts))
export const ascii = text => new Uint8Array(Buffer.from(text, 'ascii'))
const equal = (a, b) => Buffer.compare(a, b) === 0

// --- canonical msgpack -----------------------------------------------------------------------------------------------

// A type is a function that takes a decoded value and returns it as a script sees it, or throws.  Byte strings become
// hex text, except payloads.
const fixed = count => value => {
  if (!(value instanceof Uint8Array) || value.length !== count) throw new Error(`not ${count} bytes`)
  return hex(value)
}
const blob = (min, max) => value => {
  if (!(value instanceof Uint8Array) || value.length < min || value.length > max) throw new Error('blob out of range')
  return value
}
const integer = (min, end) => value => {
  if (!Number.isInteger(value) || value < min || value >= end) throw new Error('integer out of range')
  return value
}
const list = (item, min, max) => value => {
  if (!Array.isArray(value) || value.length < min || value.length > max) throw new Error('list out of range')
  return value.map(item)
}
const optional = item => value => (value === null ? null : item(value))
const record = fields => value => {
  const names = Object.keys(fields)
  if (!Array.isArray(value) || value.length !== names.length) throw new Error(`not an array of ${names.length}`)
  return Object.fromEntries(names.map((name, place) => [name, fields[name](value[place])]))
}

const digest = fixed(32)
const point = fixed(33)
const scalar = fixed(32)
const signature = fixed(64)
const u32 = integer(0, 2 ** 32)
const member = integer(0, MEMBER_COUNT_MAX)
const kind = integer(1, 7)
const outcome = integer(1, 5)

export const Envelope = record({ task: digest, epoch: u32, round: u32, view: u32, kind, body: digest })
export const Packet = record({ envelope: Envelope, signature, payload: blob(1, PAYLOAD_BYTES_MAX) })
const Dealing = record({
  encrypted_shares: list(point, 1, MEMBER_COUNT_MAX),
  commitments: list(point, 1, MEMBER_COUNT_MAX),
  response: list(scalar, 1, MEMBER_COUNT_MAX)
})
const Share = record({ decrypted: point, commitment_generator: point, commitment_decrypted: point, response: scalar })
const Commit = record({ parent: digest, update: digest, dealing: Dealing, share: optional(Share) })
const Equivocation = record({
  member, epoch: u32, round: u32, view: u32, kind, body_low: digest, body_high: digest
})
const Verdict = record({ epoch: u32, round: u32, accused: member, accuser: member, audited_round: u32, outcome })
const Contents = record({
  commits: list(record({ member, body: digest }), 0, MEMBER_COUNT_MAX),
  updates: list(record({ member, update: digest }), 0, MEMBER_COUNT_MAX),
  evidence: list(Equivocation, 0, MEMBER_COUNT_MAX),
  verdicts: list(Verdict, 0, MEMBER_COUNT_MAX),
  banned: digest
})
const Head = record({
  task: digest, epoch: u32, round: u32, parent: digest, contents: digest, state: digest, next_members: digest,
  chain_block: digest
})
const Ballot = record({ member, signature })
export const Certificate = record({
  epoch: u32, round: u32, view: u32, kind: integer(3, 5), head: digest, ballots: list(Ballot, 1, MEMBER_COUNT_MAX)
})
const Propose = record({
  contents: Contents,
  head: Head,
  notarization: optional(Certificate),
  skips: list(Certificate, 0, VIEW_COUNT_MAX),
  equivocations: list(
    record({ entry: Equivocation, signature_low: signature, signature_high: signature }), 0, MEMBER_COUNT_MAX
  ),
  verdicts: list(record({ entry: Verdict, ballots: list(Ballot, 1, MEMBER_COUNT_MAX) }), 0, MEMBER_COUNT_MAX)
})
const Vote = record({ head: digest })
const Accuse = record({ accused: member, audited_round: u32 })
const Judge = record({ accused: member, accuser: member, audited_round: u32, outcome })

export const PAYLOAD = { 1: Commit, 2: Propose, 3: Vote, 4: Vote, 5: Accuse, 6: Judge }
export const ResyncRequest = record({ task: digest, round: u32, have: list(fixed(16), 0, RESYNC_HAVE_MAX) })
export const ResyncReply = record({ packets: list(Packet, 0, 512), certificates: list(Certificate, 0, 129) })

export const CheckpointRequest = record({ task: digest, epoch: u32 })
export const CheckpointReply = record({ checkpoint: optional(digest) })
const addresses = list(fixed(20), 1, MEMBER_COUNT_MAX)
export const Checkpoint = record({
  epoch: u32,
  lists: list(addresses, 2, 13),
  banned: list(fixed(20), 0, MEMBER_COUNT_MAX),
  rounds: list(record({
    proposal: Packet, commits: list(Packet, 1, MEMBER_COUNT_MAX), certificate: Certificate
  }), 1, 20)
})

/** The value that `data` is the one canonical encoding of; throws if it is none. */
export function decode (type, data, bytesMax) {
  if (data.length > bytesMax) throw new Error('too long')
  const value = unpack(data, { maxStrLength: 0, maxMapLength: 0, maxExtLength: 0 })
  if (!equal(pack(value), data)) throw new Error('not canonical')
  return type(value)
}

/** Canonical bytes of what a script sees: hex text is a byte string. */
export function encode (value) {
  return pack(plain(value))
}

function plain (value) {
  if (typeof value === 'string') return bytes(value)
  if (Array.isArray(value)) return value.map(plain)
  if (value === null || typeof value === 'number' || value instanceof Uint8Array) return value
  return Object.values(value).map(plain)
}

export const packetId = packet => hex(sha256(concat(encode(packet.envelope), bytes(packet.signature)))).slice(0, 32)

// --- EIP-712, EIP-2098 ---------------------------------------------------------------------------------------------

const DOMAIN_TYPE = 'EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)'
const ENVELOPE_TYPE = 'Envelope(bytes32 task,uint64 epoch,uint64 round,uint64 view,uint8 kind,bytes32 body)'
const POSSESSION_TYPE = 'Possession(bytes32 task,address peer,bytes peerId)'

const word = value => bytes(BigInt(value).toString(16).padStart(64, '0'))
const addressWord = address => concat(new Uint8Array(12), bytes(address))
const hashed = text => keccak(ascii(text))

function typedDigest (domain, struct) {
  const separator = keccak(concat(
    hashed(DOMAIN_TYPE), hashed('p2pdfl'), hashed('1'), word(domain.chain_id), addressWord(domain.contract)
  ))
  return keccak(concat(bytes('1901'), separator, keccak(struct)))
}

export function envelopeDigest (domain, envelope) {
  return typedDigest(domain, concat(
    hashed(ENVELOPE_TYPE), bytes(envelope.task), word(envelope.epoch), word(envelope.round), word(envelope.view),
    word(envelope.kind), bytes(envelope.body)
  ))
}

export function possessionDigest (domain, task, address, peerId) {
  return typedDigest(domain, concat(hashed(POSSESSION_TYPE), bytes(task), addressWord(address), hashed(peerId)))
}

/** The address whose key signed, as hex; throws if nobody's did. */
export function recover (digest, signature) {
  const raw = bytes(signature)
  const parity = raw[32] >> 7
  raw[32] &= 0x7f
  const parsed = secp256k1.Signature.fromBytes(raw, 'compact')
  if (parsed.hasHighS()) throw new Error('high s')
  return addressOf(parsed.addRecoveryBit(parity).recoverPublicKey(digest))
}

const addressOf = point => hex(keccak(point.toBytes(false).slice(1))).slice(24)

/** EIP-2098. */
export function sign (secret, digest) {
  const signed = secp256k1.sign(digest, bytes(secret), { prehash: false, format: 'recovered', lowS: true })
  const compact = signed.slice(1)
  compact[32] |= signed[0] << 7
  return hex(compact)
}

export const addressOfSecret = secret => addressOf(Point.BASE.multiply(BigInt('0x' + secret)))
export const pointOfSecret = secret => Point.BASE.multiply(BigInt('0x' + secret)).toHex(true)

// --- heads, certificates -------------------------------------------------------------------------------------------

export function headDigest (head) {
  return hex(sha256(concat(
    bytes(head.task), word(head.epoch), word(head.round), bytes(head.parent), bytes(head.contents), bytes(head.state),
    bytes(head.next_members), bytes(head.chain_block)
  )))
}

export const digestOf = value => hex(sha256(encode(value)))

export function listHash (addresses) {
  return hex(keccak(concat(word(32), word(addresses.length), ...addresses.map(addressWord))))
}

export const quorum = count => Math.floor(2 * count / 3) + 1
export const threshold = count => (count >= 4 ? Math.floor(count / 2) : 1)

/** Throws unless a quorum of distinct members of `list` (addresses, ascending) signed it. */
export function checkCertificate (certificate, domain, task, list) {
  const signers = new Set(certificate.ballots.map(ballot => ballot.member))
  if (signers.size !== certificate.ballots.length || signers.size < quorum(list.length)) throw new Error('no quorum')
  const { epoch, round, view, kind, head } = certificate
  const signed = envelopeDigest(domain, { task, epoch, round, view, kind, body: digestOf({ head }) })
  for (const ballot of certificate.ballots) {
    if (recover(signed, ballot.signature) !== list[ballot.member]) throw new Error('not the member that signed')
  }
}

// --- task id -------------------------------------------------------------------------------------------------------

const FLOATS = new Set(['audit_fraction', 'dirichlet', 'learning_rate', 'outer_learning_rate', 'outer_momentum'])

/** fields: name -> JSON text of its value, all fields of the task. */
export function taskId (fields) {
  const parts = Object.keys(fields).sort().map(name => {
    const value = FLOATS.has(name) ? JSON.stringify(floatHex(Number(fields[name]))) : fields[name]
    return `${JSON.stringify(name)}:${value}`
  })
  return hex(sha256(concat(ascii('p2pdfl/task/1\0'), ascii(`{${parts.join(',')}}`))))
}

/** As C's %a with all 13 digits: 0x1.8000000000000p-1. */
export function floatHex (value) {
  if (value === 0) return '0x0.0p+0'
  const view = new DataView(new ArrayBuffer(8))
  view.setFloat64(0, value)
  const bits = view.getBigUint64(0)
  const exponent = Number((bits >> 52n) & 0x7ffn)
  const mantissa = (bits & ((1n << 52n) - 1n)).toString(16).padStart(13, '0')
  const power = exponent === 0 ? -1022 : exponent - 1023
  return `${value < 0 ? '-' : ''}0x${exponent === 0 ? 0 : 1}.${mantissa}p${power < 0 ? '' : '+'}${power}`
}

// --- beacon: dealings, shares ----------------------------------------------------------------------------------------

const u64 = value => bytes(BigInt(value).toString(16).padStart(16, '0'))

function transcript (domain, ...parts) {
  const framed = parts.flatMap(part => [bytes(part.length.toString(16).padStart(8, '0')), part])
  return sha256(concat(ascii(domain + '\0'), ...framed))
}

const challenge = (domain, ...parts) => BigInt('0x' + hex(transcript(domain, ...parts))) % ORDER
const number = scalar => {
  const value = BigInt('0x' + scalar)
  if (value >= ORDER) throw new Error('scalar is not below the order')
  return value
}
const times = (point, factor) => (factor % ORDER === 0n ? Point.ZERO : point.multiplyUnsafe(factor % ORDER))
const decodePoint = text => {
  if (BigInt('0x' + text.slice(2)) >= ORDER) throw new Error('x is not below the order')
  return Point.fromHex(text)
}

export function dealingContext (task, round, dealer, keys, threshold) {
  return transcript('p2pdfl/pvss/dealing-context/1', bytes(task), u64(round), bytes(dealer), u64(keys.length),
    u64(threshold), ...keys.map(bytes))
}

export function shareContext (task, round, head, holder, index, count, threshold) {
  return transcript('p2pdfl/pvss/share-context/1', bytes(task), u64(round), bytes(head), bytes(holder), u64(index),
    u64(count), u64(threshold))
}

export function isDealing (context, dealing, keys, threshold) {
  const { encrypted_shares: shares, commitments, response } = dealing
  if (shares.length !== keys.length || commitments.length !== keys.length || response.length !== threshold) return false
  const e = challenge('p2pdfl/pvss/dealing/1', context, ...shares.map(bytes), ...commitments.map(bytes))
  const coefficients = response.map(number).reverse()
  return e !== 0n && keys.every((key, index) => {
    const z = coefficients.reduce((value, coefficient) => (value * BigInt(index + 1) + coefficient) % ORDER, 0n)
    const proven = times(decodePoint(key), z).add(times(decodePoint(shares[index]), e))
    return z !== 0n && decodePoint(commitments[index]).equals(proven)
  })
}

/** Per holder, the sum of its encrypted shares. */
export function sumDealings (dealings) {
  return dealings[0].encrypted_shares.map((_, holder) =>
    dealings.map(dealing => decodePoint(dealing.encrypted_shares[holder])).reduce((a, b) => a.add(b)).toHex(true))
}

export function isShare (context, key, summed, share) {
  const z = number(share.response)
  const parts = [key, share.decrypted, summed, share.commitment_generator, share.commitment_decrypted]
  const e = challenge('p2pdfl/dleq/1', context, ...parts.map(bytes))
  const first = times(Point.BASE, z).add(times(decodePoint(key), e))
  const second = times(decodePoint(share.decrypted), z).add(times(decodePoint(summed), e))
  return z !== 0n && e !== 0n && first.equals(decodePoint(share.commitment_generator)) &&
    second.equals(decodePoint(share.commitment_decrypted))
}

/** shares: Map of holder's index -> decrypted point. */
export function beacon (task, round, head, shares, threshold) {
  const chosen = [...shares.keys()].sort((a, b) => a - b).slice(0, threshold)
  if (chosen.length < threshold) throw new Error('too few shares')
  const sum = chosen.map(i => {
    const weight = chosen.filter(j => j !== i).reduce(
      (product, j) => product * BigInt(j + 1) % ORDER * Point.Fn.inv(Point.Fn.create(BigInt(j - i))) % ORDER, 1n
    )
    return times(decodePoint(shares.get(i)), weight)
  }).reduce((a, b) => a.add(b))
  return hex(transcript('p2pdfl/pvss/beacon/1', bytes(task), u64(round), bytes(head), bytes(sum.toHex(true))))
}

// --- updates ---------------------------------------------------------------------------------------------------------

/** The header of an update's bytes. */
export function updateHeader (update) {
  const view = new DataView(update.buffer, update.byteOffset, update.byteLength)
  return {
    task: hex(update.slice(0, 32)),
    round: Number(view.getBigUint64(32)),
    author: hex(update.slice(40, 60)),
    dimension: Number(view.getBigUint64(60))
  }
}

const CHUNK = { int8: 1024, int4: 256 }

/** Coordinates of what is not compressed. */
export function updateValues (update, codes = 'int8') {
  const { dimension } = updateHeader(update)
  const chunk = CHUNK[codes]
  const chunks = Math.ceil(dimension / chunk)
  const signed = new Int8Array(update.buffer, update.byteOffset + 68)
  // the lower half of a byte comes first; shifted up and down again its sign comes along
  const half = i => (signed[chunks + (i >> 1)] >> (i % 2 * 4) << 28) >> 28
  const code = i => codes === 'int8' ? signed[chunks + i] : half(i)
  return Array.from({ length: dimension }, (_, i) => code(i) * 2 ** signed[Math.floor(i / chunk)])
}

/** Whether this Node.js has zstd, from 22.15 on. */
export const hasZstd = typeof zlib.zstdDecompressSync === 'function'

/** The update as it was before it was compressed. */
export function expandUpdate (update, codes = 'int8') {
  const { dimension } = updateHeader(update)
  const length = Math.ceil(dimension / CHUNK[codes]) + Math.ceil(dimension / (codes === 'int8' ? 1 : 2))
  return concat(update.slice(0, 68), zlib.zstdDecompressSync(update.slice(68), { maxOutputLength: length }))
}

// --- draws -----------------------------------------------------------------------------------------------------------

export function shuffled (beacon, label, items) {
  const result = [...items]
  let counter = 0
  const below = bound => {
    const limit = 2n ** 64n / BigInt(bound) * BigInt(bound)
    for (;;) {
      const block = sha256(concat(ascii(`p2pdfl/draw/1\0${label}\0`), bytes(beacon), u64(counter++)))
      const value = BigInt('0x' + hex(block.slice(0, 8)))
      if (value < limit) return Number(value % BigInt(bound))
    }
  }
  for (let last = result.length - 1; last > 0; last--) {
    const other = below(last + 1);
    [result[last], result[other]] = [result[other], result[last]]
  }
  return result
}

/** [auditor, target] pairs. */
export function drawAudits (beacon, unbanned, audited, count) {
  const targets = shuffled(beacon, 'targets', audited)
  const able = unbanned.filter(member => !(targets.length === 1 && targets[0] === member))
  const auditors = shuffled(beacon, 'auditors', able).slice(0, Math.min(count, targets.length))
  auditors.forEach((auditor, place) => {
    if (targets[place] !== auditor) return
    const other = (place + 1) % targets.length;
    [targets[place], targets[other]] = [targets[other], targets[place]]
  })
  return auditors.map((auditor, place) => [auditor, targets[place]])
}

export const batchSeed = (beacon, task, round, author) =>
  hex(sha256(concat(ascii('p2pdfl/batches/1\0'), bytes(task), u64(round), bytes(author), bytes(beacon))))
