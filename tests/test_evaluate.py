"""What an answer is worth, against the same said one by one."""

import math

import numpy as np
from runs_made import held_out_run

from user_llm.data.tasks import RatingPrediction
from user_llm.evaluation.evaluate import judge
from user_llm.evaluation.system import Answers


def test_expected_stars_are_the_mean_of_all_that_might_be_said(tmp_path, mesh):
    run = held_out_run(tmp_path, mesh(1))
    task, targets = RatingPrediction(run.dataset), run.split.test
    stars = [float(x) for x in task.candidates()]
    rng = np.random.default_rng(0)
    choices = np.array([[*rng.permutation(len(stars)), -1] for _ in targets])
    scores = np.sort(rng.normal(-300, 2, choices.shape))[:, ::-1].astype(np.float32)
    scores[:, -1] = -np.inf  # there is no further candidate
    answers = Answers([task.candidates()[row[0]] for row in choices], choices, scores)
    expected = answers.expected(stars)
    off = []
    for row, (chosen, given) in enumerate(zip(choices, scores.astype(float), strict=True)):
        shares = [math.exp(score + 300) for score in given[:-1]]
        mean = sum(p * stars[i] for p, i in zip(shares, chosen[:-1], strict=True)) / sum(shares)
        assert math.isclose(expected[row], mean, rel_tol=1e-5)
        off.append(mean - run.dataset.ratings[targets[row]])
    figures = judge(run, "stars", task, targets, answers)
    assert math.isclose(figures["test/stars/expected_mae"], np.abs(off).mean(), rel_tol=1e-5)
    assert math.isclose(
        figures["test/stars/expected_rmse"], np.square(off).mean() ** 0.5, rel_tol=1e-5
    )
    # Where only the best is known nothing is expected.
    assert judge(run, "stars", task, targets, Answers(answers.texts)).keys() == {
        "test/stars/mae",
        "test/stars/rmse",
    }
