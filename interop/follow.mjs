// A follower of a p2pdfl run on js-libp2p: joins from one address, hears the task's gossip, believes nothing unverified.
//
//   node follow.mjs --task task.toml --bootstrap /ip4/.../tcp/.../p2p/... [--rounds 3] [--name words]
//
// The peer at --bootstrap must grant places to followers (`--followers`).  Exit code 0 once --rounds rounds (default:
// all of the task's) have closed here with everything verified and at least one update pulled by its digest.

import './polyfill.mjs'
import { parseArgs } from 'node:util'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { gossipsub } from '@libp2p/gossipsub'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { pull } from './pull.mjs'
import { request } from './requests.mjs'
import { Rounds } from './rounds.mjs'
import { loadTask, readGenesis, readMembers } from './task.mjs'
import { RESYNC_FRAME_BYTES_MAX, ResyncReply, decode, encode, quorum } from './wire.mjs'

const RESYNC = '/p2pdfl/resync/1'
const RESYNC_MS = 1500
const PACKET = 1
const UPDATE = 2
const ANNOUNCE = 3

const { values: options } = parseArgs({
  options: {
    task: { type: 'string' }, bootstrap: { type: 'string' }, rounds: { type: 'string' }, name: { type: 'string' }
  }
})
const task = loadTask(options.task)
const wanted = Number(options.rounds ?? task.totalRounds)
const topic = `/p2pdfl/2/${task.id}`
const bootstrap = multiaddr(options.bootstrap)
const name = options.name ?? 'follower'
const say = text => console.log(`${name}: ${text}`)

const node = await createLibp2p({
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    // asyncValidation: what is heard here is passed on to nobody
    pubsub: gossipsub({ asyncValidation: true, emitSelf: false, doPX: false, allowPublishToZeroTopicPeers: true })
  }
})
const pubsub = node.services.pubsub

/** Gossip that came before the members were known. */
let early = []
let rounds = null

pubsub.addEventListener('gossipsub:message', ({ detail: { msgId, msg, propagationSource } }) => {
  pubsub.reportMessageValidationResult(msgId, propagationSource.toString(), 'ignore')
  if (msg.topic !== topic) return
  if (rounds) hear(msg.data)
  else if (early.length < 1000) early.push(msg.data)
})

function hear (data) {
  try {
    const content = data.subarray(1)
    if (data[0] === PACKET) rounds.takePacket(content)
    else if (data[0] === UPDATE) rounds.takeBody(content)
    else if (data[0] !== ANNOUNCE) throw new Error('gossip of no known kind')
  } catch (error) {
    rounds.refuse(error.message)
  }
  advance()
}

pubsub.subscribe(topic)
const connection = await node.dial(bootstrap, { signal: AbortSignal.timeout(10_000) })
const peer = connection.remotePeer
say(`${node.peerId} is connected to ${peer} and follows ${topic}`)

const genesis = await readGenesis(task)
rounds = new Rounds(task, genesis, block => readMembers(task, block))
say(`${genesis.members.length} members by the chain, quorum ${quorum(genesis.members.length)}`)

const closed = []
let pulled = 0
let resyncs = 0
let asking
let advancing = Promise.resolve()

function advance () {
  advancing = advancing.then(async () => {
    for (let outcome; closed.length < wanted && (outcome = await rounds.close());) {
      await report(outcome)
      closed.push(outcome)
      if (closed.length === wanted) await finish()
    }
  }).catch(fail)
  return advancing
}

async function report (outcome) {
  let heard = 0
  for (const entry of outcome.updates) {
    const body = rounds.bodies.get(entry.update)
    if (!body) continue
    rounds.checkBody(outcome.round, entry, body)
    heard += 1
  }
  let words = `${heard} of ${outcome.updates.length} bodies heard`
  if (outcome.updates.length > 0) {
    const body = await pull(node, peer, outcome.updates[0].update)
    rounds.checkBody(outcome.round, outcome.updates[0], body)
    pulled += 1
    words += `, 1 pulled by digest (${body.length} bytes)`
  }
  const beacon = outcome.beacon ? `, beacon[${outcome.round + 1}] ${outcome.beacon.slice(0, 16)}` : ''
  say(
    `round ${outcome.round} (epoch ${outcome.epoch}) closed in view ${outcome.view}: head ${outcome.head.slice(0, 16)}, certificate of ` +
    `${outcome.ballots} of ${outcome.members}, ${outcome.commits} COMMITs with dealings and ${outcome.shares} ` +
    `shares verified${beacon}; ${words}`
  )
}

async function resync () {
  const before = rounds.round
  try {
    await node.dial(bootstrap, { signal: AbortSignal.timeout(10_000) }) // nothing, where there is a connection
    const reply = await request(node, peer, RESYNC, encode(rounds.resyncRequest()), RESYNC_FRAME_BYTES_MAX)
    rounds.takeReply(decode(ResyncReply, reply, RESYNC_FRAME_BYTES_MAX))
    resyncs += 1
  } catch (error) {
    rounds.refuse(`resync: ${error.message}`)
  }
  await advance()
  // who closes a round this way is behind, and asks for the next at once
  asking = setTimeout(resync, rounds.round > before ? 0 : RESYNC_MS)
}

async function finish () {
  clearTimeout(asking)
  const signed = Object.entries(rounds.signatures).filter(([, count]) => count).map(([name, count]) => `${count} ${name}`)
  say(
    `${closed.length} rounds verified; signatures of members: ${signed.join(', ')}; ${resyncs} resyncs answered, ` +
    `${pulled} bodies pulled; refused: ${JSON.stringify(rounds.refused)}`
  )
  const ok = closed.length >= wanted && pulled > 0
  say(ok ? 'ok' : 'NOT ok')
  process.exitCode = ok ? 0 : 1
  await node.stop()
  process.exit()
}

async function fail (error) {
  console.error(`${name}: ${error.stack ?? error}`)
  process.exit(1)
}

for (const data of early) hear(data)
early = []
await resync()
