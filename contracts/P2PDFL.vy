# pragma version 0.4.3
# pragma evm-version cancun
# pragma nonreentrancy on
"""
@title P2PDFL: what one training task needs from a chain
@license Apache-2.0
@notice Registrations with deposits, member lists, anchored heads, slashing.  One instance per task.
@dev Members sign EIP-712 envelopes all run long; this contract can check any of them, so anchors, verdicts and
     equivocation proofs are made of messages that the peers gossip anyway.
     INVARIANT: self.balance >= all deposits + all claimable.  What is burnt stays here: nothing can pay it out.
     INVARIANT: an epoch's list is installed once, by start() or by the anchor of the epoch before, and never changes.
"""

MEMBER_COUNT_MAX: constant(uint256) = 256
REPORTER_SHARE_BPS: constant(uint256) = 1_000
AUDIT_LAG: constant(uint256) = 2

# envelope kinds and verdict outcomes that this contract reads
KIND_CLOSE: constant(uint256) = 4
KIND_JUDGE: constant(uint256) = 6
OUTCOME_GUILTY: constant(uint256) = 1
OUTCOME_FALSE: constant(uint256) = 2
OUTCOME_OBJECTIVE: constant(uint256) = 4
EVIDENCE_EQUIVOCATION: constant(uint8) = 5

# secp256k1
P: constant(uint256) = 115792089237316195423570985008687907853269984665640564039457584007908834671663
N: constant(uint256) = 115792089237316195423570985008687907852837564279074904382605163141518161494337

DOMAIN_TYPEHASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
ENVELOPE_TYPEHASH: constant(bytes32) = keccak256(
    "Envelope(bytes32 task,uint64 epoch,uint64 round,uint64 view,uint8 kind,bytes32 body)"
)
POSSESSION_TYPEHASH: constant(bytes32) = keccak256("Possession(bytes32 task,address peer,bytes peerId)")


struct Rules:
    task: bytes32
    members_min: uint256
    epoch_rounds: uint256
    epoch_count: uint256
    total_rounds: uint256
    verdict_rounds: uint256
    deposit: uint256
    verdict_slash: uint256
    equivocation_slash: uint256
    cooldown_blocks: uint256
    stall_blocks: uint256


struct Registration:
    account: address
    peer_id: Bytes[64]
    pvss_x: uint256
    pvss_y: uint256
    deposit: uint256
    is_exiting: bool


# The eight words whose sha256 is a head, in this order.
struct Head:
    task: bytes32
    epoch: uint64
    round: uint64
    parent: bytes32
    contents: bytes32
    state: bytes32
    next_members: bytes32
    chain_block: bytes32


event Registered:
    account: indexed(address)
    peer_id: Bytes[64]
    pvss_x: uint256
    pvss_y: uint256
    deposit: uint256


event Started:
    block_number: uint256
    list_hash: bytes32


event Anchored:
    epoch: indexed(uint64)
    round: uint64
    head: bytes32
    view_number: uint64
    bitmap: uint256
    sender: address


# evidence: the verdict's outcome, or 5 for equivocation.  round: the audited round, or the slot's.
event Slashed:
    member: indexed(address)
    amount: uint256
    evidence: uint8
    round: uint64
    sender: address


event ExitRequested:
    account: indexed(address)


event Withdrawn:
    account: indexed(address)
    amount: uint256


event Claimed:
    account: indexed(address)
    amount: uint256


CHAIN_ID: immutable(uint256)
DOMAIN_SEPARATOR: immutable(bytes32)
TASK: immutable(bytes32)
MEMBERS_MIN: immutable(uint256)
EPOCH_ROUNDS: immutable(uint256)
EPOCH_COUNT: immutable(uint256)
TOTAL_ROUNDS: immutable(uint256)
VERDICT_ROUNDS: immutable(uint256)
DEPOSIT: immutable(uint256)
VERDICT_SLASH: immutable(uint256)
EQUIVOCATION_SLASH: immutable(uint256)
COOLDOWN_BLOCKS: immutable(uint256)
STALL_BLOCKS: immutable(uint256)

