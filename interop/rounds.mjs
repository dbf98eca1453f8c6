// Follows the rounds of a run: takes packets and bodies from wherever they come, believes none of them, and says when
// a round has closed and what of it was verified.

import {
  KIND, PACKET_BYTES_MAX, PAYLOAD, ZERO, beacon, checkCertificate, dealingContext, decode, digestOf, envelopeDigest,
  headDigest, hex, isDealing, isShare, listHash, packetId, quorum, recover, sha256, shareContext, sumDealings,
  threshold, updateHeader, Packet
} from './wire.mjs'

const ROUNDS_AHEAD = 4
const PACKETS_PER_MEMBER_MAX = 64 // of one round
const BODIES_MAX = 1024
const ABSENT_ROUNDS = 3
const GUILTY = 1
const FALSE = 2
const OBJECTIVE = 4

export class Rounds {
  /** readMembers: the hash of a block -> who is registered as of it. */
  constructor (task, genesis, readMembers) {
    this.task = task
    this.readMembers = readMembers
    this.epochs = [genesis.members]
    this.banned = new Set()
    this.committed = [] // addresses, of the last rounds
    this.parent = genesis.parent
    this.round = 0
    this.summed = null // of the last round's dealings
    this.refused = {}
    this.signatures = Object.fromEntries(Object.keys(KIND).map(name => [name, 0]))
    this.bodies = new Map() // digest -> bytes
    this.open = new Map() // round -> what is held of it
  }

