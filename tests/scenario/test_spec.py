from __future__ import annotations

from pathlib import Path

import pytest

from p2pdfl.scenario.spec import Conditions, Scenario, ScenarioError, find, load

SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"

TEXT = """
name = "small"
peers = 4

[task]
training_rounds = 3

[[byzantine]]
peer = 1
behaviour = "scale"
from_round = 2
factor = -1000.0

[[faults]]
peer = "peer2"
kind = "kill"
at_round = 1

[network]
rate_mbit = 20
loss_percent = 1
delay_ms = 100

[expected]
caught = { peer1 = "guilty" }
"""


def scenario_of(tmp_path: Path, text: str) -> Scenario:
    path = tmp_path / "small.toml"
    path.write_text(text)
    return load(path)


def test_peers_are_named_by_index_or_name(tmp_path: Path) -> None:
    scenario = scenario_of(tmp_path, TEXT)
    assert scenario.names == ("peer0", "peer1", "peer2", "peer3")
    assert str(scenario.behaviours["peer1"].deviation()) == "scale:2:-1000.0"
    assert scenario.faults_by_name["peer2"].at_round == 1


def test_registration_waits_for_all_peers_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    assert scenario_of(tmp_path, TEXT).task.members_min == 4
    fewer = TEXT.replace("training_rounds = 3", "training_rounds = 3\nmembers_min = 3")
    assert scenario_of(tmp_path, fewer).task.members_min == 3


def test_who_joins_later_is_not_waited_for(tmp_path: Path) -> None:
    assert scenario_of(tmp_path, TEXT.replace('kind = "kill"', 'kind = "join"')).task.members_min == 3


def test_a_fault_strikes_in_the_first_phase_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    fault = scenario_of(tmp_path, TEXT).faults_by_name["peer2"]
    assert (str(fault.place), str(fault)) == ("round 1, train", "kill at round 1")
    fault = scenario_of(tmp_path, TEXT.replace("at_round = 1", 'at_round = 1\nphase = "close"')).faults_by_name["peer2"]
    assert (str(fault.place), str(fault)) == ("round 1, close", "kill at round 1, close")


def test_a_network_to_cut_is_one(tmp_path: Path) -> None:
    start, end = TEXT.index("[network]"), TEXT.index("[expected]")
    text = TEXT[:start] + '[[partitions]]\npeers = [0, "peer3"]\nat_round = 1\nrounds = 2\n' + TEXT[end:]
    scenario = scenario_of(tmp_path, text)
    assert scenario.conditions == Conditions()
    assert scenario.names_of(scenario.partitions[0]) == {"peer0", "peer3"}


def test_conditions_are_those_of_the_file_and_none_without(tmp_path: Path) -> None:
    conditions = scenario_of(tmp_path, TEXT).conditions
    assert conditions is not None
    assert (conditions.rate_mbit, conditions.loss_percent, conditions.delay_ms) == (20, 1, 100)
    start, end = TEXT.index("[network]"), TEXT.index("[expected]")
    assert scenario_of(tmp_path, TEXT[:start] + TEXT[end:]).conditions is None


def test_a_cable_to_unplug_takes_a_network(tmp_path: Path) -> None:
    start, end = TEXT.index("[network]"), TEXT.index("[expected]")
    text = (TEXT[:start] + TEXT[end:]).replace('kind = "kill"', 'kind = "unplug"\nseconds = 3')
    assert scenario_of(tmp_path, text).conditions == Conditions()


