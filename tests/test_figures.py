import pytest

from spectrodiff.training.figures import diverged, line, summary


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
    assert summary(rows) == expected


def test_a_run_that_diverged_names_examples_and_what_to_try():
    words = diverged(7, 30, ["piano/a", "piano/b"])
    assert "7 steps in a row, to step 30" in words
    assert "piano/a, piano/b" in words
    assert "learning rate" in words


def test_a_line_to_look_at():
    assert line({"loss": 0.123456, "skipped": 2.0}) == "loss 0.123  skipped 2"
