// What a follower knows before it connects: the task file, and the members that the chain lists.

import { readFileSync } from 'node:fs'
import { keccak_256 as keccak } from '@noble/hashes/sha3.js'
import { ascii, bytes, concat, hex, listHash, sha256, taskId } from './wire.mjs'

/** A published task file.  Of TOML it needs `[table]` and `name = <JSON>`, which is how they are written. */
export function loadTask (path) {
  const tables = {}
  let table
  for (const line of readFileSync(path, 'utf8').split('\n')) {
    const header = /^\[(\w+)\]$/.exec(line.trim())
    const field = /^(\w+) = (.+)$/.exec(line.trim())
    if (header) tables[header[1]] = table = {}
    else if (field) table[field[1]] = field[2]
  }
  const text = name => JSON.parse(tables.task[name])
  const epochRounds = Number(tables.task.epoch_rounds)
  const totalRounds = Number(tables.task.training_rounds) + 2 + Number(tables.task.verdict_rounds)
  const epochCount = Math.max(1, Math.floor(totalRounds / epochRounds))
  return {
    id: taskId(tables.task),
    name: text('name'),
    initialState: text('initial_state'),
    depositWei: BigInt(tables.task.deposit_wei),
    totalRounds,
    epochCount,
    epochOf: round => Math.min(Math.floor(round / epochRounds), epochCount - 1),
    lastRoundOf: epoch => (epoch === epochCount - 1 ? totalRounds : (epoch + 1) * epochRounds) - 1,
    rpc: JSON.parse(tables.chain.rpc),
    domain: { chain_id: BigInt(tables.chain.chain_id), contract: JSON.parse(tables.chain.contract) }
  }
}

/** Epoch 0, once registration has closed: members by ascending address, and the parent of round 0. */
export async function readGenesis (task) {
  let start = 0n
  while (start === 0n) {
    start = BigInt(await call(task, 'start_block()'))
    if (start === 0n) await new Promise(resolve => setTimeout(resolve, 500))
  }
  const block = await rpc(task.rpc, 'eth_getBlockByNumber', ['0x' + start.toString(16), false])
  // whatever is left of their deposits; to tell who came or left later in that very block would take its logs
  const members = (await readRegistry(task, block.hash)).filter(entry => !entry.isExiting)
  const list = listHash(members.map(member => member.address))
  if (await call(task, 'list_hash(uint256)', 'latest', '00'.repeat(32)) !== '0x' + list) {
    throw new Error('registration closed with another list than its block shows')
  }
  const parent = hex(sha256(concat(
    ascii('p2pdfl/parent/0\0'), bytes(task.id), bytes(list), bytes(task.initialState), bytes(block.hash)
  )))
  return { members, parent }
}

/** Who is registered as of a block, and neither exiting nor slashed; by ascending address. */
export async function readMembers (task, blockHash) {
  const registered = await readRegistry(task, blockHash)
  return registered.filter(entry => !entry.isExiting && entry.deposit >= task.depositWei)
}

async function readRegistry (task, blockHash) {
  const block = await rpc(task.rpc, 'eth_getBlockByHash', ['0x' + blockHash.replace(/^0x/, ''), false])
  if (!block) throw new Error(`the chain has no block ${blockHash}`)
  return registrations(bytes(await call(task, 'registrations()', block.number)))
    .sort((a, b) => (a.address < b.address ? -1 : 1))
}

async function call (task, signature, block = 'latest', words = '') {
  const data = '0x' + hex(keccak(ascii(signature))).slice(0, 8) + words
  return rpc(task.rpc, 'eth_call', [{ to: task.domain.contract, data }, block])
}

async function rpc (url, method, params) {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ jsonrpc: '2.0', id: 1, method, params }),
    signal: AbortSignal.timeout(10_000)
  })
  const { result, error } = await response.json()
  if (error) throw new Error(`${method}: ${error.message}`)
  return result
}

/** ABI: (address, bytes, uint256, uint256, uint256, bool)[] */
function registrations (data) {
  const wordAt = offset => BigInt('0x' + hex(data.slice(offset, offset + 32)))
  const at = offset => Number(wordAt(offset))
  const array = at(0)
  const first = array + 32
  return Array.from({ length: at(array) }, (_, index) => {
    const entry = first + at(first + 32 * index)
    const text = entry + at(entry + 32)
    const [x, y] = [wordAt(entry + 64), wordAt(entry + 96)]
    return {
      address: hex(data.slice(entry + 12, entry + 32)),
      peerId: Buffer.from(data.slice(text + 32, text + 32 + at(text))).toString('ascii'),
      key: (y & 1n ? '03' : '02') + x.toString(16).padStart(64, '0'),
      deposit: wordAt(entry + 128),
      isExiting: at(entry + 160) !== 0
    }
  })
}