def test_a_chain_is_out_of_reach_for_seconds_or_rounds_and_takes_no_network(tmp_path: Path) -> None:
    start, end = TEXT.index("[network]"), TEXT.index("[expected]")
    outages = (
        '[[chain_outages]]\nat_round = 1\nseconds = 20\n[[chain_outages]]\nkind = "hang"\nat_round = 3\nrounds = 2\n'
    )
    scenario = scenario_of(tmp_path, TEXT[:start] + outages + TEXT[end:])
    first, second = scenario.chain_outages
    assert (first.kind, first.at_round, first.seconds) == ("refuse", 1, 20)
    assert (second.kind, second.at_round, second.rounds) == ("hang", 3, 2)
    assert scenario.conditions is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("peers = 4", "peers = 0", "peers: "),
        ("peers = 4", "peers = 4\ncolour = 1", "colour: there is no such field"),
        ("training_rounds = 3", "training_round = 3", r"task\.training_round: there is no such field"),
        ("training_rounds = 3", "training_rounds = 3\nmembers_min = 5", "only 4 peers"),
        ("peer = 1", "peer = 4", "no peer 4; they are numbered 0 to 3"),
        ("peer = 1", 'peer = "bob"', "no peer 'bob'; they are named peer0 to peer3"),
        ("peer = 1", "peer = 2", "peer2 is named twice"),
        ('behaviour = "scale"', 'behaviour = "sleep"', r"byzantine\.0\.behaviour"),
        ("from_round = 2", "from_round = 2\nevery = 0", r"byzantine\.0\.every"),
        ("from_round = 2", "from_round = 2\ncollude = 3", r"byzantine\.0\.collude"),
        ("factor = -1000.0", "factor = inf", r"byzantine\.0\.factor"),
        ("from_round = 2", "from_round = 9", "round 9 is after the last one, 8"),
        ('kind = "kill"', 'kind = "pause"', r"faults\.0\.kind"),
        ("at_round = 1", "at_round = -1", r"faults\.0\.at_round"),
        ("at_round = 1", 'at_round = 1\nphase = "audit"', r"faults\.0\.phase"),
        ("at_round = 1", "at_round = 1\nwithin_s = 2", r"faults\.0\.within_s: there is no such field"),
        ('kind = "kill"', 'kind = "leave"\nphase = "commit"', r"faults\.0: .* in no phase"),
        ("at_round = 1", "at_round = 1\nlose_disk = true", r"faults\.0: .* killed and started again"),
        ('kind = "kill"', 'kind = "leave"\nseconds = 3', r"faults\.0: .* for good"),
        ('peer = "peer2"\nkind = "kill"', 'peer = "peer0"\nkind = "join"', "peer0 is the others' bootstrap"),
        (
            "[network]",
            "[[partitions]]\npeers = [1]\nat_round = 1\n\n[network]",
            r"partitions\.0: .* needs seconds or rounds",
        ),
        ("[network]", "[[partitions]]\npeers = []\nat_round = 1\nrounds = 1\n\n[network]", r"partitions\.0\.peers"),
        ("[network]", "[[partitions]]\npeers = [0, 1, 2, 3]\nat_round = 1\nrounds = 1\n\n[network]", "or all of them"),
        ("[network]", '[[partitions]]\npeers = [1, "peer1"]\nat_round = 1\nrounds = 1\n\n[network]', "a peer twice"),
        ("[network]", "[[chain_outages]]\nat_round = 1\n\n[network]", r"chain_outages\.0: .* seconds or rounds"),
        ("[network]", "[[chain_outages]]\nat_round = 9\nrounds = 1\n\n[network]", "round 9 is after the last one, 8"),
        ("[network]", '[[chain_outages]]\nkind = "lie"\nat_round = 1\n\n[network]', r"chain_outages\.0\.kind"),
        ('kind = "kill"', 'kind = "stop"', r"faults\.0: .* needs seconds or rounds"),
        ('kind = "kill"', 'kind = "stop"\nseconds = 0', r"faults\.0\.seconds"),
        ("rate_mbit = 20", "rate_mbit = 0", r"network\.rate_mbit"),
        ("rate_mbit = 20", "rate_mbit = inf", r"network\.rate_mbit"),
        ("loss_percent = 1", "loss_percent = 100", r"network\.loss_percent"),
        ("delay_ms = 100", "delay_ms = -1", r"network\.delay_ms"),
        ("delay_ms = 100", "jitter_ms = 100", r"network\.jitter_ms: there is no such field"),
        ('peer1 = "guilty"', 'peer3 = "guilty"', r"expected\.caught: peer3"),
        ('peer1 = "guilty"', 'peer1 = "void"', r"expected\.caught\.peer1"),
        ('name = "small"', 'name = "../up"', "name: "),
        ('name = "small"', "name = ", "not readable as TOML"),
    ],
)
def test_a_file_that_cannot_be_run_is_refused_with_its_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(ScenarioError, match=message) as raised:
        scenario_of(tmp_path, TEXT.replace(old, new))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ScenarioError, match="not readable"):
        load(path)


def test_a_scenario_is_found_by_name_or_path() -> None:
    assert find("byzantine").name == "byzantine.toml"
    assert find(str(SCENARIOS / "honest.toml")) == SCENARIOS / "honest.toml"
    with pytest.raises(ScenarioError, match="there are: bad_path, bad_path_loopback, byzantine"):
        find("nothing-like-it")


def test_a_scenario_is_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("honest") == SCENARIOS / "honest.toml"


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_scenario_here_loads_and_is_named_like_its_file(path: Path) -> None:
    assert load(path).name == path.stem


def test_the_control_has_the_same_attackers_without_the_defence() -> None:
    defended, undefended = load(SCENARIOS / "byzantine.toml"), load(SCENARIOS / "undefended.toml")
    attackers = {name: entry.from_round for name, entry in defended.behaviours.items()}
    assert attackers == {name: entry.from_round for name, entry in undefended.behaviours.items()}
    assert (undefended.task.rule, undefended.task.audit_fraction) == ("mean", 0.0)


def test_the_bad_paths_loopback_is_the_same_task_without_the_network() -> None:
    bad, loopback = load(SCENARIOS / "bad_path.toml"), load(SCENARIOS / "bad_path_loopback.toml")
    assert bad.network is not None
    renamed = {"name": bad.name, "task": bad.task, "network": bad.network}
    assert loopback.model_copy(update=renamed) == bad
    assert loopback.task.model_copy(update={"name": bad.task.name}) == bad.task
