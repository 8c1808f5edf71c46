"""Names of data types, as other tools and torch write them."""

import pytest

from neuroada_cli.recipe.load import load_recipe
from neuroada_cli.recipe.types import short_type, with_short_types


@pytest.mark.parametrize(
    ("written", "short"),
    [
        ("bfloat16", "bf16"),
        ("torch.bfloat16", "bf16"),
        ("half", "fp16"),
        ("float32", "fp32"),
        ("bf16", "bf16"),
    ],
)
def test_torchs_names_mean_the_short_ones(written: str, short: str) -> None:
    assert short_type(written) == short
    assert load_recipe("quickstart", [f"model.dtype={written}"]).model.dtype == short
    assert with_short_types(["merge", "--dtype", written]) == ["merge", "--dtype", short]
    assert with_short_types(["merge", f"--dtype={written}"]) == ["merge", f"--dtype={short}"]


def test_other_words_stay_as_they_are() -> None:
    assert short_type("int8") == "int8"
    assert short_type(None) is None
    assert with_short_types(["generate", "x", "half"]) == ["generate", "x", "half"]