registered: DynArray[address, MEMBER_COUNT_MAX]
peer_ids: HashMap[address, Bytes[64]]
pvss_keys: HashMap[address, uint256[2]]
is_peer_id_used: HashMap[bytes32, bool]
is_pvss_key_used: HashMap[uint256, bool]
# 0: never registered.  1: registered, on no list so far.  e + 2: e is the last epoch whose list names it.
# One slot, because installing a list reads and writes it for every member.
standing: HashMap[address, uint256]
staying_count: public(uint256)

deposits: public(HashMap[address, uint256])
claimable: public(HashMap[address, uint256])
exit_block: public(HashMap[address, uint256])

start_block: public(uint256)
# the block of the last anchor, else of the start, else of the deployment
progress_block: public(uint256)
next_epoch: public(uint256)
list_hash: public(HashMap[uint256, bytes32])
anchored_head: public(HashMap[uint256, bytes32])

slashed_by_verdict: public(HashMap[address, HashMap[uint64, bool]])
slashed_by_equivocation: public(HashMap[address, HashMap[uint64, HashMap[uint64, bool]]])


@deploy
def __init__(
    task: bytes32,
    members_min: uint256,
    epoch_rounds: uint64,
    epoch_count: uint64,
    total_rounds: uint64,
    verdict_rounds: uint64,
    deposit: uint256,
    verdict_slash: uint256,
    equivocation_slash: uint256,
    cooldown_blocks: uint256,
    stall_blocks: uint256,
):
    assert members_min >= 1 and members_min <= MEMBER_COUNT_MAX, "members_min"
    assert epoch_rounds >= 1 and epoch_count >= 1 and total_rounds < 2**32, "rounds"
    assert (convert(epoch_count, uint256) - 1) * convert(epoch_rounds, uint256) < convert(total_rounds, uint256), "rounds"
    assert max(verdict_slash, equivocation_slash) <= deposit, "slash exceeds deposit"
    assert cooldown_blocks < 2**64 and stall_blocks < 2**64 and verdict_rounds < 2**32, "too long"
    CHAIN_ID = chain.id
    DOMAIN_SEPARATOR = keccak256(
        abi_encode(DOMAIN_TYPEHASH, keccak256("p2pdfl"), keccak256("1"), chain.id, self)
    )
    TASK = task
    MEMBERS_MIN = members_min
    EPOCH_ROUNDS = convert(epoch_rounds, uint256)
    EPOCH_COUNT = convert(epoch_count, uint256)
    TOTAL_ROUNDS = convert(total_rounds, uint256)
    VERDICT_ROUNDS = convert(verdict_rounds, uint256)
    DEPOSIT = deposit
    VERDICT_SLASH = verdict_slash
    EQUIVOCATION_SLASH = equivocation_slash
    COOLDOWN_BLOCKS = cooldown_blocks
    STALL_BLOCKS = stall_blocks
    self.progress_block = block.number


# --- membership --------------------------------------------------------------------------------------------------


