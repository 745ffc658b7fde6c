import re

import pytest

from spectrodiff.training.summaries import divergence_message, mean_metrics, one_line


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
def test_mean_metrics_exclude_skipped_steps(rows, expected):
    assert mean_metrics(rows) == expected


def test_divergence_message_names_examples_and_remedies():
    words = divergence_message(7, 30, ["piano/a", "piano/b"])
    assert re.search(r"\b7 steps\b.*\bstep 30\b", words)
    assert "piano/a, piano/b" in words
    assert "learning rate" in words


def test_one_line_formats_metrics():
    assert one_line({"loss": 0.123456, "skipped": 2.0}) == "loss 0.123  skipped 2"
