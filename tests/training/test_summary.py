"""Evaluations and runs in words."""

from mint.training.summary import describe_evaluation, summarize

EVALUATIONS = [
    {"step": 0, "eval/loss": 1.9634, "eval/rewards/accuracies": 0.41, "eval/rewards/margins": -0.1},
    {"step": 1, "loss": 9.0, "rewards/accuracies": 0.1},
    {"step": 20, "eval/loss": 1.1312, "eval/rewards/accuracies": 0.968, "eval/rewards/margins": 0.52},
]


def test_an_evaluation_is_a_line():
    assert describe_evaluation(EVALUATIONS[2]) == "step 20: eval loss 1.131, preference accuracy 97 %, margin 0.52"
    assert describe_evaluation({"step": 3, "eval/loss": 2.0}) == "step 3: eval loss 2"


def test_the_summary_compares_the_first_evaluation_with_the_last():
    assert summarize(EVALUATIONS) == "eval loss 1.963 -> 1.131, preference accuracy 41 % -> 97 %"
    assert summarize(EVALUATIONS[1:]) == "eval loss 1.131, preference accuracy 97 %"


def test_without_evaluations_it_compares_the_first_and_last_tenth_of_the_steps():
    rows = [{"step": step, "loss": float(step), "rewards/accuracies": step / 20} for step in range(1, 21)]
    expected = "training loss 1.5 -> 19.5, preference accuracy 8 % -> 98 % (means of the first and last 2 of 20 steps)"
    assert summarize(rows) == expected
    skipped = {"step": 21, "loss": None, "rewards/accuracies": None}
    assert summarize([*rows, skipped]) == expected
    assert summarize([{"step": 1, "loss": 2.5}]) == "training loss 2.5"


def test_no_rows_no_summary():
    assert summarize([]) == ""