@external
@payable
def register(peer_id: Bytes[64], pvss_x: uint256, pvss_y: uint256, r: bytes32, vs: bytes32):
    """
    @notice Take part with at least the deposit; all of it can be slashed and comes back on withdrawal.
    @param pvss_x With pvss_y the uncompressed PVSS key.
    @param r With vs a signature by the PVSS key over Possession(task, sender, peer id): without it a peer could register
           a combination of others' keys and cancel theirs.
    """
    assert msg.value >= DEPOSIT, "deposit too small"
    assert self.standing[msg.sender] == 0, "already registered"
    assert len(self.registered) < MEMBER_COUNT_MAX, "registry full"
    assert len(peer_id) > 0, "empty peer id"
    peer_id_hash: bytes32 = keccak256(peer_id)
    assert not self.is_peer_id_used[peer_id_hash], "peer id taken"
    # x is the key's identity: the other point with this x is the negated key, which the same secret opens
    assert not self.is_pvss_key_used[pvss_x], "pvss key taken"
    # below N, not only P: an on-chain proof check has to pass x as the r of a signature
    assert pvss_x < N and pvss_y < P, "pvss key out of range"
    x_cubed: uint256 = uint256_mulmod(uint256_mulmod(pvss_x, pvss_x, P), pvss_x, P)
    assert uint256_mulmod(pvss_y, pvss_y, P) == uint256_addmod(x_cubed, 7, P), "pvss key not on curve"
    key_address: address = convert(
        convert(keccak256(abi_encode(pvss_x, pvss_y)), uint256) & (2**160 - 1), address
    )
    possession: bytes32 = keccak256(abi_encode(POSSESSION_TYPEHASH, TASK, msg.sender, peer_id_hash))
    assert self._recover(self._typed(possession), r, vs) == key_address, "no possession of pvss key"

    self.is_peer_id_used[peer_id_hash] = True
    self.is_pvss_key_used[pvss_x] = True
    self.standing[msg.sender] = 1
    self.registered.append(msg.sender)
    self.staying_count += 1
    self.peer_ids[msg.sender] = peer_id
    self.pvss_keys[msg.sender] = [pvss_x, pvss_y]
    self.deposits[msg.sender] = msg.value
    log Registered(account=msg.sender, peer_id=peer_id, pvss_x=pvss_x, pvss_y=pvss_y, deposit=msg.value)


@external
def start(members: DynArray[address, MEMBER_COUNT_MAX]):
    """
    @notice Close the registration for epoch 0; later registrations wait for a next list.  Anyone may, once.
    @param members Everyone registered and not exiting, ascending.
    """
    assert self.start_block == 0, "already started"
    assert len(members) >= MEMBERS_MIN, "too few members"
    assert len(members) == self.staying_count, "incomplete list"
    for member: address in members:
        assert self.exit_block[member] == 0, "member is exiting"
    self._install(0, members)
    self.start_block = block.number
    self.progress_block = block.number
    log Started(block_number=block.number, list_hash=self.list_hash[0])


@internal
def _install(epoch: uint256, members: DynArray[address, MEMBER_COUNT_MAX]):
    # Registration only, not deposit or exit: a slash or an exit between the signing of a head and its anchor must not
    # block the anchor.  The members who sign the head leave such peers out.
    assert len(members) > 0, "empty list"
    previous: uint256 = 0
    for member: address in members:
        assert convert(member, uint256) > previous, "list not ascending"
        assert self.standing[member] != 0, "not registered"
        self.standing[member] = epoch + 2
        previous = convert(member, uint256)
    self.list_hash[epoch] = keccak256(abi_encode(members))


# --- anchors -----------------------------------------------------------------------------------------------------


@external
def anchor(
    view_number: uint64,
    head: Head,
    members: DynArray[address, MEMBER_COUNT_MAX],
    next_members: DynArray[address, MEMBER_COUNT_MAX],
    bitmap: uint256,
    rs: DynArray[bytes32, MEMBER_COUNT_MAX],
    vss: DynArray[bytes32, MEMBER_COUNT_MAX],
):
    """
    @notice Record the certified last head of the next unanchored epoch and install the list of the one after.
    @param view_number The view whose finalize signatures these are.
    @param members The epoch's list.
    @param next_members The next epoch's list; empty after the last epoch.
    @param bitmap Bit i: the next signature is by members[i].  Signatures are EIP-2098.
    """
    epoch: uint256 = self.next_epoch
    assert epoch < EPOCH_COUNT, "run is over"
    assert convert(head.epoch, uint256) == epoch, "not the next epoch"
    assert head.task == TASK, "another task"
    assert convert(head.round, uint256) == self._last_round(epoch), "not the epoch's last round"
    # before start() the hash is zero, which no list has
    assert keccak256(abi_encode(members)) == self.list_hash[epoch], "not the epoch's members"
    digest: bytes32 = sha256(abi_encode(head))
    body: bytes32 = sha256(concat(b"\x91\xc4\x20", digest))  # canonical msgpack of [head]
    signed: uint256 = self._count_signers(
        self._envelope(head.epoch, head.round, view_number, KIND_CLOSE, body), members, bitmap, rs, vss
    )
    assert signed >= 2 * len(members) // 3 + 1, "no quorum"

    self.anchored_head[epoch] = digest
    self.next_epoch = epoch + 1
    self.progress_block = block.number
    if epoch + 1 < EPOCH_COUNT:
        self._install(epoch + 1, next_members)
        assert self.list_hash[epoch + 1] == head.next_members, "not the certified next members"
    else:
        assert len(next_members) == 0 and head.next_members == empty(bytes32), "last epoch has no next members"
    log Anchored(
        epoch=head.epoch, round=head.round, head=digest, view_number=view_number, bitmap=bitmap, sender=msg.sender
    )


