"""Which parameters are decayed."""

from torch import nn

from dilm.training.optimizer import parameter_groups


def test_biases_and_normalisation_are_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    decayed, spared = parameter_groups(model.parameters(), 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 2)]  # type: ignore[attr-defined]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert len(spared["params"]) == 3  # type: ignore[arg-type]
