"""The benchmark of the loop still plays: a stream whose concept changes, with the product's own judgement."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_ours_answers_a_change_of_concept_and_the_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from loop_simulations import POLICY, ratios
    from loop_streams import ONSET, simulated
    from loop_table import played, runs, summary

    stream = simulated("concept_sudden", seed=0, windows=ONSET + 6)
    policy = POLICY.changed({"monitors": "performance"})
    found = {name: played(stream, policy, name) for name in ("never", "always", "ours")}
    table = summary([runs(found)], ONSET)
    assert table["never"]["retrainings"] == 0 and table["always"]["retrainings"] == ONSET + 6
    assert 1 <= table["ours"]["retrainings"] <= 6 and table["ours"]["harmful_promotions"] == 0
    assert table["always"]["log_loss"] < table["ours"]["log_loss"] < table["never"]["log_loss"]
    assert any("passed" in said for said in found["ours"].said)
    assert all(move.window >= ONSET for move in found["ours"].moves)
    share = ratios({kind: table for kind in ("no_drift", "concept_sudden", "bad_training")})
    assert share["concept_retrainings_of_always"] < 1 / 3