@internal
@view
def _last_round(epoch: uint256) -> uint256:
    if epoch == EPOCH_COUNT - 1:
        return TOTAL_ROUNDS - 1
    return (epoch + 1) * EPOCH_ROUNDS - 1


# --- slashing ----------------------------------------------------------------------------------------------------


@external
def slash_by_verdict(
    epoch: uint64,
    round: uint64,
    accused: uint256,
    accuser: uint256,
    audited_round: uint64,
    outcome: uint256,
    members: DynArray[address, MEMBER_COUNT_MAX],
    bitmap: uint256,
    rs: DynArray[bytes32, MEMBER_COUNT_MAX],
    vss: DynArray[bytes32, MEMBER_COUNT_MAX],
):
    """
    @notice Slash who loses by a verdict: floor(n/2) equal JUDGEs, at least one, of members who are no party.
    @param round The accusation's, in whose slots the JUDGEs lie.
    @param accused Index in members, the list of that epoch; accuser likewise.
    """
    epoch_: uint256 = convert(epoch, uint256)
    round_: uint256 = convert(round, uint256)
    audited_round_: uint256 = convert(audited_round, uint256)
    assert keccak256(abi_encode(members)) == self.list_hash[epoch_], "not the epoch's members"
    assert round_ >= epoch_ * EPOCH_ROUNDS and round_ <= self._last_round(epoch_), "round not in epoch"
    assert audited_round_ <= round_, "audit before its round"
    assert round_ <= audited_round_ + AUDIT_LAG + VERDICT_ROUNDS, "audit too late"
    assert accused < len(members) and accuser < len(members), "no such member"
    assert outcome == OUTCOME_GUILTY or outcome == OUTCOME_FALSE or outcome == OUTCOME_OBJECTIVE, "outcome slashes nobody"
    assert (accused == accuser) == (outcome == OUTCOME_OBJECTIVE), "accuser does not fit outcome"
    # INVARIANT: no party to an accusation counts as its juror
    assert bitmap & ((1 << accused) | (1 << accuser)) == 0, "party signed"

    loser: address = members[accuser] if outcome == OUTCOME_FALSE else members[accused]
    assert not self.slashed_by_verdict[loser][audited_round], "already slashed"
    # canonical msgpack of [accused, accuser, audited round, outcome]
    body: bytes32 = sha256(
        concat(b"\x94", self._packed(accused), self._packed(accuser), self._packed(audited_round_), self._packed(outcome))
    )
    # ATTACK: an auditor that commits an objective fault as well would split its jurors between two outcomes in one slot
    view: uint256 = MEMBER_COUNT_MAX + accused if outcome == OUTCOME_OBJECTIVE else accuser
    signed: uint256 = self._count_signers(
        self._envelope(epoch, round, convert(view, uint64), KIND_JUDGE, body), members, bitmap, rs, vss
    )
    assert signed >= max(1, len(members) // 2), "no verdict"
    self.slashed_by_verdict[loser][audited_round] = True
    self._slash(loser, VERDICT_SLASH, convert(outcome, uint8), audited_round)


@external
def slash_by_equivocation(
    accused: address,
    epoch: uint64,
    round: uint64,
    view_number: uint64,
    kind: uint8,
    body_a: bytes32,
    body_b: bytes32,
    r_a: bytes32,
    vs_a: bytes32,
    r_b: bytes32,
    vs_b: bytes32,
):
    """
    @notice Slash who signed two bodies in one slot.
    @dev Once per (accused, epoch, round), however many of the round's slots: a peer restored from an old backup
         equivocates in every slot of the round that it repeats, and should pay for that once.
    """
    assert self.standing[accused] != 0, "not registered"
    assert body_a != body_b, "same body"
    assert not self.slashed_by_equivocation[accused][epoch][round], "already slashed"
    kind_: uint256 = convert(kind, uint256)
    digest_a: bytes32 = self._envelope(epoch, round, view_number, kind_, body_a)
    digest_b: bytes32 = self._envelope(epoch, round, view_number, kind_, body_b)
    assert self._recover(digest_a, r_a, vs_a) == accused, "wrong signer"
    assert self._recover(digest_b, r_b, vs_b) == accused, "wrong signer"
    self.slashed_by_equivocation[accused][epoch][round] = True
    self._slash(accused, EQUIVOCATION_SLASH, EVIDENCE_EQUIVOCATION, round)


@internal
def _slash(member: address, amount_full: uint256, evidence: uint8, round: uint64):
    # The reporter's share stays small, or slashing oneself first would save the deposit.  The rest is burnt: it remains
    # here, in no one's deposit or claim.
    amount: uint256 = min(amount_full, self.deposits[member])
    self.deposits[member] -= amount
    self.claimable[msg.sender] += amount * REPORTER_SHARE_BPS // 10_000
    log Slashed(member=member, amount=amount, evidence=evidence, round=round, sender=msg.sender)


# --- leaving -----------------------------------------------------------------------------------------------------


@external
def request_exit():
    """
    @notice Ask to be left out of the next lists; final, as an address registers once.
    """
    assert self.standing[msg.sender] != 0, "not registered"
    assert self.exit_block[msg.sender] == 0, "already exiting"
    self.exit_block[msg.sender] = block.number
    self.staying_count -= 1
    log ExitRequested(account=msg.sender)


@external
def withdraw():
    """
    @notice Take the deposit back once nothing can slash it any more.
    @dev An update of round r is accused in r + AUDIT_LAG and judged within VERDICT_ROUNDS more.  So a former member waits
         for an anchored epoch that starts that long after its last round: then all verdicts are out, and the epoch
         itself was the time to bring them here.  The last epoch has no such successor and needs none: the run's last
         AUDIT_LAG + VERDICT_ROUNDS rounds train nothing, so its anchor already follows all verdicts; only then does the
         cooldown begin to run, which leaves that long to bring them here.
    """
    exit_block: uint256 = self.exit_block[msg.sender]
    assert exit_block != 0, "no exit requested"
    amount: uint256 = self.deposits[msg.sender]
    assert amount > 0, "nothing to withdraw"
    if block.number <= self.progress_block + STALL_BLOCKS:
        standing: uint256 = self.standing[msg.sender]
        cooldown_from: uint256 = exit_block
        if self.next_epoch == EPOCH_COUNT:
            cooldown_from = max(exit_block, self.progress_block)
        elif standing >= 2:
            audits_end: uint256 = self._last_round(standing - 2) + AUDIT_LAG + VERDICT_ROUNDS
            assert self.next_epoch > 0 and (self.next_epoch - 1) * EPOCH_ROUNDS >= audits_end, "audits pending"
        assert block.number >= cooldown_from + COOLDOWN_BLOCKS, "cooldown"
    self.deposits[msg.sender] = 0
    log Withdrawn(account=msg.sender, amount=amount)
    raw_call(msg.sender, b"", value=amount)


@external
def claim():
    """
    @notice Collect the sender's share of what it got slashed.
    """
    amount: uint256 = self.claimable[msg.sender]
    assert amount > 0, "nothing to claim"
    self.claimable[msg.sender] = 0
    log Claimed(account=msg.sender, amount=amount)
    raw_call(msg.sender, b"", value=amount)


# --- signatures --------------------------------------------------------------------------------------------------


@internal
@view
def _count_signers(
    digest: bytes32,
    members: DynArray[address, MEMBER_COUNT_MAX],
    bitmap: uint256,
    rs: DynArray[bytes32, MEMBER_COUNT_MAX],
    vss: DynArray[bytes32, MEMBER_COUNT_MAX],
) -> uint256:
    # INVARIANT: every signature counted is by a distinct member, because each bit is visited once
    assert bitmap >> len(members) == 0, "no such member"
    assert len(rs) == len(vss), "signatures do not fit bitmap"
    count: uint256 = 0
    for i: uint256 in range(len(members), bound=MEMBER_COUNT_MAX):
        if (bitmap >> i) & 1 == 1:
            assert count < len(rs), "signatures do not fit bitmap"
            assert self._recover(digest, rs[count], vss[count]) == members[i], "wrong signer"
            count += 1
    assert count == len(rs), "signatures do not fit bitmap"
    return count


@internal
@view
def _envelope(epoch: uint64, round: uint64, view_number: uint64, kind: uint256, body: bytes32) -> bytes32:
    return self._typed(keccak256(abi_encode(ENVELOPE_TYPEHASH, TASK, epoch, round, view_number, kind, body)))


@internal
@view
def _typed(struct_hash: bytes32) -> bytes32:
    # after a chain split the other chain's signatures are not ours
    assert chain.id == CHAIN_ID, "another chain"
    return keccak256(concat(b"\x19\x01", DOMAIN_SEPARATOR, struct_hash))


@internal
@pure
def _recover(digest: bytes32, r: bytes32, vs: bytes32) -> address:
    # EIP-2098: the parity of y in the top bit of s.  A high s is the same signature written twice.
    word: uint256 = convert(vs, uint256)
    s: uint256 = word & (2**255 - 1)
    assert s <= N // 2, "high s"
    signer: address = ecrecover(digest, (word >> 255) + 27, convert(r, uint256), s)
    assert signer != empty(address), "bad signature"
    return signer


@internal
@pure
def _packed(number: uint256) -> Bytes[5]:
    # msgpack's shortest unsigned integer, up to 32 bits
    word: bytes32 = convert(number, bytes32)
    if number < 2**7:
        return slice(word, 31, 1)
    if number < 2**8:
        return concat(b"\xcc", slice(word, 31, 1))
    if number < 2**16:
        return concat(b"\xcd", slice(word, 30, 2))
    assert number < 2**32, "integer too large"
    return concat(b"\xce", slice(word, 28, 4))


# --- views -------------------------------------------------------------------------------------------------------


@external
@view
def rules() -> Rules:
    return Rules(
        task=TASK,
        members_min=MEMBERS_MIN,
        epoch_rounds=EPOCH_ROUNDS,
        epoch_count=EPOCH_COUNT,
        total_rounds=TOTAL_ROUNDS,
        verdict_rounds=VERDICT_ROUNDS,
        deposit=DEPOSIT,
        verdict_slash=VERDICT_SLASH,
        equivocation_slash=EQUIVOCATION_SLASH,
        cooldown_blocks=COOLDOWN_BLOCKS,
        stall_blocks=STALL_BLOCKS,
    )


@external
@view
def registrations() -> DynArray[Registration, MEMBER_COUNT_MAX]:
    """
    @notice Everyone who ever registered, in order of registration.
    """
    found: DynArray[Registration, MEMBER_COUNT_MAX] = []
    for account: address in self.registered:
        key: uint256[2] = self.pvss_keys[account]
        found.append(
            Registration(
                account=account,
                peer_id=self.peer_ids[account],
                pvss_x=key[0],
                pvss_y=key[1],
                deposit=self.deposits[account],
                is_exiting=self.exit_block[account] != 0,
            )
        )
    return found
