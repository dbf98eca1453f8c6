// Computes docs/wire-vectors.json once more, with other libraries and another language.
//
//   node check.mjs ../docs/wire-vectors.json

import { readFileSync } from 'node:fs'
import assert from 'node:assert/strict'
import { ed25519 } from '@noble/curves/ed25519.js'
import { hkdf } from '@noble/hashes/hkdf.js'
import { sha256 as hash } from '@noble/hashes/sha2.js'
import { INITIAL_STATE, digestAfter, stateAfter } from './sha256.mjs'
import * as wire from './wire.mjs'

const { ascii, bytes, concat, hex, sha256 } = wire
const vectors = JSON.parse(readFileSync(process.argv[2], 'utf8'))
const members = vectors.keys
const list = members.map(member => member.address)
const keys = members.map(member => member.pvss_key)
const task = vectors.task.task_id
const domain = vectors.domain
const n = members.length
const t = wire.threshold(n)

const checks = {
  keys () {
    const ORDER = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n
    for (const member of members) {
      const expand = (label, count) => hkdf(hash, bytes(member.seed), undefined, ascii(`p2pdfl/keys/1/${label}`), count)
      const scalar = label => (BigInt('0x' + hex(expand(label, 48))) % (ORDER - 1n) + 1n).toString(16).padStart(64, '0')
      const secret = expand('libp2p', 32)
      assert.equal(hex(secret), member.libp2p_secret)
      assert.equal(base58(concat(bytes('002408011220'), ed25519.getPublicKey(secret))), member.peer_id)
      assert.equal(scalar('chain'), member.chain_secret)
      assert.equal(wire.addressOfSecret(member.chain_secret), member.address)
      assert.equal(scalar('pvss'), member.pvss_secret)
      assert.equal(wire.pointOfSecret(member.pvss_secret), member.pvss_key)
    }
    assert.deepEqual([...list].sort(), list)
  },

  task () {
    const fields = Object.fromEntries(
      Object.entries(vectors.task.fields).map(([name, value]) => [name, JSON.stringify(value)])
    )
    assert.equal(wire.taskId(fields), task)
    assert.equal(`/p2pdfl/2/${task}`, vectors.task.topic)
  },

  domain () {}, // by every signature below

  possession () {
    const { address, peer_id: peerId, digest, signature } = vectors.possession
    assert.equal(hex(wire.possessionDigest(domain, task, address, peerId)), digest)
    const member = members.find(member => member.address === address)
    assert.equal(wire.recover(bytes(digest), signature), wire.addressOfSecret(member.pvss_secret))
  },

  genesis () {
    const { list_hash: listHash, initial_state: state, closing_block: block, parent, beacons } = vectors.genesis
    assert.equal(wire.listHash(list), listHash)
    const of = (label, ...parts) => hex(sha256(concat(ascii(`p2pdfl/${label}/0\0`), ...parts.map(bytes))))
    assert.equal(of('parent', task, listHash, state, block), parent)
    beacons.forEach((beacon, round) => assert.equal(of('beacon', task, listHash, block, '0'.repeat(15) + round), beacon))
  },

  dealings () {
    for (const { round, dealer, threshold, context, fields, bytes: encoded } of vectors.dealings) {
      assert.equal(threshold, t)
      assert.equal(hex(wire.dealingContext(task, round, list[dealer], keys, t)), context)
      assert.equal(hex(wire.encode(fields)), encoded)
      assert(wire.isDealing(bytes(context), fields, keys, t))
      assert(!wire.isDealing(bytes(context), { ...fields, response: [...fields.response].reverse() }, keys, t))
    }
  },

  contents () {
    assert.equal(hex(wire.encode(vectors.contents.fields)), vectors.contents.bytes)
    assert.equal(wire.digestOf(vectors.contents.fields), vectors.contents.digest)
  },

  head () {
    assert.equal(vectors.head.fields.contents, vectors.contents.digest)
    assert.equal(wire.headDigest(vectors.head.fields), vectors.head.digest)
  },

  shares () {
    const { round, head, summed, shares, beacon_round: beaconRound, beacon } = vectors.shares
    assert.deepEqual(wire.sumDealings(vectors.dealings.map(dealing => dealing.fields)), summed)
    const decrypted = new Map()
    for (const { holder, context, fields, bytes: encoded } of shares) {
      assert.equal(hex(wire.shareContext(task, round, head, list[holder], holder, n, t)), context)
      assert.equal(hex(wire.encode(fields)), encoded)
      assert(wire.isShare(bytes(context), keys[holder], summed[holder], fields))
      assert(!wire.isShare(bytes(context), keys[holder], summed[(holder + 1) % n], fields))
      decrypted.set(holder, fields.decrypted)
    }
    assert.equal(wire.beacon(task, beaconRound, head, decrypted, t), beacon)
    for (let first = 0; first + t <= n; first++) {
      const some = new Map([...decrypted].slice(first, first + t))
      assert.equal(wire.beacon(task, beaconRound, head, some, t), beacon, 'any t shares give the same')
    }
  },

  draws () {
    const { beacon, round, present, audited, audit_fraction: fraction, leaders, audits } = vectors.draws
    const everybody = [...list.keys()]
    const order = wire.shuffled(beacon, 'leaders', everybody)
    const led = [...order.filter(i => present.includes(i)), ...order.filter(i => !present.includes(i))]
    assert.deepEqual(led, leaders)
    const drawn = wire.drawAudits(beacon, everybody, audited, Math.ceil(fraction * n))
    assert.deepEqual(Object.fromEntries(drawn), audits)
    vectors.draws.batch_seeds.forEach((seed, index) =>
      assert.equal(wire.batchSeed(beacon, task, round, list[index]), seed))
  },

  update () {
    const { round, author, decoded, bytes: encoded, digest, int4, zstd } = vectors.update
    const update = bytes(encoded)
    assert.equal(hex(sha256(update)), digest)
    assert.deepEqual(wire.updateHeader(update), { task, round, author, dimension: decoded.length })
    assert.deepEqual(wire.updateValues(update), decoded)
    assert.deepEqual(wire.updateValues(bytes(int4.bytes), 'int4'), int4.decoded)
    const compressed = bytes(zstd.bytes)
    assert.deepEqual(wire.updateHeader(compressed), { task, round, author, dimension: zstd.decoded.length })
    if (wire.hasZstd) assert.equal(hex(wire.expandUpdate(compressed)), zstd.expanded)
    else console.log(`zstd: SKIPPED: node is ${process.version}, its zlib has zstd from 22.15 on`)
    assert.deepEqual(wire.updateValues(bytes(zstd.expanded)), zstd.decoded)
  },

  state () {
    const { parameters, momentum, digest } = vectors.state
    assert.equal(hex(sha256(new Uint8Array(Float64Array.from([...parameters, ...momentum]).buffer))), digest)
  },

  packets () {
    for (const { kind, payload, envelope, digest, signer, signature, packet_id: id, bytes: encoded } of vectors.packets) {
      const packet = wire.decode(wire.Packet, bytes(encoded), wire.PACKET_BYTES_MAX)
      assert.deepEqual(packet.envelope, envelope)
      assert.equal(envelope.kind, wire.KIND[kind])
      assert.equal(hex(sha256(packet.payload)), envelope.body)
      assert.deepEqual(wire.decode(wire.PAYLOAD[envelope.kind], packet.payload, packet.payload.length), payload)
      assert.equal(hex(wire.encode(payload)), hex(packet.payload))
      assert.equal(hex(wire.envelopeDigest(domain, envelope)), digest)
      assert.equal(wire.recover(bytes(digest), signature), signer)
      assert.equal(wire.sign(members[list.indexOf(signer)].chain_secret, bytes(digest)), signature)
      assert.equal(wire.packetId(packet), id)
      if (kind === 'PROPOSE') checkProposal(payload)
    }
  },

  resync () {
    const request = wire.decode(wire.ResyncRequest, unframed(vectors.resync.request), 1 << 20)
    assert.deepEqual(request, { task, round: 0, have: [vectors.packets[1].packet_id] })
    const reply = wire.decode(wire.ResyncReply, unframed(vectors.resync.reply), wire.RESYNC_FRAME_BYTES_MAX)
    assert.equal(reply.packets.length, 1)
    reply.certificates.forEach(certificate => wire.checkCertificate(certificate, domain, task, list))
  },

  checkpoint () {
    const { bytes: encoded, digest, request, held, not_held: notHeld } = vectors.checkpoint
    assert.equal(hex(sha256(bytes(encoded))), digest)
    assert.deepEqual(wire.decode(wire.CheckpointRequest, unframed(request), 64), { task, epoch: 0 })
    assert.deepEqual(wire.decode(wire.CheckpointReply, unframed(held), 64), { checkpoint: digest })
    assert.deepEqual(wire.decode(wire.CheckpointReply, unframed(notHeld), 64), { checkpoint: null })
    const checkpoint = wire.decode(wire.Checkpoint, bytes(encoded), 1 << 20)
    assert.deepEqual(checkpoint.lists, [list, list.slice(1)])
    assert.deepEqual(checkpoint.banned, list.slice(0, 1))
    checkpoint.rounds.forEach(({ certificate }) => wire.checkCertificate(certificate, domain, task, list))
  },

  gossip () {
    const { author, sequence_number: number, message_id: id, message, rpc } = vectors.gossip
    const fields = protobuf(bytes(message))
    const from = concat(bytes('002408011220'), ed25519.getPublicKey(bytes(members[0].libp2p_secret)))
    const seqno = bytes(BigInt(number).toString(16).padStart(16, '0'))
    assert.equal(base58(from), author)
    assert.deepEqual(Object.keys(fields), ['1', '2', '3', '4', '5'])
    assert.equal(hex(fields[1]), hex(from))
    assert.equal(hex(fields[2]), vectors.gossip_kinds.packet)
    assert.equal(hex(fields[3]), hex(seqno))
    assert.equal(Buffer.from(fields[4]).toString(), vectors.task.topic)
    assert.equal(id, hex(from) + hex(seqno))
    const unsigned = bytes(message).slice(0, -(2 + 64)) // the signature is the last field
    assert(ed25519.verify(fields[5], concat(ascii('libp2p-pubsub:'), unsigned), from.slice(6)))
    assert.equal(hex(protobuf(bytes(rpc))[2]), message)
  },

  gossip_kinds () {
    const { packet, update, announcement } = vectors.gossip_kinds
    assert.equal(packet, '01' + vectors.packets[0].bytes)
    assert.equal(update, '02' + vectors.update.bytes)
    assert.equal(announcement, '03' + vectors.update.digest)
  },

  pull () {
    const framed = text => (text.length / 2).toString(16).padStart(8, '0') + text
    const u32 = position => position.toString(16).padStart(8, '0')
    const u64 = length => length.toString(16).padStart(16, '0')
    const { held, not_held: missing, long } = vectors.pull
    const body = vectors.update.bytes
    assert.equal(held.request, framed(vectors.update.digest + u32(0)))
    assert.equal(held.reply, framed(u64(body.length / 2) + INITIAL_STATE + body))
    assert.deepEqual(missing, { request: framed(wire.ZERO + u32(0)), reply: framed('') })
    const whole = Uint8Array.from({ length: long.length }, (_, i) => i % 251)
    assert.equal(hex(sha256(whole)), long.digest)
    let end = whole.length
    let after = null
    long.chunks.forEach(({ request, length, state }, position) => {
      assert.equal(request, framed(long.digest + u32(position)))
      const chunk = whole.slice(end - length, end)
      const proved = after ? stateAfter(bytes(state), chunk) : digestAfter(bytes(state), end - length, chunk)
      assert.equal(hex(proved), after ?? long.digest)
      after = state
      end -= length
    })
    assert.equal(end, 0)
    assert.equal(after, INITIAL_STATE)
  }
}