  /** Of a round's epoch, by index; throws if that epoch's list is not fixed yet. */
  #members (round = this.round) {
    const members = this.epochs[this.task.epochOf(round)]
    if (!members) throw new Error('epoch not known yet')
    return members
  }

  #addresses (round) { return this.#members(round).map(member => member.address) }

  get #now () { return this.#of(this.round) }

  #of (round) {
    if (!this.open.has(round)) {
      this.open.set(round, {
        ids: new Set(), sent: new Map(), commits: new Map(), proposals: new Map(), votes: new Map(), certificate: null
      })
    }
    return this.open.get(round)
  }

  /** Throws for what is refused. */
  takePacket (data) {
    this.#take(decode(Packet, data, PACKET_BYTES_MAX))
  }

  #take (packet) {
    const { envelope, payload: body } = packet
    if (envelope.task !== this.task.id) throw new Error('other task')
    if (envelope.epoch !== this.task.epochOf(envelope.round)) throw new Error('epoch is not its round\'s')
    if (envelope.round < this.round || envelope.round > this.round + ROUNDS_AHEAD) return
    if (hex(sha256(body)) !== envelope.body) throw new Error('payload is not the signed body')
    const payload = decode(PAYLOAD[envelope.kind], body, body.length)
    const member = this.#addresses(envelope.round).indexOf(recover(envelopeDigest(this.task.domain, envelope), packet.signature))
    if (member < 0) throw new Error('not signed by a member')
    const held = this.#of(envelope.round)
    const id = packetId(packet)
    if (held.ids.has(id)) return
    const sent = held.sent.get(member) ?? 0
    if (sent >= PACKETS_PER_MEMBER_MAX) throw new Error('too many packets of a member')
    held.sent.set(member, sent + 1)
    held.ids.add(id)
    this.signatures[Object.keys(KIND)[envelope.kind - 1]] += 1
    if (envelope.kind === KIND.COMMIT) held.commits.set(`${member}:${envelope.body}`, payload)
    if (envelope.kind === KIND.PROPOSE) held.proposals.set(headDigest(payload.head), payload)
    if (envelope.kind === KIND.CLOSE && payload.head !== ZERO) this.#vote(held, envelope, payload.head, member, packet)
  }

  #vote (held, envelope, head, member, packet) {
    const key = `${envelope.view}:${head}`
    if (!held.votes.has(key)) held.votes.set(key, new Map())
    const votes = held.votes.get(key)
    votes.set(member, packet.signature)
    if (votes.size === quorum(this.#members(envelope.round).length)) {
      const ballots = [...votes].map(([member, signature]) => ({ member, signature })).sort((a, b) => a.member - b.member)
      this.#certify({ ...envelope, head, ballots })
    }
  }

  takeBody (data) {
    if (this.bodies.size >= BODIES_MAX) this.bodies.delete(this.bodies.keys().next().value)
    this.bodies.set(hex(sha256(data)), data)
  }

  resyncRequest () {
    return { task: this.task.id, round: this.round, have: [...this.#now.ids] }
  }

  takeReply (reply) {
    for (const packet of reply.packets) this.#tolerate(() => this.#take(packet))
    for (const certificate of reply.certificates) {
      const closes = certificate.kind === KIND.CLOSE && certificate.head !== ZERO && certificate.round === this.round
      if (closes) this.#tolerate(() => this.#certify(certificate))
    }
  }

  #tolerate (take) {
    try {
      take()
    } catch (error) {
      this.refuse(error.message)
    }
  }

  refuse (reason) {
    this.refused[reason] = (this.refused[reason] ?? 0) + 1
  }

  #certify (certificate) {
    const held = this.#of(certificate.round)
    if (held.certificate) return
    checkCertificate(certificate, this.task.domain, this.task.id, this.#addresses(certificate.round))
    held.certificate = certificate
  }

  /** The open round's outcome if it is closed and all that its head names is here, else null. */
  async close () {
    const { certificate, proposals, commits } = this.#now
    const propose = certificate && proposals.get(certificate.head)
    if (!propose) return null
    const named = propose.contents.commits.map(({ member, body }) => [member, commits.get(`${member}:${body}`)])
    if (named.some(([, commit]) => !commit)) return null
    const outcome = this.#check(certificate, propose, named)
    await this.#note(propose, named)
    this.summed = sumDealings(named.map(([, commit]) => commit.dealing))
    this.parent = certificate.head
    this.open.delete(this.round)
    this.round += 1
    return outcome
  }

  #check (certificate, { head, contents }, named) {
    const { task, round } = this
    const members = this.#members()
    const n = members.length
    const holders = this.#members(Math.min(round + 1, task.totalRounds - 1)).map(member => member.key)
    const t = threshold(holders.length)
    const must = (holds, what) => { if (!holds) throw new Error(`round ${round}: ${what}`) }
    must(head.task === task.id && head.round === round && head.epoch === certificate.epoch, 'the head is another\'s')
    must(head.parent === this.parent, 'the head has another parent')
    must(head.contents === digestOf(contents), 'the head is of other contents')
    must(contents.banned === listHash([...this.banned].sort()), 'others are banned')
    must(named.length >= quorum(n), 'fewer COMMITs than a quorum')
    const shares = new Map()
    for (const [member, commit] of named) {
      must(commit.parent === this.parent, 'a COMMIT has another parent')
      const context = dealingContext(task.id, round, members[member].address, holders, t)
      must(isDealing(context, commit.dealing, holders, t), `member ${member}'s dealing is invalid`)
      must((commit.share === null) === (round === 0), 'a share is missing, or there should be none')
      if (commit.share) {
        const of = shareContext(task.id, round - 1, this.parent, members[member].address, member, n, threshold(n))
        must(isShare(of, members[member].key, this.summed[member], commit.share), `member ${member}'s share is invalid`)
        shares.set(member, commit.share.decrypted)
      }
    }
    for (const entry of contents.updates) {
      const commit = named.find(([member]) => member === entry.member)
      must(commit && commit[1].update === entry.update, 'an update that was not committed')
    }
    return {
      round,
      head: certificate.head,
      view: certificate.view,
      ballots: certificate.ballots.length,
      members: n,
      commits: named.length,
      shares: shares.size,
      beacon: round > 0 ? beacon(task.id, round + 1, this.parent, shares, threshold(n)) : null,
      updates: contents.updates.map(({ member, update }) => ({ update, author: members[member].address })),
      epoch: head.epoch
    }
  }

  /** What later rounds need to know of this one: bans, who was there, and the next epoch's list. */
  async #note ({ head, contents }, named) {
    const { task, round } = this
    const addresses = this.#addresses(round)
    for (const { epoch, member } of contents.evidence) this.banned.add(this.epochs[epoch][member].address)
    for (const { epoch, accused, accuser, outcome } of contents.verdicts) {
      if (outcome === GUILTY || outcome === OBJECTIVE) this.banned.add(this.epochs[epoch][accused].address)
      if (outcome === FALSE) this.banned.add(this.epochs[epoch][accuser].address)
    }
    this.committed = [...this.committed, named.map(([member]) => addresses[member])].slice(-ABSENT_ROUNDS)
    const epoch = task.epochOf(round)
    if (epoch + 1 === task.epochCount || round !== task.lastRoundOf(epoch) - 1) return
    const present = new Set(this.committed.flat())
    const isAbsent = address => addresses.includes(address) && !present.has(address)
    const next = (await this.readMembers(head.chain_block))
      .filter(({ address }) => !this.banned.has(address) && !isAbsent(address))
    if (listHash(next.map(member => member.address)) !== head.next_members) {
      throw new Error(`round ${round}: the next list is another than the head's`)
    }
    this.epochs.push(next)
  }

  /** Throws unless these are the bytes of that update of that round. */
  checkBody (round, { update, author }, data) {
    if (hex(sha256(data)) !== update) throw new Error('the body is not what its digest says')
    const header = updateHeader(data)
    if (header.task !== this.task.id || header.round !== round || header.author !== author) {
      throw new Error('the body is under another header')
    }
  }
}
