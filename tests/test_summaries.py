import pytest

from spectrodiff.training.summaries import bound, mean_metrics, one_line


def row(loss, skipped=0.0):
    return {"loss": loss, "skipped": skipped}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(1.0), row(4.0)], {"loss": 2.5, "skipped": 0.0}),
        ([row(1.0), row(float("nan"), 1.0), row(4.0)], {"loss": 2.5, "skipped": 1.0}),
        ([row(float("nan"), 1.0), row(float("inf"), 1.0)], {"skipped": 2.0}),
    ],
)
def test_means_are_over_what_was_not_skipped(rows, expected):
    assert mean_metrics(rows) == expected


def test_names_of_bindings():
    config = "# a.b = 1\nimport x.y\nN = 3\nadamw.warmup = %N\nscope/only.pattern = \\\n    'x.y = 1'\n"
    assert bound(config) == {"adamw.warmup", "scope/only.pattern"}


def test_a_line_to_look_at():
    assert one_line({"loss": 0.123456, "skipped": 2.0}) == "loss 0.123  skipped 2"
