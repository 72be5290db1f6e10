"""Options of `recover` that cannot be meant."""

import pytest

from llm_pruner.config import recover as recover_options
from llm_pruner.errors import UsageError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "no model"),
        ({"model": "m", "method": "lora", "teacher": "t"}, "`teacher` belongs to `method=distil`"),
        ({"model": "m", "method": "lora", "train_weights": "full"}, "trains adapters"),
        ({"model": "m", "method": "lora", "temperature": 2.0}, "`temperature` belongs"),
        ({"model": "m", "epochs": 1, "steps": 3}, "both set the length of training"),
        ({"model": "m", "epochs": 0}, "epochs: 0 must be a whole number of at least 1"),
        ({"model": "m", "epochs": 0.5}, "epochs: 0.5 is float, it must be a whole number"),
        ({"model": "m", "max_minutes": 0.0}, "must be above 0"),
        ({"model": "m", "warmup": 1.0}, "0 <= warmup < 1"),
        ({"model": "m", "steps": 0}, "steps: 0 must be a whole number of at least 1"),
        ({"model": "m", "method": "lorra"}, "did you mean 'lora'"),
        ({"model": "m", "max_minutes": float("nan")}, "max_minutes: nan"),
    ],
)
def test_options_that_cannot_be_meant(flags, message):
    with pytest.raises(UsageError, match=message):
        recover_options.resolve(flags)


def test_the_batch_size_of_training_has_a_name_of_its_own(tmp_path):
    (tmp_path / "recover.yaml").write_text("batch_size: 4\n")
    with pytest.raises(UsageError, match="line 1: unknown option 'batch_size'; did you mean 'train_batch_size'"):
        recover_options.resolve({"model": "m"}, str(tmp_path / "recover.yaml"))
