"""What a user is told of devices that lose their part."""

from records.progress import round_line, starved_line
from records.summary import device_energy, starved_rounds, summarise
from strategies.records import RoundLog


def _log(columns, devices):
    return RoundLog(1, columns, devices)


def test_starved_and_diverged_devices_are_named():
    devices = {
        3: {"kept_weights": 0},
        5: {"kept_weights": 7, "evaluation": "diverged"},
        8: {"kept_weights": 0},
    }
    columns = {
        "accuracy_mean": 0.5, "accuracy_worst": 0.1, "loss_mean": 0.7, "starved": 2, "diverged": 1,
    }  # fmt: skip
    line = round_line(_log(columns, devices), 10, {})
    assert "starved: 3;8" in line
    assert "diverged: 5" in line


def test_a_round_whose_every_loss_is_infinite_has_a_line():
    columns = {"accuracy_mean": 0.1, "accuracy_worst": 0.1, "loss_mean": None, "diverged": 1}
    line = round_line(_log(columns, {0: {"evaluation": "diverged"}}), 10, {})
    assert "loss" not in line
    assert "diverged: 0" in line


def test_of_many_only_some_are_named_and_all_are_counted():
    devices = {device: {"kept_weights": 0} for device in range(100)}
    assert "19... (100 devices)" in round_line(_log({"starved": 100}, devices), 10, {})
    line = starved_line({str(device): device + 1 for device in range(30)}, 30)
    assert line.startswith("starved (pruned to nothing) of 30 rounds: device 29 in 30, device 28 in 29,")
    assert line.endswith("and 10 more devices")


def test_the_summary_counts_each_devices_starved_rounds(tmp_path):
    table = tmp_path / "devices.csv"
    table.write_text("round,device,kept_weights\n1,2,0\n1,10,5\n2,2,0\n2,10,0\n3,1,\n")
    rows = [{"round": "1", "starved": "1"}, {"round": "2", "starved": "2"}, {"round": "3", "starved": "0"}]
    assert starved_rounds(table, rows) == {"2": 2, "10": 1}
    assert starved_rounds(table, [{"starved": "0"}, {}]) == {}


def test_the_summary_has_both_accuracies_and_says_that_devices_diverged():
    rows = [{"accuracy_mean": "0.5", "accuracy_samples": "0.75", "loss_mean": "", "diverged": "2"}]
    summary = summarise(rows)
    assert summary["final_accuracy_mean"] == 0.5
    assert summary["final_accuracy_samples"] == 0.75
    assert summary["diverged_evaluations"] == 2


def test_the_summary_has_each_devices_joules(tmp_path):
    table = tmp_path / "devices.csv"
    head = "round,device,compute_energy_j,transmit_energy_j"
    table.write_text("\n".join([head, "1,2,0.5,0.25", "1,10,,", "2,2,1,", "2,3,2,0"]) + "\n")
    assert device_energy(table) == {"2": 1.75, "3": 2.0}
