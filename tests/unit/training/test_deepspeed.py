"""DeepSpeed's keys: what follows from ours, and what it would ignore in silence."""

import pytest

from dilm.config.schema import EngineConfig
from dilm.core.errors import ConfigError
from dilm.training.deepspeed import check_zero, deepspeed_keys


def test_precision_and_clipping_reach_deepspeed() -> None:
    config = EngineConfig("zero2", {"zero_optimization": {"stage": 2}})
    keys = deepspeed_keys(config, 0.5, "bf16")
    assert keys["gradient_clipping"] == 0.5
    assert keys["bf16"] == {"enabled": True}
    assert keys["data_types"] == {"grad_accum_dtype": "fp32"}  # else sums are bf16 too
    assert keys["zero_optimization"] == {"stage": 2}
    assert "bf16" not in deepspeed_keys(config, 0.5, "fp32")
    assert config.deepspeed == {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stage": 1, "overlap_com": True}, r"zero_optimization\.overlap_com is unknown\. Did you mean 'overlap_comm'"),
        ({"stage": 7}, r"zero_optimization\.stage is 7"),
        ({"stage": 3, "offload_optimizer": {"device": "tape"}}, r"offload_optimizer\.device is 'tape'"),
        ({"stage": 3, "offload_optimizer": {"devise": "cpu"}}, r"offload_optimizer\.devise"),
    ],
)
def test_a_wrong_zero_key_is_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_zero(keys)


def test_right_zero_keys_pass() -> None:
    check_zero({"stage": 3, "overlap_comm": True, "offload_optimizer": {"device": "cpu", "pin_memory": True}})