function checkProposal ({ contents, head, notarization, skips, equivocations, verdicts }) {
  assert.equal(head.contents, wire.digestOf(contents))
  for (const certificate of [notarization, ...skips]) {
    if (certificate) wire.checkCertificate(certificate, domain, task, list)
  }
  for (const { entry, signature_low: low, signature_high: high } of equivocations) {
    const { epoch, round, view, kind } = entry
    for (const [body, signature] of [[entry.body_low, low], [entry.body_high, high]]) {
      const digest = wire.envelopeDigest(domain, { task, epoch, round, view, kind, body })
      assert.equal(wire.recover(digest, signature), list[entry.member])
    }
  }
  for (const { entry, ballots } of verdicts) {
    const { accused, accuser, audited_round, outcome, epoch, round } = entry
    const body = wire.digestOf({ accused, accuser, audited_round, outcome })
    const view = outcome === 4 ? 256 + accused : accuser
    const digest = wire.envelopeDigest(domain, { task, epoch, round, view, kind: wire.KIND.JUDGE, body })
    ballots.forEach(ballot => assert.equal(wire.recover(digest, ballot.signature), list[ballot.member]))
  }
}

function base58 (data) {
  const ALPHABET = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz'
  let number = BigInt('0x' + hex(data))
  let text = ''
  for (; number > 0n; number /= 58n) text = ALPHABET[Number(number % 58n)] + text
  for (const byte of data) {
    if (byte !== 0) break
    text = '1' + text
  }
  return text
}

function unframed (framed) {
  const data = bytes(framed)
  assert.equal(new DataView(data.buffer).getUint32(0), data.length - 4)
  return data.slice(4)
}

/** Fields of length-delimited type, each once. */
function protobuf (data) {
  const fields = {}
  let place = 0
  const varint = () => {
    let value = 0
    for (let shift = 0; ; shift += 7) {
      const byte = data[place++]
      value += (byte & 0x7f) * 2 ** shift
      if (byte < 0x80) return value
    }
  }
  while (place < data.length) {
    const tag = varint()
    assert.equal(tag & 7, 2)
    const end = varint() + place
    fields[tag >> 3] = data.slice(place, end)
    place = end
  }
  return fields
}

assert.deepEqual(Object.keys(vectors).sort(), Object.keys(checks).sort())
for (const check of Object.values(checks)) check()
console.log(`wire vectors: ${Object.keys(checks).length} parts computed again in JavaScript, all equal`)
